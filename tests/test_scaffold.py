from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import EXAMPLE, ROOT

from tbforensics import plugins, scaffold
from tbforensics.errors import ParametersError
from tbforensics.parameters import flat, read_parameters

WEBHOOK: dict[str, Any] = {
    "version": "4",
    "status": "resolved",
    "commonLabels": {"alertname": "QuicHandshakeFailures"},
    "commonAnnotations": {"summary": "QUIC handshakes fail"},
    "alerts": [
        {
            "status": "resolved",
            "labels": {"alertname": "QuicHandshakeFailures", "instance": "node-a"},
            "startsAt": "2026-03-10T10:26:00.123456789Z",
            "endsAt": "2026-03-10T11:09:00Z",
            "generatorURL": "http://prometheus:9090/graph?g0.expr=x",
        },
        {
            "status": "resolved",
            "labels": {"alertname": "QuicHandshakeFailures", "instance": "node-b"},
            "startsAt": "2026-03-10T10:30:00Z",
            "endsAt": "2026-03-10T11:00:00Z",
        },
    ],
}
NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


def alert(tmp_path: Path, **changes: Any) -> scaffold.Alert:
    path = tmp_path / "alert.json"
    path.write_text(json.dumps({**WEBHOOK, **changes}))
    return scaffold.read_alert(path, NOW)


@pytest.mark.parametrize("kind", plugins.kind_names())
def test_a_scaffolded_file_can_be_used_as_it_is(tmp_path: Path, kind: str) -> None:
    text = scaffold.parameters_text(
        kind, "INC-1", "2026-03-10T10:00:00Z", "2026-03-10T11:00:00Z", "A title", scaffold.Alert()
    )
    path = tmp_path / "INC-1.yaml"
    scaffold.write(path, text)
    incident = read_parameters(path)
    assert (incident.id, incident.kind, incident.title) == ("INC-1", kind, "A title")
    assert {source.type for source in incident.sources}
    assert text.startswith(f"# yaml-language-server: $schema={scaffold.SCHEMA_NAME}")
    assert (tmp_path / scaffold.SCHEMA_NAME).exists()


def test_an_alert_gives_the_window_the_title_and_who_detected(tmp_path: Path) -> None:
    found = alert(tmp_path)
    text = scaffold.parameters_text("quic_failure", "INC-2", None, None, "", found)
    (tmp_path / "p.yaml").write_text(text)
    incident = read_parameters(tmp_path / "p.yaml")
    assert incident.title == "QUIC handshakes fail"
    assert incident.window.start == datetime(2026, 3, 10, 9, 56, tzinfo=UTC)
    assert incident.window.end == datetime(2026, 3, 10, 11, 24, tzinfo=UTC)
    (entry,) = incident.timeline
    assert (entry.event, entry.author) == ("detected", "alertmanager")
    assert "http://prometheus:9090" in [source.url for source in incident.sources]


def test_an_alert_that_still_fires_ends_now(tmp_path: Path) -> None:
    firing = {**WEBHOOK["alerts"][0], "status": "firing", "endsAt": "0001-01-01T00:00:00Z"}
    assert alert(tmp_path, alerts=[firing]).end == "2026-03-10T12:00:00Z"


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "3"},
        {"alerts": []},
        {"alerts": "x"},
        {"alerts": [{"status": "firing"}]},
        {"alerts": [{"status": "firing", "startsAt": "2026-11-20T10:00:00Z", "labels": "x"}]},
    ],
)
def test_what_is_no_webhook_body_is_refused_with_a_way_out(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    with pytest.raises(ParametersError) as caught:
        alert(tmp_path, **changes)
    assert "--start" in caught.value.next_step


def test_hostile_text_of_an_alert_stays_text(tmp_path: Path) -> None:
    hostile = "x'\nkind: drawdown\n- !!python/object/apply:os.system [true] # {"
    found = alert(tmp_path, commonAnnotations={"summary": hostile})
    text = scaffold.parameters_text("quic_failure", "INC-3", None, None, "", found)
    (tmp_path / "p.yaml").write_text(text)
    incident = read_parameters(tmp_path / "p.yaml")
    assert (incident.kind, incident.title) == ("quic_failure", hostile)


def test_missing_times_are_both_named() -> None:
    with pytest.raises(ParametersError) as caught:
        scaffold.parameters_text("quic_failure", "INC-4", None, None, "", scaffold.Alert())
    assert len(caught.value.problems) == 2


def test_an_existing_file_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("mine")
    with pytest.raises(ParametersError, match="there already"):
        scaffold.write(path, "theirs")
    assert path.read_text() == "mine"


@pytest.mark.parametrize("path", sorted((ROOT / "parameters").glob("*.example.yaml")))
def test_the_examples_follow_the_schema_that_editors_read(path: Path) -> None:
    jsonschema.validate(yaml.load(path.read_text(), yaml.BaseLoader) and _loaded(path), _schema())


def _loaded(path: Path) -> Any:
    return json.loads(json.dumps(flat(read_parameters(path))))


def _schema() -> Any:
    return json.loads(json.dumps(scaffold.json_schema()))


def test_the_schema_refuses_an_unknown_key_and_an_unknown_kind() -> None:
    value = _loaded(ROOT / "parameters" / "quic_failure.example.yaml")
    for change in ({"surprise": 1}, {"kind": "nothing"}, {"thresholds": {"surprise": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**value, **change}, _schema())


def test_the_schema_beside_the_examples_is_the_one_that_we_give_out() -> None:
    kept = json.loads((ROOT / "parameters" / scaffold.SCHEMA_NAME).read_text())
    assert kept == _schema(), "renew it: tbforensics schema > parameters/parameters.schema.json"


@pytest.mark.parametrize("path", sorted((ROOT / "incidents").glob("example-*/findings.json")))
def test_findings_follow_their_published_schema(path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text()), scaffold.findings_schema())


def test_the_findings_schema_refuses_a_claim_without_evidence() -> None:
    value = json.loads((EXAMPLE / "findings.json").read_text())
    value["findings"][0]["cites"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(value, scaffold.findings_schema())
