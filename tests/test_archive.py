"""Bodies under their hashes, and a journal that survives a crash."""

from __future__ import annotations

import hashlib
import threading
from datetime import UTC, datetime

import pytest
import zstandard

from tbforensics.archive import Archive
from tbforensics.errors import EvidenceError
from tbforensics.model import Capture

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path)


def capture_of(archive: Archive, body: bytes, query: str = "q", **more: object) -> Capture:
    sha256, length = archive.keep([body])
    return Capture("main", query, "r", {}, NOON, sha256=sha256, bytes=length, **more)


def test_a_body_lies_under_the_hash_of_what_came(archive):
    sha256, length = archive.keep([b"one ", b"", b"two"])
    assert (sha256, length) == (hashlib.sha256(b"one two").hexdigest(), 7)
    packed = (archive.raw / f"{sha256}.zst").read_bytes()
    assert zstandard.ZstdDecompressor().decompressobj().decompress(packed) == b"one two"


def test_an_empty_body_is_a_body(archive):
    capture = capture_of(archive, b"")
    assert archive.read(capture) == b""
    assert archive.holds(str(capture.sha256))


def test_the_same_body_is_stored_once_and_as_the_same_bytes(archive):
    first = capture_of(archive, b"x" * 1000)
    before = archive.path_of(str(first.sha256)).read_bytes()
    assert capture_of(archive, b"x" * 1000) == first
    assert [path.read_bytes() for path in archive.raw.iterdir()] == [before]


def test_a_stream_that_breaks_leaves_nothing_behind(archive):
    def breaking():
        yield b"half"
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        archive.keep(breaking())
    assert list(archive.raw.iterdir()) == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "a" * 63, "A" * 64, "g" * 64])
def test_only_a_hash_names_a_body(archive, name):
    with pytest.raises(EvidenceError, match="not a SHA-256"):
        archive.path_of(name)


def test_a_capture_without_a_body_says_why(archive):
    with pytest.raises(EvidenceError, match="gave no body for q: refused"):
        archive.read(Capture("main", "q", "r", {}, NOON, error="refused"))


def test_a_missing_body_is_named(archive):
    capture = capture_of(archive, b"x")
    archive.path_of(str(capture.sha256)).unlink()
    assert not archive.holds(str(capture.sha256))
    with pytest.raises(EvidenceError, match="is missing"):
        archive.read(capture)


@pytest.mark.parametrize(
    "damage",
    [
        lambda packed: b"not zstd at all",
        lambda packed: packed[: len(packed) // 2],
        lambda packed: packed[:-6] + bytes(6),
        lambda packed: b"",
        lambda packed: zstandard.ZstdCompressor().compress(b"something else"),
    ],
    ids=["garbage", "cut", "flipped", "empty", "another"],
)
def test_a_damaged_body_is_not_read(archive, damage):
    capture = capture_of(archive, bytes(range(256)) * 40)
    path = archive.path_of(str(capture.sha256))
    path.write_bytes(damage(path.read_bytes()))
    assert not archive.holds(str(capture.sha256))
    with pytest.raises(EvidenceError, match="is damaged"):
        archive.read(capture)


def test_the_journal_gives_back_what_was_recorded(archive):
    captures = [
        capture_of(archive, b"x", notes=("a note",)),
        Capture("main", "q", "r", {"params": {"a": 1}}, NOON, error="no answer"),
    ]
    for capture in captures:
        archive.record(capture)
    assert archive.recorded() == captures


def test_odd_letters_in_an_error_do_not_tear_the_journal(archive):
    odd = "next\u2028line\x85and\x0c\ud800 and \x00"
    archive.record(Capture("main", "q", "r", {}, NOON, error=odd))
    archive.record(Capture("main", "later", "r", {}, NOON))
    assert [capture.error for capture in archive.recorded()] == [odd, ""]


def test_a_line_torn_by_a_crash_costs_only_itself(archive, tmp_path):
    archive.record(Capture("main", "before", "r", {}, NOON))
    with (tmp_path / "captures.jsonl").open("ab") as journal:
        journal.write(b'{"source": "main", "query": "to\xff')
    archive.record(Capture("main", "after", "r", {}, NOON))
    archive.record(Capture("main", "later", "r", {}, NOON))
    assert [capture.query for capture in archive.recorded()] == ["before", "after", "later"]


def test_many_threads_write_whole_lines(archive):
    def work(number: int) -> None:
        for step in range(5):
            archive.record(capture_of(archive, b"shared", query=f"{number}.{step}"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({capture.query for capture in archive.recorded()}) == 40
    assert len(list(archive.raw.iterdir())) == 1


def test_closing_the_journal_sweeps_up_what_a_crash_left(archive):
    archive.record(capture_of(archive, b"x"))
    (archive.raw / ".arriving-abc").write_bytes(b"half")
    archive.close_journal()
    archive.close_journal()
    assert archive.recorded() == []
    assert len(list(archive.raw.iterdir())) == 1
