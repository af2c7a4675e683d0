"""XOR chunks: whatever was encoded is decoded to the millisecond and bit; the rest is refused."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from xor_encoder import STALE, bits_of, encoded

from tbforensics.reading import xorchunks

T0 = 1_773_136_800_000
EDGES = [
    *(0, 1, -1, 8191, 8192, 8193, -8191, -8192, 65_535, 65_536, 65_537, -65_535, -65_536),
    *(524_287, 524_288, 524_289, -524_287, -524_288, 1 << 31, -(1 << 31), 1 << 40),
]
Samples = list[tuple[int, int]]


def decoded(*chunks: bytes) -> list[Samples]:
    """The samples of each chunk, none of which is refused."""
    found = xorchunks.decode(chunks)
    assert found.broken == {}
    pairs = list(zip(found.times.tolist(), found.values.view(np.uint64).tolist(), strict=True))
    ends = np.cumsum(found.counts).tolist()
    return [pairs[end - count : end] for end, count in zip(ends, found.counts, strict=True)]


VALUES = st.one_of(
    st.floats().map(bits_of),
    st.integers(0, 2**64 - 1),
    st.integers(0, 5).map(lambda n: bits_of(float(n))),
    st.sampled_from([STALE, bits_of(-0.0), bits_of(math.inf), bits_of(math.nan), 0, 2**64 - 1]),
)
DELTAS = st.one_of(st.just(15_000), st.sampled_from(EDGES), st.integers(-(2**62), 2**62))


@st.composite
def series(draw: st.DrawFn) -> Samples:
    """Times that come by any step, forwards or backwards, and values with long runs."""
    steps = draw(st.lists(st.tuples(DELTAS, VALUES | st.none()), max_size=40))
    time, value, samples = draw(st.integers(-(2**62), 2**62)), 0, []
    for delta, fresh in steps:
        time = (time + delta + 2**63) % 2**64 - 2**63
        value = value if fresh is None else fresh
        samples.append((time, value))
    return samples


@settings(max_examples=120, deadline=None)
@given(st.lists(series(), max_size=8))
@example([[]])
@example([[(T0, 1)], [(T0, 2), (T0 + 1, 3)], []])
def test_what_is_encoded_is_decoded_to_the_millisecond_and_bit(many):
    assert decoded(*map(encoded, many)) == many


@pytest.mark.parametrize("change", EDGES)
def test_every_class_of_a_change_of_the_delta_at_its_edges(change):
    times = [T0, T0 + 15_000, T0 + 30_000 + change, T0 + 45_000 + 2 * change]
    samples = [(ms, bits_of(ms / 7)) for ms in times]
    assert decoded(encoded(samples)) == [samples]


@pytest.mark.parametrize("size", range(1, 65))
def test_every_width_of_a_value_at_every_place_in_a_byte(size):
    for lead in range(9):
        run = [(T0 + n, bits_of(1.0) * (n % 2)) for n in range(lead)]
        wide = [(T0 + lead + n, (((1 << size) - 1) >> n) << (64 - size) // 2) for n in range(3)]
        assert decoded(encoded(run + wide)) == [run + wide]


def test_how_many_are_read_together_does_not_show(monkeypatch):
    rng = np.random.default_rng(5)
    many = [
        [
            (T0 + int(ms), bits_of(float(v)))
            for ms, v in zip(rng.integers(0, 99, n), rng.random(n), strict=True)
        ]
        for n in rng.integers(0, 9, 100).tolist()
    ]
    assert decoded(*map(encoded, many)) == many
    monkeypatch.setattr(xorchunks, "_LANES", 7)
    assert decoded(*map(encoded, many)) == many
    monkeypatch.setattr(xorchunks, "_CELLS", 20)
    assert decoded(*map(encoded, many)) == many


# --- hostile -----------------------------------------------------------------------------

GOOD: Samples = [(T0 + 15_000 * n, bits_of(0.1 * n)) for n in range(50)]


@pytest.mark.parametrize("chunk", [b"", b"\x01", b"\xff\xff" + bytes(18), b"\x00\x01" + bytes(8)])
def test_a_chunk_that_claims_more_than_it_has_room_for_is_refused(chunk):
    found = xorchunks.decode([encoded(GOOD), chunk, encoded(GOOD)])
    assert found.counts.tolist() == [50, 0, 50]
    assert list(found.broken) == [1]
    assert "room" in found.broken[1]
    assert len(found.times) == 100


def test_a_chunk_of_more_samples_than_any_server_keeps_in_one_is_refused():
    room = bytes(xorchunks.MOST_OF_A_CHUNK)
    most = struct.pack(">H", xorchunks.MOST_OF_A_CHUNK) + room
    more = struct.pack(">H", xorchunks.MOST_OF_A_CHUNK + 1) + room
    assert xorchunks.claims([most, more]).tolist() == [xorchunks.MOST_OF_A_CHUNK, -1]
    found = xorchunks.decode([more, most])
    assert found.broken.keys() == {0}
    assert found.times.tolist() == [0] * xorchunks.MOST_OF_A_CHUNK


def test_a_chunk_with_just_enough_room_is_read():
    samples = [(T0, 7), *((T0 + 1 + n, 7) for n in range(9))]
    assert decoded(encoded(samples)) == [samples]
    shortest = encoded([(0, 0), (0, 0), (0, 0)])
    assert xorchunks.claims([shortest, shortest[:-1]]).tolist() == [3, -1]


def test_a_chunk_that_is_cut_is_refused_whole_and_costs_its_neighbours_nothing():
    chunk = encoded(GOOD)
    for end in range(20, len(chunk)):
        found = xorchunks.decode([chunk, chunk[:end], chunk])
        assert found.counts.tolist() == [50, 0, 50]
        assert found.broken.keys() == {1}
        assert found.times.tolist() == [ms for ms, _ in GOOD] * 2


def test_more_bits_than_a_value_has_are_refused():
    text = f"{0:064b}" + f"{1:08b}" + "11" + f"{31:05b}" + f"{40:06b}" + "1" * 40
    text += "0" * (-len(text) % 8)
    chunk = struct.pack(">HB", 2, 0) + int(text, 2).to_bytes(len(text) // 8, "big")
    assert xorchunks.decode([chunk]).broken.keys() == {0}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.binary(max_size=60) | series().map(encoded), max_size=5))
def test_any_bytes_are_samples_or_refused(chunks):
    found = xorchunks.decode(chunks)
    assert len(found.times) == len(found.values) == found.counts.sum()
    for refused in found.broken:
        assert found.counts[refused] == 0
    for chunk, count in zip(chunks, found.counts.tolist(), strict=True):
        assert 2 * count <= 8 * len(chunk)
