"""What a person at a terminal, a cron job or a CI step meets."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner, Result
from collected import World, scenario, world
from conftest import ROOT

from tbforensics import cli, kinds, parameters, plugins
from tbforensics.cli import main
from tbforensics.manifest import custody

ID = str(scenario.PARAMETERS["incident_id"])
MAIN = "from tbforensics.cli import main; main()"
COMMANDS = sorted(main.commands)


@pytest.fixture(scope="module")
def here() -> World:
    return world()


def tbforensics(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def project(here: World, folder: Path, **changes: Any) -> Path:
    """A project with a parameters file of the running world; its path."""
    (folder / "incidents").mkdir(parents=True)
    (folder / "parameters").mkdir()
    shutil.copytree(here.home / "dumps", folder / "dumps")
    path = folder / "parameters" / "given.yaml"
    path.write_bytes(parameters.to_yaml(here.incident(**changes)))
    return path


# --- help ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does_and_is_in_the_readme(command: str) -> None:
    result = tbforensics(command, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 3
    assert main.commands[command].help
    readme = (ROOT / "README.md").read_text()
    assert f"tbforensics {command}" in readme, f"README.md does not tell of {command}"


def test_the_exit_codes_are_in_the_readme() -> None:
    readme = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    for code in range(5):
        assert re.search(rf"`{code}` \w", readme), code


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"], ["kinds"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from tbforensics.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    loaded = set(run.stdout.rpartition("LOADED")[2].split())
    heavy = {"pandas", "numpy", "duckdb", "pyarrow", "requests", "papermill", "altair", "pydantic",
             "nbconvert", "nbformat", "jupyter_client", "multiprocessing", "scipy", "yaml",
             "cryptography"}  # fmt: skip
    assert "click" in loaded and not loaded & heavy


# --- the main road and its exit codes ------------------------------------------------------


def test_collect_seals_and_the_rest_follows(  # `run` also renders: see test_publish
    here: World, tmp_path: Path
) -> None:
    path = project(here, tmp_path)
    done = tbforensics("collect", path)
    folder = tmp_path / "incidents" / ID
    assert done.exit_code == 0, done.output
    assert f"{ID}: confirmed" in done.output
    assert [act["act"] for act in custody(folder)] == ["sealed", "assessed"]

    proved = tbforensics("verify", folder, "--recompute")
    assert proved.exit_code == 0 and proved.output.endswith(f"{ID} holds\n")

    rebuilt = tbforensics("rebuild", folder)
    assert rebuilt.exit_code == 0
    assert tbforensics("verify", folder).exit_code == 0

    (folder / "report.html").write_text("<p>cleared</p>")
    broken = tbforensics("verify", folder)
    assert broken.exit_code == 1
    assert "BROKEN  report.html" in broken.output and "does not hold" in broken.stderr


def test_missing_evidence_is_exit_code_three(here: World, tmp_path: Path) -> None:
    sources = {"node": here.sources["node"], "node-logs": here.sources["node-logs"]}
    result = tbforensics("collect", project(here, tmp_path, sources=sources))
    assert result.exit_code == 3
    assert f"{ID}: inconclusive" in result.output
    assert "handshake_fail is not asked" in result.output


def test_what_cannot_be_done_is_exit_code_one_with_what_to_do_next(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("incident_id: 42\nkind: quic_failur\nstart: now\n")
    result = tbforensics("run", tmp_path / "bad.yaml")
    assert result.exit_code == 1 and result.stdout == ""
    assert "bad.yaml cannot be used:" in result.stderr and "Next:" in result.stderr
    assert "did you mean 'quic_failure'?" in result.stderr
    assert not (tmp_path / "incidents").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["no-such-command"],
        ["verify", "/no/such/folder"],
        ["collect", "x.yaml", "--no-such-option"],
        ["schema", "nothing"],
        ["new", "quic_failure"],
        ["batch"],
        ["batch", "x.yaml", "-j", "0"],
        ["batch", "x.yaml", "--json", "/no/such/folder/table.json"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_exit_code_two(arguments: list[str]) -> None:
    result = tbforensics(*arguments)
    assert result.exit_code == 2 and "Usage:" in result.stderr


def test_another_question_under_the_same_id_is_exit_code_one(here: World, tmp_path: Path) -> None:
    path = project(here, tmp_path)
    shutil.copytree(here.case, tmp_path / "incidents" / ID)
    path.write_bytes(parameters.to_yaml(here.incident(end="2026-11-20T11:00:00Z")))
    result = tbforensics("collect", path)
    assert result.exit_code == 1
    assert "end: sealed 2026-11-20T11:30:00Z, now 2026-11-20T11:00:00Z" in result.stderr


def test_a_report_of_a_case_that_lies_elsewhere_never_asks_anybody(
    here: World, tmp_path: Path
) -> None:
    shutil.copytree(here.case, tmp_path / "handed-over")
    asked = len(here.node.asked)
    result = tbforensics("report", tmp_path / "handed-over")
    assert result.exit_code == 1 and f"incidents/{ID}" in result.stderr
    assert len(here.node.asked) == asked
    assert [path.name for path in tmp_path.iterdir()] == ["handed-over"]
    assert tbforensics("verify", tmp_path / "handed-over").exit_code == 0


# --- errors of users -----------------------------------------------------------------------


def mistakes(folder: Path) -> dict[str, list[object]]:
    (folder / "empty").mkdir()
    (folder / "half").mkdir()
    (folder / "half" / "manifest.json").write_text('{"format": 1}')
    (folder / "later").mkdir()
    (folder / "later" / "manifest.json").write_text('{"format": 2, "tool": {"version": "9"}}')
    (folder / "list.yaml").write_text("- a\n- b\n")
    (folder / "torn.yaml").write_text("a: [\n")
    (folder / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "there.yaml").write_text("mine")
    alert = folder / "alert.json"
    alert.write_text("{}")
    new = ["new", "quic_failure", "--id", "INC-1"]
    times = ["--start", "2026-03-10T10:00:00Z", "--end", "2026-03-10T11:00:00Z"]
    return {
        "no file": ["run", folder / "none.yaml"],
        "a folder": ["run", folder],
        "a list": ["run", folder / "list.yaml"],
        "torn yaml": ["collect", folder / "torn.yaml"],
        "no text": ["collect", folder / "bytes.yaml"],
        "not sealed": ["verify", folder / "empty"],
        "half a case": ["verify", folder / "half"],
        "a later format": ["report", folder / "later"],
        "nothing to rebuild": ["rebuild", folder / "empty"],
        "unknown kind": ["new", "earthquake", "--id", "INC-1", *times],
        "bad id": ["new", "quic_failure", "--id", "../../etc", *times],
        "no times": [*new, "--output", folder / "new.yaml"],
        "bad times": [*new, "--start", "yesterday", "--end", "today"],
        "no alert": [*new, "--from-alert", alert],
        "there already": [*new, *times, "--output", folder / "there.yaml"],
    }


NAMES = ["no file", "a folder", "a list", "torn yaml", "no text", "not sealed", "half a case",
         "a later format", "nothing to rebuild", "unknown kind", "bad id", "no times", "bad times",
         "no alert", "there already"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_mistake_is_told_in_words_and_without_a_traceback(tmp_path: Path, name: str) -> None:
    given = mistakes(tmp_path)
    assert sorted(given) == sorted(NAMES)
    result = tbforensics(*given[name])  # raises what is no error of ours
    assert result.exit_code == 1
    assert "Traceback" not in result.output and len(result.stderr) > 20
    assert (tmp_path / "there.yaml").read_text() == "mine"


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "questions", lambda: 1 / 0)
    result = CliRunner().invoke(main, ["kinds"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.fixture
def shut(tmp_path: Path) -> Iterator[Path]:
    """A folder where nothing may be written."""
    place = tmp_path / "shut"
    place.mkdir(mode=0o500)
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", place]
    if os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("root may write anywhere, and nothing can be mounted here")
    yield place
    if os.geteuid() == 0:
        subprocess.run(["umount", "-l", place], check=True)


def test_a_place_where_nothing_may_be_written_is_told_in_words(shut: Path) -> None:
    times = ["--start", "2026-03-10T10:00:00Z", "--end", "2026-03-10T11:00:00Z"]
    result = tbforensics("new", "quic_failure", "--id", "I-1", *times, "--output", shut / "x.yaml")
    assert result.exit_code == 1
    assert re.search("Read-only file system|Permission denied", result.stderr)


# --- a terminal ----------------------------------------------------------------------------

ESCAPES = "\x1b[2J\x1b]8;;http://evil.example\x1b\\\u202etxt.exe\x07\x9b31m\r"


def harmless(text: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in text)


def test_what_evidence_says_never_reaches_the_terminal_as_a_command() -> None:
    shown = cli._inert(f"before {ESCAPES} after\nnext")
    assert harmless(shown) and shown.startswith("before ") and shown.endswith(" after\nnext")


def test_a_hostile_reply_is_shown_without_its_escapes(here: World, tmp_path: Path) -> None:
    """A case whose manifest quotes a server that answered with escape codes."""
    sources = {"node": {"type": "jsonrpc", "url": here.node.url}, "p": here.sources["prometheus"]}
    reply = json.dumps({"jsonrpc": "2.0", "id": 1, "error": {"code": 1, "message": ESCAPES}})
    here.node.replies["net.quic_stats"] = reply.encode()
    try:
        result = tbforensics("collect", project(here, tmp_path, sources=sources))
    finally:
        here.node.replies.clear()
    assert result.exit_code == 3
    assert harmless(result.stdout) and harmless(result.stderr)
    assert "quic_stats" in result.stderr


def test_a_hostile_custody_log_and_file_names_are_shown_without_their_escapes(
    sealed: Path,
) -> None:
    (sealed / "raw" / "\x1b[2Jevil").write_text("")
    result = tbforensics("verify", sealed)
    assert result.exit_code == 1 and harmless(result.output)


def test_on_a_terminal_replies_are_counted_on_one_line(here: World, tmp_path: Path) -> None:
    path = project(here, tmp_path, sources={"node": here.sources["node"]})
    master, slave = pty.openpty()
    run = subprocess.run(
        [sys.executable, "-c", MAIN, "collect", path],
        stderr=slave,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)
    shown = os.read(master, 65536).decode()
    os.close(master)
    assert run.returncode == 3
    assert "\r3 replies from 1 sources, 0 failed\r\n" in shown


# --- before the road -----------------------------------------------------------------------


def test_new_writes_a_file_that_run_accepts_and_a_new_project_gets_its_cases_beside_it(
    here: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = tbforensics(
        *("new", "quic_failure", "--id", "INC-9", "--title", "A title"),
        *("--start", "2026-11-20T10:00:00Z", "--end", "2026-11-20T10:10:00Z"),
    )
    path = tmp_path / "parameters" / "INC-9.yaml"
    assert result.exit_code == 0 and str(path) in result.output
    text = path.read_text().replace("http://127.0.0.1:3030", here.node.url)
    path.write_text(text.replace("http://127.0.0.1:9090", here.prometheus.url))
    assert tbforensics("collect", path).exit_code == 0
    assert (tmp_path / "incidents" / "INC-9" / "findings.json").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["incidents", "parameters"]


def test_kinds_and_sources_are_listed_with_what_they_are_for() -> None:
    listed = tbforensics("kinds").output
    for name in plugins.kind_names():
        question = re.escape(plugins.load_kind(name).question)
        assert re.search(rf"^{name} +{question}$", listed, re.MULTILINE), name
    listed = tbforensics("sources").output
    for name in plugins.source_names():
        assert re.search(rf"^{name} +\S", listed, re.MULTILINE), name
    assert "slice_hours" in listed and "passphrase_file" in listed


@pytest.mark.parametrize("what", ["parameters", "findings"])
def test_schemas_are_schemas(what: str) -> None:
    value = json.loads(tbforensics("schema", what).output)
    jsonschema.Draft202012Validator.check_schema(value)


def test_the_version_is_that_of_the_package() -> None:
    assert re.search(r"\d+\.\d+\.\d+", tbforensics("--version").output)
