"""A sealed case opens offline and gives the same bytes anywhere; what was changed is found."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from collected import World, scenario, world
from conftest import ROOT

from tbforensics import case as room
from tbforensics import manifest, parameters
from tbforensics.asking.sealed import questions
from tbforensics.build import rebuild
from tbforensics.case import Case, case_of, find_home, investigate, open_case, prove
from tbforensics.errors import EvidenceError, ForensicsError, ParametersError
from tbforensics.manifest import canonical, custody, note_act
from tbforensics.model import Verdict

ID = str(scenario.PARAMETERS["incident_id"])


@pytest.fixture(scope="module")
def here() -> World:
    return world()


@pytest.fixture
def copy(here: World, tmp_path: Path) -> Path:
    folder = tmp_path / "incidents" / ID
    shutil.copytree(here.case, folder)
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was touched")

    for name in ("connect", "connect_ex", "sendto", "bind"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


# --- offline -------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_network")
def test_everything_that_a_notebook_asks_of_a_case_is_answered_offline(
    here: World, copy: Path
) -> None:
    case = open_case(copy)
    assert case.assessment.verdict is Verdict.CONFIRMED
    assert case.sight.any(axis=None) and case.frames.seen("handshake_fail")
    assert case.sql("SELECT count(*) AS n FROM samples")["n"].item() > 10_000
    assert set(case.captures) >= {"handshake_fail", "up", "log_lines", "handshake_ring"}
    assert case.catalogue["retransmits"].required
    assert all(check.holds for check in prove(copy, recompute=True))
    rebuild(copy, case.incident)
    assert case_of(here.incident(), copy.parent.parent).assessment.verdict is Verdict.CONFIRMED


def test_sql_takes_values_as_parameters_and_cannot_write(example: Case) -> None:
    found = example.sql("SELECT DISTINCT source FROM samples JOIN series USING (sid) "
                        "WHERE query = ? ", ["up"])  # fmt: skip
    assert found["source"].tolist() == ["prometheus"]
    named = example.sql("SELECT count(*) AS n FROM samples WHERE value > $least", {"least": 1e300})
    assert named["n"].tolist() == [0]
    with pytest.raises(EvidenceError):
        example.sql("COPY (SELECT 1) TO 'x.csv'")


def test_a_reply_comes_back_byte_for_byte(example: Case) -> None:
    capture = next(c for c in example.captures["up"] if c.usable)
    body = example.body(capture)
    assert len(body) == capture.bytes and hashlib.sha256(body).hexdigest() == capture.sha256
    unasked = [c for c in example.manifest.captures if c.sha256 is None]
    for capture in unasked[:1]:
        with pytest.raises(EvidenceError, match="gave no body"):
            example.body(capture)


@pytest.mark.usefixtures("no_network")
def test_prometheus_pandas_answers_what_was_asked_and_refuses_what_was_not(here: World) -> None:
    case = open_case(here.case)
    capture = next(c for c in case.captures["up"] if c.usable)
    asked = questions([capture]).iloc[0]
    table = case.prometheus().query(asked.expression, asked.time)
    assert len(table.columns) == 2
    with pytest.raises(EvidenceError, match="never asked") as caught:
        case.prometheus("prometheus").query("up[1h]", asked.time)
    assert any("up[" in problem for problem in caught.value.problems)
    with pytest.raises(EvidenceError, match="no Prometheus source nobody"):
        case.prometheus("nobody")


# --- the same bytes anywhere ---------------------------------------------------------------

FINDINGS = """
import sys
from tbforensics.case import open_case
sys.stdout.buffer.write(open_case(sys.argv[1]).findings_json())
"""


def test_findings_are_the_same_bytes_in_another_process_zone_and_hash_seed(
    here: World, tmp_path: Path
) -> None:
    given = {"TZ": "America/St_Johns", "PYTHONHASHSEED": "4242", "LC_ALL": "C"}
    run = subprocess.run(
        [sys.executable, "-c", FINDINGS, here.case],
        capture_output=True,
        env={**os.environ, **given},
        cwd=tmp_path,
    )
    assert run.stdout == (here.case / "findings.json").read_bytes(), run.stderr.decode()


def test_findings_are_written_once_and_are_on_record(copy: Path) -> None:
    (copy / "findings.json").unlink()
    acts = len(custody(copy))
    case = open_case(copy)
    for _ in range(2):
        sha256 = case.record_findings()
    last = custody(copy)[-1]
    assert len(custody(copy)) == acts + 1
    assert (last["act"], last["files"]) == ("assessed", {"findings.json": sha256})


def test_each_finding_leads_to_the_replies_that_it_rests_on(here: World) -> None:
    value = json.loads((here.case / "findings.json").read_bytes())
    kept = {path.stem for path in (here.case / "raw").iterdir()}
    for found in value["findings"]:
        for name in found["cites"]:
            rests_on = value["evidence"][name]
            assert rests_on["source"] and set(rests_on["captures"]) <= kept
    assert value["manifest_sha256"] == manifest.sha256_of(here.case / "manifest.json")


# --- what may be added, and what not -------------------------------------------------------


def project(here: World, tmp_path: Path) -> Path:
    return here.project(tmp_path / "home")


def test_a_timeline_and_thresholds_may_be_amended_and_that_is_on_record(
    here: World, tmp_path: Path
) -> None:
    home = project(here, tmp_path)
    before = len(custody(home / "incidents" / ID))
    noted = {"time": "2026-11-20T10:25:00Z", "event": "detected", "author": "me", "text": "saw it"}
    thresholds = {"handshake_fail_per_min": 50.0, "retransmit_per_min": 1e6}
    case = case_of(here.incident(timeline=[noted], thresholds=thresholds), home)
    acts = custody(case.folder)[before:]
    assert [act["act"] for act in acts] == ["amended", "assessed"]
    assert case.assessment.verdict is not Verdict.CONFIRMED
    assert [entry.text for entry in case.incident.timeline] == ["saw it"]
    assert all(check.holds for check in prove(case.folder))
    again = case_of(here.incident(timeline=[noted], thresholds=thresholds), home)
    assert len(custody(again.folder)) == before + 2, "nothing new, so nothing on record"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"end": "2026-11-20T11:20:00Z"},
         "end: sealed 2026-11-20T11:30:00Z, now 2026-11-20T11:20:00Z"),
        ({"baseline_start": "2026-11-20T08:40:00Z"},
         "baseline_start: sealed 2026-11-20T08:30:00Z, now 2026-11-20T08:40:00Z"),
        ({"sources": {"node": {"type": "jsonrpc", "url": "http://127.0.0.1:1"}}}, "sources: "),
    ],
)  # fmt: skip
def test_another_question_is_refused_with_both_values(
    here: World, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    home = project(here, tmp_path)
    before = (home / "incidents" / ID / "parameters.yaml").read_bytes()
    with pytest.raises(EvidenceError, match="sealed for another question") as caught:
        case_of(here.incident(**change), home)
    assert any(problem.startswith(said) for problem in caught.value.problems)
    assert (home / "incidents" / ID / "parameters.yaml").read_bytes() == before


def test_without_sources_a_sealed_case_is_opened_and_nothing_is_collected(
    here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = project(here, tmp_path)
    monkeypatch.chdir(home / "notebooks")
    case = investigate(**here.parameters(sources={}))
    assert case.incident.sources and case.assessment.verdict is Verdict.CONFIRMED
    with pytest.raises(EvidenceError, match="is not there and `sources` is empty"):
        investigate(**here.parameters(sources={}, incident_id="INC-2"))
    assert [p.name for p in (home / "incidents").iterdir()] == [ID]


def test_a_notebooks_parameters_are_checked_as_a_file_is(tmp_path: Path) -> None:
    with pytest.raises(ParametersError) as caught:
        investigate(incident_id=42, kind="quic_failur", start="now", end="later", sources={})
    assert len(caught.value.problems) >= 4


# --- where a project is --------------------------------------------------------------------


def test_a_project_is_found_from_its_notebooks_and_from_its_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    for name in ("incidents", "notebooks", "parameters/old"):
        (home / name).mkdir(parents=True)
    for name in ("", "notebooks", "parameters/old", "incidents"):
        monkeypatch.chdir(home / name)
        assert find_home() == home
    assert find_home(home / "notebooks") == home


def test_a_new_project_is_where_the_command_runs_and_not_below_parameters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parameters").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_home(tmp_path / "parameters") == find_home() == tmp_path


# --- a case that was changed ---------------------------------------------------------------


def failing(folder: Path, **options: bool) -> tuple[str, str]:
    return next(((c.name, c.detail) for c in prove(folder, **options) if not c.holds), ("", ""))


def forge(folder: Path, name: str, content: bytes) -> None:
    """Write a file, with a custody log that agrees."""
    sha256 = manifest.write_atomically(folder / name, content)
    note_act(folder, "forged", files={name: sha256})


def rewritten(folder: Path, **changed: float) -> None:
    """A part written anew in another layout, and its hash put into the manifest."""
    part = folder / "evidence/samples/prometheus.up.parquet"
    table = pq.read_table(part)
    for name, value in changed.items():
        column = pa.array(
            [value, *table.column(name).to_pylist()[1:]], table.schema.field(name).type
        )
        table = table.set_column(
            table.schema.get_field_index(name), table.schema.field(name), column
        )
    pq.write_table(table, part, row_group_size=100, compression="gzip")
    value = json.loads((folder / "manifest.json").read_bytes())
    for sealed in value["evidence"]:
        if sealed["path"] == part.relative_to(folder).as_posix():
            sealed.update(sha256=manifest.sha256_of(part), bytes=part.stat().st_size)
    forge(folder, "manifest.json", canonical(value))


def test_evidence_that_another_version_wrote_differently_is_proved_by_its_rows(copy: Path) -> None:
    rewritten(copy)
    rebuilt = {c.name: c for c in prove(copy, recompute=True)}["evidence rebuilt"]
    assert rebuilt.holds and "the same rows" in rebuilt.detail
    rewritten(copy, value=7.0)
    name, detail = failing(copy, recompute=True)
    assert name == "evidence rebuilt" and "samples/prometheus.up comes out" in detail


def forged_findings(folder: Path) -> None:
    value = json.loads((folder / "findings.json").read_bytes())
    value.update(verdict="cleared", findings=[])
    forge(folder, "findings.json", canonical(value))


def forged_evidence(folder: Path) -> None:
    """Samples of a peer made calm, in a manifest and a custody log that agree."""
    part = "evidence/samples/prometheus.handshake_fail.parquet"
    shutil.copyfile(folder / "evidence/samples/prometheus.disconnects.parquet", folder / part)
    value = json.loads((folder / "manifest.json").read_bytes())
    value["evidence"] = manifest.parts_of(folder)
    forge(folder, "manifest.json", canonical(value))
    forge(folder, "findings.json", open_case(folder).findings_json())


def forged_window(folder: Path) -> None:
    text = (folder / "parameters.yaml").read_text().replace("T11:30:00Z", "T10:15:00Z")
    forge(folder, "parameters.yaml", text.encode())
    forge(folder, "findings.json", open_case(folder).findings_json())


@pytest.mark.parametrize(
    ("forgery", "recompute", "name"),
    [
        (forged_findings, False, "findings recomputed"),
        (forged_window, False, "question"),
        (forged_evidence, True, "evidence rebuilt"),
    ],
)
def test_what_was_forged_under_a_consistent_custody_log_is_found_by_computing_again(
    copy: Path, forgery: Callable[[Path], None], recompute: bool, name: str
) -> None:
    forgery(copy)
    assert all(check.holds for check in manifest.checks(copy)), "hashes alone do not show it"
    assert failing(copy, recompute=recompute)[0] == name


def test_a_case_of_another_version_says_so_when_its_findings_differ(copy: Path) -> None:
    value = json.loads((copy / "manifest.json").read_bytes())
    value["tool"]["version"] = "0.0.9"
    forge(copy, "manifest.json", canonical(value))
    _, detail = failing(copy)
    assert "sealed by version 0.0.9" in detail


def test_nothing_is_computed_from_what_does_not_hash_right(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reply = min((copy / "raw").iterdir())
    reply.write_bytes(b"x")
    monkeypatch.setattr(room, "open_case", lambda _: pytest.fail("it was opened"))
    assert failing(copy)[0] == "raw replies"


def test_a_case_that_was_never_assessed_holds_and_says_so(copy: Path) -> None:
    (copy / "findings.json").unlink()
    acts = (copy / "custody.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "custody.jsonl").write_bytes(acts[0])
    assert failing(copy) == ("", "")
    assert [check.detail for check in prove(copy)][-1] == "none are recorded yet"


@pytest.mark.parametrize("how", ["one part", "all of it", "a part more"])
def test_a_case_whose_evidence_is_not_what_was_sealed_is_not_opened(copy: Path, how: str) -> None:
    before = (copy / "findings.json").read_bytes()
    part = copy / "evidence/samples/prometheus.handshake_fail.parquet"
    if how == "one part":
        part.unlink()
    elif how == "all of it":
        shutil.rmtree(copy / "evidence")
    else:
        shutil.copyfile(part, part.with_name("prometheus.more.parquet"))
    with pytest.raises(EvidenceError, match="cannot be opened") as caught:
        open_case(copy)
    assert "tbforensics rebuild" in caught.value.next_step
    assert (copy / "findings.json").read_bytes() == before
    if how != "a part more":
        rebuild(copy, parameters.read_parameters(copy / "parameters.yaml"))
        assert open_case(copy).findings_json() == before


@pytest.mark.parametrize("content", [b"", b"PAR1 not parquet PAR1", b"\x00" * 500])
def test_a_part_that_is_no_parquet_is_told_in_words(copy: Path, content: bytes) -> None:
    (copy / "evidence/samples/prometheus.up.parquet").write_bytes(content)
    with pytest.raises(EvidenceError):
        open_case(copy).frames  # noqa: B018


@pytest.mark.parametrize("name", ["parameters.yaml", "manifest.json"])
def test_a_case_without_its_papers_is_not_opened(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ForensicsError):
        open_case(copy)
    assert failing(copy)[1]


def test_a_case_of_a_kind_that_is_gone_is_told_in_words(copy: Path) -> None:
    text = (copy / "parameters.yaml").read_text().replace("quic_failure", "quic_failurs")
    forge(copy, "parameters.yaml", text.encode())
    name, detail = failing(copy)
    assert name == "opened" and detail


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "incidents").glob("example-*")), ids=lambda folder: folder.name
)
def test_the_bundled_examples_prove_themselves(folder: Path) -> None:
    assert failing(folder, recompute=True) == ("", ""), "renew it: make example KIND=..."
