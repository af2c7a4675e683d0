"""What helps to write a parameters file: a commented template, an alert as a start, schemas."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from pydantic import TypeAdapter

from tbforensics import parameters, plugins
from tbforensics.errors import ParametersError
from tbforensics.manifest import write_atomically
from tbforensics.model import Json, utc_text, utc_time

SCHEMA_NAME = "parameters.schema.json"
_BEFORE_ALERT = timedelta(minutes=30)  # an alert tells late: it waits for its `for`
_AFTER_ALERT = timedelta(minutes=15)


@dataclass(frozen=True)
class Alert:
    """What a parameters file can take from an alert."""

    title: str = ""
    start: str = ""
    end: str = ""
    detected: str = ""
    prometheus_url: str = ""
    note: str = ""


def read_alert(path: Path, now: datetime | None = None) -> Alert:
    """An Alertmanager webhook body, version 4.

    Errors: ParametersError when it is something else.
    Source: Prometheus documentation, "Alerting: configuration", `<webhook_config>`.
    """
    now = now or datetime.now(UTC)
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if str(body["version"]) != "4":
            raise ParametersError(
                f"{path.name} is a webhook body of version {body['version']}, not 4",
                next_step="give --start and --end instead",
            )
        starts = [utc_time(alert["startsAt"]) for alert in body["alerts"]]
        ends = [utc_time(a["endsAt"]) for a in body["alerts"] if a["status"] == "resolved"]
        still_firing = any(alert["status"] == "firing" for alert in body["alerts"])
        annotations, labels = body.get("commonAnnotations", {}), body.get("commonLabels", {})
        title = annotations.get("summary") or labels.get("alertname") or ""
        url = urlsplit(body["alerts"][0].get("generatorURL", ""))
        first = min(starts)
        labelled = [alert.get("labels", {}) for alert in body["alerts"]]
        names = sorted({str(labels.get("alertname", "?")) for labels in labelled})
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ParametersError(
            f"{path.name} is no Alertmanager webhook body: {type(error).__name__}: {error}",
            next_step="save the POST body of a webhook receiver, or give --start and --end",
        ) from None
    end = now if still_firing or not ends else min(now, max(ends) + _AFTER_ALERT)
    return Alert(
        title=str(title),
        start=utc_text(first.replace(microsecond=0) - _BEFORE_ALERT),
        end=utc_text(end.replace(microsecond=0)),
        detected=utc_text(first.replace(microsecond=0)),
        prometheus_url=f"{url.scheme}://{url.netloc.rpartition('@')[2]}" if url.netloc else "",
        note=f"{len(starts)} alerts: {', '.join(names)}",
    )


def parameters_text(
    kind: str, incident_id: str, start: str | None, end: str | None, title: str, alert: Alert
) -> str:
    """A parameters file with every key, its meaning and the kind's thresholds.

    Errors: ParametersError for an unknown kind, a bad id, or times that are missing or wrong.
    """
    loaded = plugins.load_kind(kind)
    given = {
        "incident_id": incident_id,
        "kind": kind,
        "title": title or alert.title,
        "start": start or alert.start,
        "end": end or alert.end,
    }
    missing = [f"--{name} is missing" for name in ("start", "end") if not given[name]]
    if missing:
        raise ParametersError(
            "the window is not known:", problems=missing, next_step="give them, or --from-alert"
        )
    parameters.incident_from(given, where="these")  # says every problem at once
    types = sorted({query.source for query in loaded.queries})
    sources = "\n".join(_source_text(name, alert) for name in types)
    thresholds = "".join(
        f"  # {field.name}: {field.default}\n" for field in dataclasses.fields(loaded.thresholds)
    )
    timeline = "timeline: []\n"
    if alert.detected:
        entry = {"time": alert.detected, "event": "detected", "author": "alertmanager"}
        timeline = _yaml({"timeline": [{**entry, "text": alert.note}]})
    return (
        f"# yaml-language-server: $schema={SCHEMA_NAME}\n"
        f"# {loaded.title}: {loaded.question}\n"
        f"{_yaml(given)}"
        "# A calm window to compare with. Default: as long, just before `start`.\n"
        "# baseline_start: '...'\n"
        "# baseline_end: '...'\n"
        "step: 30s\n"
        "# Whom to ask. No secrets here: name a file in promtool's --http.config.file format.\n"
        f"sources:\n{sources}"
        "# Uncomment to change; these are the defaults.\n"
        f"thresholds: {{}}\n{thresholds}"
        "# What people did: detected, acknowledged, mitigated, resolved, note.\n"
        f"{timeline}"
        "notes: ''\n"
    )


# Where each type of source usually is, seen from its own machine.
_EXAMPLES = {
    "prometheus": {"url": "http://127.0.0.1:9090"},
    "jsonrpc": {"url": "http://127.0.0.1:3030"},
    "logs": {"url": "http://127.0.0.1:3030"},
    "explorer": {"url": "http://127.0.0.1:3001"},
    "aggregator": {"url": "http://127.0.0.1:9000"},
    "governance": {"path": "governance/history"},
    "journals": {"path": "var/log/njord"},
}


def _source_text(name: str, alert: Alert) -> str:
    where = dict(_EXAMPLES.get(name, {"path": "evidence"}))
    if name == "prometheus" and alert.prometheus_url:
        where = {"url": alert.prometheus_url}
    secrets = "    # http_config: secrets.yaml\n" if "url" in where else ""
    return _yaml({name: {"type": name, **where}}, indent=2) + secrets


def _yaml(value: Mapping[str, Any], indent: int = 0) -> str:
    text = yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True, width=1000)
    return "".join(" " * indent + line + "\n" for line in text.splitlines())


def write(path: Path, text: str) -> None:
    """The file, with the schema beside it for editors. An existing file stays as it is."""
    if path.exists():
        raise ParametersError(f"{path} is there already", next_step="edit it, or use another --id")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode("utf-8"))
    schema = path.with_name(SCHEMA_NAME)
    if not schema.exists():
        write_atomically(schema, (json.dumps(json_schema(), indent=2) + "\n").encode("utf-8"))


def json_schema() -> dict[str, Json]:
    """JSON Schema of a parameters file, with the thresholds of each kind and each source type."""
    schema = parameters.Words.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["properties"]["kind"]["enum"] = plugins.kind_names()
    schema["$defs"]["SourceWords"]["properties"]["type"]["enum"] = plugins.source_names()
    schema["allOf"] = [
        {
            "if": {"properties": {"kind": {"const": name}}},
            "then": {"properties": {"thresholds": _shape_of(plugins.load_kind(name).thresholds)}},
        }
        for name in plugins.kind_names()
    ]
    schema["$defs"]["SourceWords"]["allOf"] = [
        {
            "if": {"properties": {"type": {"const": name}}},
            "then": {"properties": _shape_of(plugins.load_source(name).options)["properties"]},
        }
        for name in plugins.source_names()
    ]
    return schema


def _shape_of(shape: type) -> dict[str, Json]:
    schema = TypeAdapter(shape).json_schema()
    schema.setdefault("properties", {})
    return {**schema, "additionalProperties": False}


def findings_schema() -> dict[str, Json]:
    """JSON Schema of `findings.json`, for readers without Jupyter."""
    text, number = {"type": "string"}, {"type": "number"}
    moment = {"type": "string", "format": "date-time"}
    maybe_number, maybe_moment = {"type": ["number", "null"]}, {"type": ["string", "null"]}
    sha256 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}

    def record(**properties: Json) -> dict[str, Json]:
        return {"type": "object", "properties": properties, "required": sorted(properties)}

    def many(items: Json) -> dict[str, Json]:
        return {"type": "array", "items": items}

    window = record(start=moment, end=moment)
    finding = record(
        id=text,
        claim=text,
        value=maybe_number,
        unit=text,
        threshold=maybe_number,
        interval={"type": ["array", "null"], "items": maybe_number},
        window=window,
        spell={"type": ["object", "null"], "additionalProperties": maybe_moment},
        decides={"type": "boolean"},
        caution=text,
        cites={**many(text), "minItems": 1},
        rows=many({"type": "object"}),
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "findings.json of tbforensics",
        **record(
            format={"const": 1},
            incident=text,
            kind=text,
            window=window,
            baseline=window,
            step_s=number,
            thresholds={"type": "object"},
            manifest_sha256=sha256,
            verdict={"enum": ["confirmed", "cleared", "inconclusive"]},
            reasons=many(text),
            findings=many(finding),
            coverage=many(
                record(
                    query=text,
                    source=text,
                    ratio=number,
                    state=text,
                    required={"type": "boolean"},
                    detail=text,
                )
            ),
            doubts=many(
                record(
                    what=text,
                    detail=text,
                    window={"anyOf": [window, {"type": "null"}]},
                    limits={"enum": ["", "cleared", "confirmed"]},
                    cites=many(text),
                )
            ),
            timeline=many(
                record(time=moment, origin=text, text=text, source=text, uncertainty_s=number)
            ),
            timing=many({"type": "object"}),
            unknowns=many(text),
            evidence={
                "type": "object",
                "additionalProperties": record(
                    source=text, text=text, unit=text, captures=many(sha256)
                ),
            },
        ),
    }
