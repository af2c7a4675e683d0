"""A case in one file: the same bytes every time, and nothing hostile on the way back."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import EXAMPLE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tbforensics import cli, manifest, parcel, signing
from tbforensics.archive import Archive
from tbforensics.errors import EvidenceError
from tbforensics.manifest import custody, note_act, sha256_of

Entry = tuple[zipfile.ZipInfo, bytes]


@pytest.fixture
def packed(sealed: Path, tmp_path: Path) -> Path:
    path = tmp_path / "case.zip"
    parcel.export(sealed, path)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def entries(path: Path) -> list[Entry]:
    with zipfile.ZipFile(path) as archive:
        return [(info, archive.read(info)) for info in archive.infolist()]


def repacked(path: Path, contents: list[Entry], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for info, content in contents:
            fresh = zipfile.ZipInfo(info.filename)
            fresh.external_attr, fresh.compress_type = info.external_attr, method
            archive.writestr(fresh, content)
    return path


def named(name: str, content: bytes = b"x", mode: int = stat.S_IFREG | 0o644) -> Entry:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info, content


def refused(path: Path, home: Path) -> str:
    """Why a parcel is refused; whatever it was, nothing stays behind."""
    outside = sorted(home.parent.rglob("*"))
    with pytest.raises(EvidenceError) as caught:
        parcel.unpack(path, home)
    left = set(home.parent.rglob("*")) - set(outside) - {home / "incidents"}
    assert not left, left
    assert caught.value.next_step
    return caught.value.what


# --- there and back ------------------------------------------------------------------------


def test_a_case_comes_back_as_it_was(sealed: Path, packed: Path, home: Path) -> None:
    folder = parcel.unpack(packed, home)
    assert folder == home / "incidents" / sealed.name
    assert all(check.holds for check in manifest.checks(folder))
    for path in (p for p in sealed.rglob("*") if p.is_file()):
        name = path.relative_to(sealed).as_posix()
        if name not in ("custody.jsonl", "evidence.duckdb"):
            assert (folder / name).read_bytes() == path.read_bytes(), name
    here, there = custody(sealed), custody(folder)
    assert here[:-1] == there[:-1]  # the two logs part where the parcel went
    assert (here[-1]["act"], there[-1]["act"]) == ("exported", "imported")
    assert here[-1]["parcel_sha256"] == there[-1]["parcel_sha256"] == sha256_of(packed)


def test_the_same_case_gives_the_same_bytes(sealed: Path, packed: Path, tmp_path: Path) -> None:
    os.utime(sealed / "manifest.json", (0, 0))
    (sealed / "findings.json").chmod(0o600)
    note_act(sealed, "verified")
    parcel.export(sealed, tmp_path / "again.zip")
    assert packed.read_bytes() == (tmp_path / "again.zip").read_bytes()
    names = [info.filename for info, _ in entries(packed)]
    assert names == sorted(names) and "evidence.duckdb" not in names


def test_a_parcel_of_an_imported_case_differs_by_that_act_alone(
    packed: Path, home: Path, tmp_path: Path
) -> None:
    parcel.export(parcel.unpack(packed, home), tmp_path / "again.zip")
    first = {info.filename: content for info, content in entries(packed)}
    again = {info.filename: content for info, content in entries(tmp_path / "again.zip")}
    changed = {name for name in first if first[name] != again[name]}
    assert changed == {"custody.jsonl", parcel.CRATE}


def test_a_parcel_that_other_tools_packed_anew_is_read(
    packed: Path, home: Path, tmp_path: Path
) -> None:
    (tmp_path / "unpacked").mkdir()
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "unpacked")
    shutil.make_archive(str(tmp_path / "other"), "zip", tmp_path / "unpacked")
    with zipfile.ZipFile(tmp_path / "other.zip") as archive:
        assert "raw/" in archive.namelist()
    assert parcel.unpack(tmp_path / "other.zip", home).is_dir()


def test_a_signature_travels_along_and_may_be_asked_for(
    sealed: Path, home: Path, tmp_path: Path
) -> None:
    for name in ("key", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)]
        subprocess.run(command, check=True)
    note_act(sealed, "exported")  # within what is signed, so it goes along
    signing.sign(sealed, signing.read_private(tmp_path / "key", lambda: ""))
    parcel.export(sealed, tmp_path / "case.zip")
    stranger = signing.read_public(tmp_path / "stranger.pub")
    with pytest.raises(EvidenceError, match="has not signed"):
        parcel.unpack(tmp_path / "case.zip", home, [stranger])
    key = signing.read_public(tmp_path / "key.pub")
    folder = parcel.unpack(tmp_path / "case.zip", home, [key])
    assert all(check.holds for check in signing.checks(folder, [key]))


def test_the_crate_says_which_act_made_what(packed: Path) -> None:
    contents = {info.filename: content for info, content in entries(packed)}
    graph = {item["@id"]: item for item in json.loads(contents[parcel.CRATE])["@graph"]}
    assert graph[parcel.CRATE]["conformsTo"]["@id"] == "https://w3id.org/ro/crate/1.1"
    assert {part["@id"] for part in graph["./"]["hasPart"]} == set(contents) - {parcel.CRATE}
    runs = [graph[run["@id"]] for run in graph["./"]["mentions"]]
    assert {run["name"].split(": ")[1] for run in runs} == {"sealed", "assessed"}
    for run in runs:
        wanted = [run["instrument"], run["agent"], *run["object"], *run["result"]]
        assert all(item["@id"] in graph for item in wanted)
    text = json.dumps(graph)
    assert str(Path.cwd()) not in text and str(EXAMPLE) not in text


def test_a_case_that_does_not_hold_is_not_handed_on(sealed: Path, tmp_path: Path) -> None:
    with (sealed / "findings.json").open("a") as file:
        file.write(" ")
    with pytest.raises(EvidenceError, match="is not exported"):
        parcel.export(sealed, tmp_path / "case.zip")
    assert not list(tmp_path.glob("*case.zip*"))


def test_a_parcel_that_is_there_is_not_written_over(sealed: Path, packed: Path) -> None:
    with pytest.raises(EvidenceError, match="there already"):
        parcel.export(sealed, packed)


def test_a_case_that_is_there_is_not_written_over(packed: Path, home: Path) -> None:
    first = parcel.unpack(packed, home)
    before = (first / "custody.jsonl").read_bytes()
    with pytest.raises(EvidenceError, match="there already") as caught:
        parcel.unpack(packed, home)
    assert "--to" in caught.value.next_step
    assert (first / "custody.jsonl").read_bytes() == before
    assert [path.name for path in (home / "incidents").iterdir()] == [first.name]


def test_the_command_line_goes_there_and_back(sealed: Path, home: Path, tmp_path: Path) -> None:
    def run(*words: object) -> str:
        done = CliRunner().invoke(cli.main, [str(word) for word in words])
        assert done.exit_code == 0, done.output
        return done.output

    assert sha256_of(sealed / "manifest.json") not in run("export", sealed, tmp_path / "a.zip")
    assert "holds" in run("import", tmp_path / "a.zip", "--to", home)


# --- what is refused -----------------------------------------------------------------------

NAMES = [
    "../evil", "/etc/evil", "raw/../../evil", "raw//evil", "..\\evil", "C:evil", "C:\\evil",
    "raw/x.zst", "evil", "evil.py", "./manifest.json", "raw/" + "A" * 64 + ".zst",
    "evidence/samples/..parquet", "evidence/samples/a/b.parquet", "evidence/../x.parquet",
    "manifest.json\n", "find\x1bings.json", "evidence/samples/a\x00b.parquet", "~/evil",
    "evidence.duckdb", ".lock", "CON", "manifest.json ", "manifest.json.", "evidence/Ａ/x.parquet",
    "raw/" + "0" * 64 + ".zip", "captures.jsonl", "notebooks/evil.ipynb",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_no_case_can_have_is_refused(packed: Path, home: Path, name: str) -> None:
    path = repacked(packed, [*entries(packed), named(name)])
    why = refused(path, home)
    assert "is no file of a case" in why or "zero byte" in why


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=st.text(min_size=1, max_size=60), folder=st.booleans())
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str, folder: bool) -> None:
    info = zipfile.ZipInfo("x")
    info.filename = info.orig_filename = name + "/" * folder
    if parcel._why_not(info):
        return
    target = (tmp_path / info.filename).resolve()
    assert target.is_relative_to(tmp_path.resolve()) and name.isascii() and name.isprintable()


@pytest.mark.parametrize(
    "mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR]
)
def test_what_is_no_plain_file_is_refused(packed: Path, home: Path, mode: int) -> None:
    contents = [entry for entry in entries(packed) if entry[0].filename != "findings.json"]
    path = repacked(packed, [*contents, named("findings.json", b"/etc/passwd", mode | 0o777)])
    assert "is a link, a device" in refused(path, home)


@pytest.mark.parametrize("name", ["evil/", "raw/../", "../", "/", "evidence/a/b/"])
def test_a_folder_that_no_case_has_is_refused(packed: Path, home: Path, name: str) -> None:
    path = repacked(packed, [*entries(packed), named(name, b"", stat.S_IFDIR | 0o755)])
    assert "is no folder of a case" in refused(path, home)


def test_a_name_that_is_there_twice_is_refused(packed: Path, home: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = repacked(packed, [*entries(packed), named("findings.json")])
    assert "is there twice" in refused(path, home)


def test_names_that_differ_by_case_alone_are_refused(packed: Path, home: Path) -> None:
    both = [named("evidence/samples/a.parquet"), named("evidence/samples/A.parquet")]
    assert "is there twice" in refused(repacked(packed, [*entries(packed), *both]), home)


def patched(path: Path, place: int, value: bytes) -> Path:
    """Bytes changed in the first entry of the directory."""
    content = bytearray(path.read_bytes())
    start = struct.unpack("<L", content[-6:-2])[0] + place
    content[start : start + len(value)] = value
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (8, b"\x01\x00", "is encrypted"),
        (8, b"\x41\x00", "is encrypted"),
        (10, b"\x0c\x00", "is compressed in a way"),
        (24, b"\xff\xff\xff\x7f", "would expand to"),
        (16, b"\0\0\0\0", "damaged"),
        (42, b"\x05\0\0\0", ""),
    ],
)
def test_a_directory_that_lies_is_refused(
    packed: Path, home: Path, place: int, value: bytes, why: str
) -> None:
    assert why in refused(patched(packed, place, value), home)


def test_entries_that_share_their_bytes_are_refused(packed: Path, home: Path) -> None:
    content = bytearray(packed.read_bytes())
    start = struct.unpack("<L", content[-6:-2])[0]
    lengths = struct.unpack("<HHH", content[start + 28 : start + 34])
    second = start + 46 + sum(lengths)
    content[second + 42 : second + 46] = content[start + 42 : start + 46]
    packed.write_bytes(content)
    assert "overlap" in refused(packed, home)


def test_a_bomb_is_refused_before_it_goes_off(packed: Path, home: Path) -> None:
    zeros = b"\0" * (parcel.FREELY_EXPANDED_BYTES + 1)
    contents = [entry for entry in entries(packed) if entry[0].filename != "findings.json"]
    path = repacked(packed, [*contents, named("findings.json", zeros)], zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "would expand to" in refused(path, home)


def test_too_many_entries_are_refused(
    packed: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parcel, "MOST_ENTRIES", 5)
    assert "entries" in refused(packed, home)


def test_a_reply_that_expands_without_end_is_refused(
    sealed: Path, packed: Path, home: Path
) -> None:
    """The body is longer than its capture says: it is not read to its end."""
    sha256 = min(sealed.glob("raw/*.zst")).stem
    bomb, _ = Archive(home / "bomb").keep([b"\0" * (1 << 20)] * 8)
    content = (home / "bomb" / "raw" / f"{bomb}.zst").read_bytes()
    shutil.rmtree(home / "bomb")
    contents = [e for e in entries(packed) if sha256 not in e[0].filename]
    path = repacked(packed, [*contents, named(f"raw/{sha256}.zst", content)])
    assert "is longer than sealed" in refused(path, home)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: b"PK",
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content[:-30],
        lambda content: content + b"x",
        lambda content: content + content,
        lambda content: b"#!/bin/sh\n" + content,
        lambda content: content[: len(content) // 2] + content[len(content) // 2 + 9 :],
        lambda content: b"not a zip at all" * 100,
        lambda content: b"PK\x05\x06" + b"\xff" * 16 + b"\0\0",
    ],
)
def test_a_parcel_that_was_cut_or_added_to_is_refused(
    packed: Path, home: Path, spoil: Callable[[bytes], bytes]
) -> None:
    packed.write_bytes(spoil(packed.read_bytes()))
    refused(packed, home)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1), value=st.integers(1, 255))
def test_whatever_byte_is_changed_the_parcel_is_refused_or_gives_the_same_case(
    tmp_path_factory: pytest.TempPathFactory, sealed: Path, packed: Path, place: float, value: int
) -> None:
    content = bytearray(packed.read_bytes())
    content[int(place * (len(content) - 1))] ^= value
    folder = tmp_path_factory.mktemp("flipped")
    (folder / "case.zip").write_bytes(content)
    try:
        case = parcel.unpack(folder / "case.zip", folder)
    except EvidenceError:
        assert not list((folder / "incidents").iterdir())
    else:  # a bit of the crate, or of what no reader looks at
        for name in ("manifest.json", "findings.json", "parameters.yaml"):
            assert (case / name).read_bytes() == (sealed / name).read_bytes()


@pytest.mark.parametrize("name", ["manifest.json", "custody.jsonl", "parameters.yaml"])
def test_a_parcel_without_what_makes_a_case_is_refused(packed: Path, home: Path, name: str) -> None:
    contents = [entry for entry in entries(packed) if entry[0].filename != name]
    refused(repacked(packed, contents), home)


def test_a_parcel_whose_case_was_changed_is_refused(packed: Path, home: Path) -> None:
    contents = [
        (info, content.replace(b"confirmed", b"cleared  ") if info.filename.endswith("gs.json")
         else content)
        for info, content in entries(packed)
    ]  # fmt: skip
    assert "does not hold: findings.json has SHA-256" in refused(repacked(packed, contents), home)
