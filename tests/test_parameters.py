from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from tbforensics.errors import ParametersError
from tbforensics.model import utc_text
from tbforensics.parameters import flat, incident_from, read_parameters, to_yaml

GOOD: dict[str, Any] = {
    "incident_id": "INC-1",
    "kind": "quic_failure",
    "start": "2026-03-10T10:00:00Z",
    "end": "2026-03-10T11:00:00Z",
    "sources": {"main": {"type": "prometheus", "url": "http://127.0.0.1:9090"}},
}


def problems(**changes: Any) -> str:
    with pytest.raises(ParametersError) as caught:
        incident_from({**GOOD, **changes})
    return str(caught.value)


def test_the_baseline_is_as_long_as_the_window_and_just_before_it() -> None:
    incident = incident_from(GOOD)
    assert utc_text(incident.baseline.start) == "2026-03-10T09:00:00Z"
    assert incident.baseline.end == incident.window.start


def test_empty_baselines_as_a_notebook_writes_them_mean_the_default() -> None:
    assert incident_from({**GOOD, "baseline_start": "", "baseline_end": ""}) == incident_from(GOOD)


def test_every_problem_is_named_at_once_with_its_place() -> None:
    text = problems(
        end="2026-03-10T11:00:00",
        sources={"main": {"type": "prometeus"}, "Bad Name": {"type": "jsonrpc"}},
        thresholds={"handshake_fail_permin": 3},
        surprise=1,
    )
    assert "end: 2026-03-10T11:00:00 has no time zone" in text
    assert "sources.main.type: unknown source type 'prometeus'; did you mean 'prometheus'?" in text
    assert "sources.Bad Name: a name is lower-case" in text
    assert "sources.Bad Name.url: required for the type jsonrpc" in text
    assert "did you mean 'handshake_fail_per_min'?" in text
    assert "surprise: unknown key" in text
    assert "nothing was fetched" in text


@pytest.mark.parametrize(
    "value",
    [20251120, 70.0, "7e0001", "00123", "nan", "true", "no", "../up", "a/b", "", "-x", ".."],
)
def test_an_id_that_papermill_or_a_file_system_would_misread_is_refused(value: object) -> None:
    assert "incident_id: " in problems(incident_id=value)


def test_an_id_that_papermill_turned_into_a_number_is_told_so() -> None:
    assert "arrived as a number: write it with a letter" in problems(incident_id=20251120)


@pytest.mark.parametrize("moment", ["2026-03-10 10:00", "yesterday", 45000, None])
def test_a_time_without_a_zone_or_a_date_is_refused(moment: object) -> None:
    assert "start: " in problems(start=moment)


def test_a_window_that_ends_before_it_starts_is_refused() -> None:
    assert "end: not after start" in problems(end="2026-03-10T09:00:00Z")


def test_a_baseline_inside_the_window_is_refused() -> None:
    text = problems(baseline_start="2026-03-10T10:10:00Z", baseline_end="2026-03-10T10:20:00Z")
    assert "the baseline overlaps the window" in text


def test_half_a_baseline_is_refused() -> None:
    assert "give both or neither" in problems(baseline_start="2026-03-10T08:00:00Z")


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    url = "http://admin:canary-secret@prometheus:9090"
    text = problems(sources={"main": {"type": "prometheus", "url": url}})
    assert "credentials" in text and "canary-secret" not in text


@pytest.mark.parametrize("url", ["ftp://host", "file:///etc/passwd", "prometheus:9090"])
def test_only_http_addresses_are_asked(url: str) -> None:
    text = problems(sources={"main": {"type": "prometheus", "url": url}})
    assert "no http or https address" in text


@pytest.mark.parametrize("value", [float("nan"), "many", None])
def test_a_threshold_is_a_finite_number(value: object) -> None:
    assert "thresholds.times_baseline" in problems(thresholds={"times_baseline": value})


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("1m30s", 90), ("1h", 3600), (15, 15)])
def test_a_step_is_a_duration_or_seconds(text: object, seconds: float) -> None:
    assert incident_from({**GOOD, "step": text}).step_s == seconds


def test_comments_order_and_notes_do_not_change_what_is_asked() -> None:
    again = incident_from({**dict(reversed(GOOD.items())), "notes": "later", "title": "A title"})
    assert again.digest == incident_from(GOOD).digest


def test_another_window_or_source_asks_something_else() -> None:
    other = {**GOOD, "end": "2026-03-10T11:00:01Z"}
    assert incident_from(other).digest != incident_from(GOOD).digest


def test_flat_parameters_read_back_as_the_same_incident() -> None:
    incident = incident_from({**GOOD, "thresholds": {"times_baseline": 4}, "notes": "x: [y]"})
    assert incident_from(flat(incident)) == incident


def test_the_yaml_of_an_incident_reads_back_as_the_same_incident(tmp_path: Path) -> None:
    incident = incident_from(
        {**GOOD, "title": "Ünïcode: # [hostile] {yaml}\n- 'x'", "notes": "</script>\u202e"}
    )
    path = tmp_path / "p.yaml"
    path.write_bytes(to_yaml(incident))
    assert read_parameters(path) == incident


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("incident_id: [", "is not YAML"),
        ("- just\n- a list", "holds no keys"),
        ("a: &a [1]\nb: *a", "aliases"),
        ("kind: x\nkind: y", "'kind' stands twice"),
        ("kind: !!python/object/apply:os.system ['true']", "is not YAML"),
        ("a: " + "[" * 2000, "is not YAML"),
    ],
)
def test_a_file_that_is_not_plain_yaml_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ParametersError, match=said.replace("(", r"\(")):
        read_parameters(path)


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(ParametersError, match="tbforensics new"):
        read_parameters(tmp_path / "none.yaml")


WORDS = st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(WORDS, VALUES, max_size=6))
def test_whatever_is_given_only_our_own_error_comes_out(given_parameters: dict[str, Any]) -> None:
    for base in ({}, GOOD):
        try:
            incident_from({**base, **given_parameters})
        except ParametersError as error:
            assert error.next_step


@pytest.mark.parametrize("path", sorted((ROOT / "parameters").glob("*.example.yaml")))
def test_the_example_parameters_can_be_used(path: Path) -> None:
    incident = read_parameters(path)
    assert incident.id.startswith("example-") and incident.sources
