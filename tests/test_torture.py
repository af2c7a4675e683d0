"""A quick part of `make torture`: each row is what a fault or an attack must come to."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

sys.path.append(str(ROOT))

from tbforensics import manifest, plugins
from tbforensics.case import case_of
from tbforensics.credentials import read_credentials
from tbforensics.errors import ParametersError
from tbforensics.kinds import quic_failure
from tbforensics.model import Capture, Window
from tbforensics.parameters import read_parameters
from tbforensics.reading.promrows import MOST_LABEL_NAMES
from torture import __main__ as torture
from torture import attacks, fuzz
from torture.bench import Bench
from torture.table import NOT, OK, Counts, NotTried, Row, lines, tried

ROWS = [row for rows in torture.TABLES.values() for row in rows()]
QUICK = [row for row in ROWS if row.quick]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with Bench() as made:
        yield made


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.name)
def test_a_row_gets_what_it_expects(row: Row, bench: Bench) -> None:
    outcome = tried(row, bench)
    assert outcome.state == OK, lines(outcome)
    assert not outcome.counts.lost


@pytest.mark.parametrize("name", ["promjson", "remoteread", "loglines", "custody"])
def test_a_parser_survives_bytes_that_nobody_thought_of(name: str) -> None:
    result = fuzz.run(name, 150, 1)
    assert result.executions >= 40 and not result.failures


def test_a_peer_that_is_named_like_a_time_is_still_a_peer() -> None:
    times = pd.date_range("2026-11-20T10:00Z", periods=2, freq="30s")
    names = ["2026-11-20T10:00:30Z", "2026-11-20T10:00:00Z"]
    columns = pd.MultiIndex.from_arrays([names], names=["peer"])
    counted = pd.DataFrame([[1.0, 3.0], [2.0, 4.0]], times, columns)
    by_peer = quic_failure._by_peer(counted, "peer")
    assert by_peer[names].to_numpy().tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_label_names_without_end_are_set_aside_and_counted() -> None:
    """5,000 series with a name each would make a table of 25 million cells."""
    body = attacks.LABELS["5,000 series, each with a label name of its own"].encode()
    moment = datetime(2026, 11, 20, 10, tzinfo=UTC)
    window = Window(moment, moment + timedelta(hours=1))
    asked = Capture("p", "q", "samples", {}, moment, window, 200, "0" * 64, len(body))
    tables = dict(plugins.load_source("prometheus").parse(asked, io.BytesIO(body)))
    assert tables["series"].num_rows == MOST_LABEL_NAMES - 1  # `__name__` is one
    (aside,) = tables["quarantine"].to_pylist()
    assert aside["reason"] == "4001 series have more than 1000 label names"


def test_what_a_death_after_the_seal_leaves_is_mended_by_the_next_run(sealed: Path) -> None:
    """It died before the act about the findings was noted, or before it had tidied up."""
    log = sealed / "custody.jsonl"
    first = log.read_bytes().splitlines(keepends=True)[0]
    log.write_bytes(first)
    for made in ("report.html", "report.ipynb"):
        (sealed / made).unlink(missing_ok=True)
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = [sealed / name for name in (".lock", "captures.jsonl", f".findings.json.{dead.pid}")]
    for path in left:
        path.write_text("{}")
    opened = case_of(read_parameters(sealed / "parameters.yaml"), sealed.parent.parent)
    opened.evidence.close()
    assert [check for check in manifest.checks(sealed) if not check.holds] == []
    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize("text", ["? [a, b]\n: c\n", "? {a: b}\n: c\n"])
def test_a_key_that_is_no_word_is_refused_in_words(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ParametersError, match="a key is a list or a map"):
        read_parameters(tmp_path / "p.yaml")


@pytest.mark.parametrize("name", sorted(attacks.BAD_CONFIGS))
def test_an_http_config_that_is_wrong_is_refused_without_quoting_it(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "h.yaml").write_text(attacks.BAD_CONFIGS[name].replace("CANARY", "canary-7f3a"))
    try:
        read_credentials("s", tmp_path / "h.yaml", {})
    except ParametersError as refused:
        assert "canary-7f3a" not in str(refused) and refused.next_step
    else:
        assert name == "a token address that is none"  # told when the token is asked for


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in ROWS]
    assert sorted(set(names)) == sorted(names)
    assert all(row.expected and row.how for row in ROWS)


def test_a_row_that_gets_something_else_is_not_ok(bench: Bench) -> None:
    def wrong(_: Bench, counts: Counts) -> str:
        raise AssertionError("got this")

    def broken(_: Bench, counts: Counts) -> str:
        raise KeyError("a bug of the row's own")

    def missing(_: Bench, counts: Counts) -> str:
        raise NotTried("no such tool here")

    outcomes = [tried(Row("n", "h", "e", act), bench) for act in (wrong, broken, missing)]
    assert [outcome.state for outcome in outcomes] == [NOT, NOT, "n/a"]
    assert "got this" in lines(outcomes[0]) and "a bug of the row's own" in outcomes[1].got
