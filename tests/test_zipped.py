"""ZIP archives of any kind: what can be read is read, the rest is refused in words."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tbforensics.reading import zipped
from tbforensics.reading.zipped import Entry, Refusal, entries

EXPORT = (
    Path(__file__).parent / "fixtures" / "the-block" / "handed-over" / "export.zip"
).read_bytes()


def packed(*named: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in named:
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=method)
    return file.getvalue()


def read(body: bytes) -> tuple[dict[str, bytes], list[str]]:
    found = list(entries(io.BytesIO(body)))
    whole = {entry.name: entry.data for entry in found if isinstance(entry, Entry)}
    return whole, [f"{r.name}: {r.reason}" for r in found if isinstance(r, Refusal)]


def test_a_recorded_export_is_read_although_its_entries_have_month_0() -> None:
    with zipfile.ZipFile(io.BytesIO(EXPORT)) as archive:
        assert {info.date_time[:3] for info in archive.infolist()} == {(1980, 0, 0)}
    whole, refused = read(EXPORT)
    assert len(whole) == 5
    assert refused == []
    assert whole["tls_warnings/latest.json"] == b"[]"


def test_an_archive_that_is_cut_short_gives_its_whole_entries() -> None:
    whole, refused = read(EXPORT[:3_000])
    assert list(whole) == ["5s5mFYU9oGojmSeXLXFSbUsHSCMH6HyZJh5FUej4gpbmkiPzQ.json"]
    assert "directory" in refused[0]
    assert "cut short" in refused[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(EXPORT)))
def test_wherever_it_is_cut_nothing_half_is_given(at: int) -> None:
    full, _ = read(EXPORT)
    whole, refused = read(EXPORT[:at])
    assert whole.items() <= full.items()
    assert refused or at == len(EXPORT)


@pytest.mark.parametrize(
    "name", ["../x.json", "/etc/x.json", "a/../../x.json", "..\\x.json", "C:\\x.json"]
)
def test_a_name_that_leads_out_is_refused_and_the_rest_is_read(name: str) -> None:
    body = packed((name.replace("\\", "/"), b"[]"), ("good.json", b"[]"))
    if "\\" in name:
        body = packed((name.replace("\\", "_"), b"[]"), ("good.json", b"[]"))
        body = body.replace(name.replace("\\", "_").encode(), name.encode())
    whole, (refused,) = read(body)
    assert list(whole) == ["good.json"]
    assert "leads out" in refused


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_entries_with_one_name_the_first_counts() -> None:
    whole, (refused,) = read(packed(("a.json", b"[1]"), ("a.json", b"[2]"), ("b.json", b"[]")))
    assert whole == {"a.json": b"[1]", "b.json": b"[]"}
    assert "already" in refused


def test_a_zip_password_is_said() -> None:
    body = bytearray(packed(("a.json", b"[1]")))
    for mark, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        body[body.find(mark) + at] |= 1
    assert read(bytes(body)) == ({}, ["a.json: it is encrypted with a ZIP password"])


def test_a_bomb_is_cut_off_and_its_neighbours_are_read() -> None:
    bomb = packed(("bomb.json", bytes(30 << 20)), ("good.json", b"[]"), method=zipfile.ZIP_DEFLATED)
    whole, (refused,) = read(bomb)
    assert list(whole) == ["good.json"]
    assert "compressed bytes give" in refused


def test_entries_that_share_their_bytes_are_refused() -> None:
    body = packed(("a.json", b"x" * 5_000), ("b.json", b"[]"))
    directory = body.find(b"PK\1\2")
    second = body.find(b"PK\1\2", directory + 1)
    # the second entry of the directory points into the content of the first
    shared = body[: second + 42] + struct.pack("<I", 100) + body[second + 46 :]
    whole, refused = read(shared)
    assert whole == {}
    assert "shares bytes" in refused[0]


def test_too_many_entries_and_too_long_ones_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    body = packed(*((f"{n}.json", b"[]") for n in range(9)))
    monkeypatch.setattr(zipped, "MOST_ENTRIES", 4)
    whole, refused = read(body)
    assert len(whole) == 4
    assert "the rest is not read" in refused[0]
    monkeypatch.setattr(zipped, "LONGEST_ENTRY_BYTES", 1)
    whole, refused = read(packed(("a.json", b"[]")))
    assert (whole, "longer than 1 bytes" in refused[0]) == ({}, True)


def test_a_directory_of_many_megabytes_is_not_read() -> None:
    tail = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, 500 << 20, 0, 0)
    _, (refused,) = read(tail)
    assert "it has 524288000 bytes" in refused
    locator = b"PK\6\7" + bytes(16)
    assert "ZIP64" in read(locator + struct.pack("<4sHHHHIIH", b"PK\5\6", *[0] * 7))[1][0]


def test_a_checksum_that_does_not_fit_is_said() -> None:
    body = packed(("a.json", b"[1, 2, 3]"), ("b.json", b"[]"))
    whole, (refused,) = read(body.replace(b"[1, 2, 3]", b"[1, 2, 4]"))
    assert list(whole) == ["b.json"]
    assert "CRC" in refused


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_do_harm(data: st.DataObject) -> None:
    body = bytearray(EXPORT[-900:] if data.draw(st.booleans()) else EXPORT)
    for _ in range(data.draw(st.integers(0, 12))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + 1] = data.draw(st.binary(max_size=4))
        body = body or bytearray(b"PK")
    read(bytes(body))
    read(data.draw(st.binary(max_size=200)))
