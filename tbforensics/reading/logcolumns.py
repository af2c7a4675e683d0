"""Columns of `log_lines` from columns of values: what `logrows` says of one, said of many at once.

Where a value is not of the plain sort that is read here, the answer says so, and `logrows` is
asked about its row: the two never disagree, because only one of them decides.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from tbforensics.reading.logrows import level_of, peer_of

Mask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_WHOLE = r"^(0|-?[1-9][0-9]{0,17}|[1-8][0-9]{18})$"
_NS_PER_MS = 1_000_000


def column(name: str, said: pa.Array, *, is_text: bool) -> tuple[pa.Array, Mask]:
    """A column of `log_lines` from texts, or from numbers that are `as_spelled`; and in which rows
    it is known to be what `logrows` would make of them."""
    if name == "ts":
        ms, fine = ms_of_texts(said) if is_text else ms_of_numbers(said)
        return pa.array(ms).cast(pa.timestamp("ms", "UTC")), fine
    if name in ("id", "block"):
        return integers(said)
    of_texts = {"level": levels, "message": _as_it_is, "peer": peers}.get(name, _unless_empty)
    return of_texts(said), np.ones(len(said), np.bool_)


def levels(texts: pa.Array) -> pa.Array:
    return _each_distinct(texts, lambda text: level_of(text) if text else None)


@lru_cache(maxsize=4096)
def _peer(text: str) -> str | None:
    return peer_of(text) if text else None


def peers(texts: pa.Array) -> pa.Array:
    return _each_distinct(texts, _peer)


def _as_it_is(texts: pa.Array) -> pa.Array:
    return texts


def _unless_empty(texts: pa.Array) -> pa.Array:
    """The store writes "" for "none"."""
    empty = pc.equal(texts, "")
    return pc.if_else(empty, None, texts) if pc.any(empty).as_py() else texts


def _each_distinct(texts: pa.Array, said: Callable[[str], str | None]) -> pa.Array:
    encoded = texts.dictionary_encode()
    return pa.array(map(said, encoded.dictionary.to_pylist()), pa.string()).take(encoded.indices)


# --- numbers and times, from how they are spelled ----------------------------------------------


def as_spelled(texts: pa.Array) -> Mask:
    """Which of them are JSON numbers that orjson would spell the same way again."""
    fine = flags(pc.match_substring_regex(texts, _WHOLE))
    if not fine.all():
        others = texts.filter(pa.array(~fine))
        numbers = _cast(others, pa.float64())
        spelled = orjson.dumps(
            numbers.to_numpy(zero_copy_only=False), option=orjson.OPT_SERIALIZE_NUMPY
        )
        again = pa.array(spelled[1:-1].decode().split(","), pa.string())
        fine[~fine] = flags(pc.equal(again, others)) & flags(pc.is_valid(numbers))
    return fine


def integers(spelled: pa.Array) -> tuple[pa.Array, Mask]:
    """Of numbers that are `as_spelled`; null where it is none, and which are."""
    with suppress(pa.ArrowInvalid):
        return spelled.cast(pa.int64()), np.ones(len(spelled), np.bool_)
    whole = pc.match_substring_regex(spelled, _WHOLE)
    return pc.if_else(whole, spelled, None).cast(pa.int64()), flags(whole)


def ms_of_numbers(spelled: pa.Array) -> tuple[Ints, Mask]:
    """`logrows.time_ms` of numbers that are `as_spelled`; and for which of them it is known."""
    whole, read = integers(spelled)
    ms, fine = ms_of_integers(whole.fill_null(-1).to_numpy())
    if not read.all():  # seconds with a fraction
        seconds = spelled.filter(pa.array(~read)).cast(pa.float64()).to_numpy()
        fine[~read] = (seconds >= 0) & (seconds < 1e11)
        ms[~read] = np.floor(np.rint(np.clip(seconds, 0, 1e11) * 1e6) / 1e3).astype(np.int64)
    return ms, fine


def ms_of_integers(values: Ints) -> tuple[Ints, Mask]:
    """`logrows.time_ms` of integers; and for which of them it is known."""
    bounds = [values < 10**11, values < 10**14, values < 10**17]
    in_ms = [values * 1000, values, values // 1000]
    return np.select(bounds, in_ms, values // _NS_PER_MS), values >= 0


def ms_of_texts(texts: pa.Array) -> tuple[Ints, Mask]:
    """`logrows.time_ms` of times as RFC 3339 spells them; and for which of them it is known."""
    times = _cast(texts, pa.timestamp("ns", "UTC"))
    ns = times.cast(pa.int64()).fill_null(0).to_numpy()
    return ns // _NS_PER_MS, flags(pc.is_valid(times))


def _cast(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """What cannot be cast is null. Arrow only says that there is some, so it is looked for."""
    try:
        return texts.cast(kind)
    except pa.ArrowInvalid:
        half = len(texts) // 2
        if not half:
            return pa.nulls(1, kind)
        return pa.concat_arrays([_cast(texts[:half], kind), _cast(texts[half:], kind)])


def flags(answers: pa.Array) -> Mask:
    found: Mask = answers.to_numpy(zero_copy_only=False)
    return found.astype(np.bool_, copy=False)
