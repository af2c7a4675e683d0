"""What hashes prove: a byte that changed, a file that went, came or leads elsewhere is named."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLE
from hypothesis import given, settings
from hypothesis import strategies as st
from made import at, capture, window

from tbforensics import manifest
from tbforensics.archive import Archive
from tbforensics.errors import EvidenceError
from tbforensics.manifest import canonical, checks, custody, note_act, read_manifest, sha256_of


@pytest.fixture
def case(sealed: Path) -> Path:
    """The example with a report, as `verify` meets it."""
    for name in ("report.ipynb", "report.html"):
        (sealed / name).write_text(f"a {name}\n")
    files = {name: sha256_of(sealed / name) for name in ("report.ipynb", "report.html")}
    note_act(sealed, "rendered", files=files, failure="")
    return sealed


def broken(folder: Path) -> tuple[str, str]:
    """Name and words of the first check that does not hold; two empty texts when all do."""
    return next(((c.name, c.detail) for c in checks(folder) if not c.holds), ("", ""))


def first(folder: Path, pattern: str) -> Path:
    return min(path for path in folder.glob(pattern) if path.stat().st_size > 100)


def flip(path: Path, place: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 0x01
    path.write_bytes(content)


FILES = {
    "raw/*.zst": "raw replies",
    "evidence/samples/*.parquet": "evidence",
    "evidence/series/all.parquet": "evidence",
    "findings.json": "findings.json",
    "parameters.yaml": "parameters",
    "manifest.json": "manifest",
    "report.ipynb": "report.ipynb",
    "report.html": "report.html",
}


def test_an_untouched_case_holds(case: Path) -> None:
    assert broken(case) == ("", "")
    assert [check.name for check in checks(case)][:3] == ["files", "custody log", "manifest"]


@pytest.mark.parametrize(("pattern", "name"), FILES.items())
def test_one_flipped_byte_is_found_where_it_is(case: Path, pattern: str, name: str) -> None:
    path = min(case.glob(pattern))
    flip(path)
    found, detail = broken(case)
    assert found == name
    assert path.name in detail


@pytest.mark.parametrize(("pattern", "name"), [*FILES.items(), ("custody.jsonl", "custody log")])
def test_a_missing_file_is_named(case: Path, pattern: str, name: str) -> None:
    path = min(case.glob(pattern))
    path.unlink()
    found, detail = broken(case)
    assert found == name
    assert (path.name in detail and "missing" in detail) or "no manifest.json" in detail


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("raw/notes.txt", "raw replies"),
        (f"raw/{'0' * 64}.zst", "raw replies"),
        ("evidence/samples/prometheus.more.parquet", "evidence"),
        ("evidence/samples/notes.txt", "evidence"),
    ],
)
def test_a_file_that_nobody_sealed_is_named(case: Path, name: str, check: str) -> None:
    shutil.copyfile(first(case, "evidence/samples/*.parquet"), case / name)
    found, detail = broken(case)
    assert found == check and Path(name).name in detail


@pytest.mark.parametrize("pattern", [*FILES, "custody.jsonl"])
def test_a_link_where_a_file_should_be_is_named_though_it_leads_to_the_same_bytes(
    case: Path, tmp_path: Path, pattern: str
) -> None:
    path = min(case.glob(pattern))
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    found, detail = broken(case)
    assert found == "files" and path.name in detail


@pytest.mark.parametrize("name", ["raw", "evidence", "evidence/samples"])
def test_a_link_in_place_of_a_folder_is_named(case: Path, tmp_path: Path, name: str) -> None:
    (case / name).rename(tmp_path / "elsewhere")
    (case / name).symlink_to(tmp_path / "elsewhere")
    assert broken(case) == ("files", f"{name} is a link; what it leads to was never sealed")


def test_a_folder_in_place_of_a_file_is_no_file(case: Path) -> None:
    (case / "report.html").unlink()
    (case / "report.html").mkdir()
    assert broken(case) == ("report.html", "report.html is missing")


def test_a_report_that_the_custody_log_does_not_know_is_a_stranger(sealed: Path) -> None:
    (sealed / "report.html").write_text("<p>cleared</p>")
    assert broken(sealed)[0] == "report.html"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_byte_of_a_reply_changes_it_is_found_or_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("archive")
    archive = Archive(folder)
    body = b'{"status":"success","data":[' + b"1," * 200 + b"0]}"
    sha256, _ = archive.keep([body])
    flip(archive.path_of(sha256), data.draw(st.integers(0, 10_000)))
    if archive.holds(sha256):  # some bits of a zstd header mean nothing
        assert archive.read(capture("q", sha256=sha256)) == body


# --- the custody log -----------------------------------------------------------------------


def lines_of(case: Path) -> list[bytes]:
    return (case / "custody.jsonl").read_bytes().splitlines(keepends=True)


def edited(line: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(line), **changes}, sort_keys=True).encode() + b"\n"


@pytest.mark.parametrize(
    ("spoil", "act"),
    [
        (lambda lines: lines[1:], 1),  # its head is cut
        (lambda lines: [lines[0], lines[2]], 2),  # an act is cut out
        (lambda lines: [lines[0], lines[2], lines[1]], 2),  # reordered
        (lambda lines: [edited(lines[0], by="someone else"), *lines[1:]], 2),
        (lambda lines: [lines[0], edited(lines[1], time="2020-01-01T00:00:00Z"), lines[2]], 3),
        (lambda lines: [*lines, lines[2]], 4),  # said twice
        (lambda lines: [*lines[:2], lines[2][:40]], 3),  # torn
        (lambda lines: [*lines[:2], lines[2].rstrip(b"\n")], 3),
        (lambda lines: [*lines, b"[]\n"], 4),
        (lambda lines: [*lines, b"\xff\xfe\n"], 4),
        (lambda lines: [*lines, b"[" * 100_000 + b"\n"], 4),
        (lambda lines: [*lines[:2], edited(lines[2], files=["report.html"])], 3),
    ],
)
def test_an_edited_custody_log_names_the_first_act_that_does_not_follow(
    tmp_path: Path, spoil: Callable[[list[bytes]], list[bytes]], act: int
) -> None:
    for name in ("sealed", "assessed", "rendered"):
        note_act(tmp_path, name)
    (tmp_path / "custody.jsonl").write_bytes(b"".join(spoil(lines_of(tmp_path))))
    with pytest.raises(EvidenceError, match=f"act {act} does not follow"):
        custody(tmp_path)
    assert broken(tmp_path)[0] == "custody log"


def test_a_custody_log_whose_end_is_cut_no_longer_knows_the_report(case: Path) -> None:
    (case / "custody.jsonl").write_bytes(b"".join(lines_of(case)[:-1]))
    found, detail = broken(case)
    assert found == "report.ipynb" and "does not know" in detail


def test_an_emptied_custody_log_knows_nothing(case: Path) -> None:
    (case / "custody.jsonl").write_bytes(b"")
    assert broken(case) == ("manifest", "the custody log has no hash for manifest.json")


def _note_many(folder: Path) -> None:
    for number in range(15):
        note_act(folder, "noted", number=number)


def test_acts_of_several_processes_at_once_are_all_kept_in_one_chain(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_note_many, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [act["n"] for act in custody(tmp_path)] == list(range(1, 31))


def test_who_acted_can_be_said_and_is_on_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TBFORENSICS_USER", "analyst")
    note_act(tmp_path, "noted")
    (act,) = custody(tmp_path)
    assert (act["by"], act["act"], act["before"]) == ("analyst", "noted", "")


# --- the manifest --------------------------------------------------------------------------


def respell(case: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Forge manifest.json, with a custody log that agrees."""
    value = json.loads((case / "manifest.json").read_bytes())
    change(value)
    sha256 = manifest.write_atomically(case / "manifest.json", canonical(value))
    note_act(case, "forged", files={"manifest.json": sha256})


def test_a_case_of_a_later_format_is_refused_with_the_version_that_reads_it(case: Path) -> None:
    respell(case, lambda value: value.update(format=2, tool={"version": "9.9"}))
    with pytest.raises(EvidenceError, match="format 2") as caught:
        read_manifest(case)
    assert "9.9" in caught.value.next_step
    assert broken(case)[0] == "manifest"


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("captures"),
        lambda value: value["captures"][0].update(sha256="../../etc/passwd"),
        lambda value: value["captures"][0].update(sha256=5),
        lambda value: value["captures"][0].update(surprise=1),
        lambda value: value["captures"][0].update(asked_at="yesterday"),
        lambda value: value.update(captures=7),
        lambda value: value.update(evidence=[{}]),
        lambda value: value.update(evidence=["x"]),
        lambda value: value.update(tool=3),
    ],
)
def test_a_forged_manifest_is_refused_in_words(
    case: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    respell(case, change)
    with pytest.raises(EvidenceError, match=r"manifest\.json of .* cannot be read"):
        read_manifest(case)
    assert broken(case)[0] == "manifest"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_manifest_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(EvidenceError):
        read_manifest(tmp_path)


def test_a_folder_that_was_never_sealed_says_how_to_seal_one(tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match="no sealed case") as caught:
        read_manifest(tmp_path)
    assert "tbforensics collect" in caught.value.next_step


def test_a_file_is_no_case(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(EvidenceError):
        read_manifest(tmp_path / "x")


def test_captures_have_one_order_however_they_came() -> None:
    some = [
        capture(query, source, role=role, window=window(start, start + 10))
        for query in ("b", "a")
        for source in ("two", "one")
        for role in ("y", "x")
        for start in (10, 0)
    ]
    assert manifest.ordered(some) == manifest.ordered(reversed(some))
    assert len(manifest.ordered(some)) == len(some)


def test_of_two_answers_to_one_question_the_later_stays() -> None:
    failed, good = capture("q", sha256=None, error="no"), capture("q")
    assert manifest.ordered([failed, good]) == [good]


def test_the_manifest_gives_back_what_was_sealed() -> None:
    value = json.loads((EXAMPLE / "manifest.json").read_bytes())
    sealed = read_manifest(EXAMPLE)
    assert [capture.to_json() for capture in sealed.captures] == value["captures"]
    assert sealed.sha256 == sha256_of(EXAMPLE / "manifest.json")


def test_json_that_has_no_spelling_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical({"value": float("nan")})


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "there"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        manifest.write_atomically(path, b"x")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


def test_moments_are_whole_milliseconds_in_the_manifest() -> None:
    kept = capture("q", asked_at=at(0.5)).to_json()["asked_at"]
    assert kept == "2026-03-10T10:00:00.500Z"
