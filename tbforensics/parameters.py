"""YAML or a notebook's parameters -> Incident, with every problem named at once.

The keys are flat, because they are those of the notebooks' `parameters` cell: a file that
`tbforensics run` takes is one that `papermill -f` takes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import pydantic.dataclasses
import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from tbforensics import plainyaml, plugins
from tbforensics.errors import ParametersError
from tbforensics.manifest import canonical
from tbforensics.model import Incident, Json, SourceConfig, TimelineEntry, Window, utc_text

_LONGEST_FILE_BYTES = 1 << 20
_DURATION_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NOT_TEXT = {"nan", "inf", "infinity", "true", "false", "none", "null", "yes", "no", "on", "off"}


# --- the words of a parameters file --------------------------------------------------------


def _id(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError(
            f"{value!r} arrived as a number: write it with a letter and in quotes, like INC-{value}"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", value):
        raise ValueError("use 1 to 100 letters, digits, dots, dashes or underscores")
    number = value.lower() in _NOT_TEXT
    try:
        float(value)
        number = True
    except ValueError:
        pass
    if number or not re.search(r"[A-Za-z]", value):
        raise ValueError(f"papermill would read {value!r} as a number: write it like INC-{value}")
    return value


def _moment(value: object) -> object:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError(
                f"{value!r} is no RFC 3339 time; write it like 2026-03-10T10:00:00Z"
            ) from None
    if not isinstance(value, datetime):
        raise ValueError(f"{value!r} is no time; write it in quotes, like '2026-03-10T10:00:00Z'")
    if value.tzinfo is None:
        raise ValueError(f"{value.isoformat()} has no time zone; add Z for UTC, or an offset")
    return value.astimezone(UTC)


def _optional_moment(value: object) -> object:
    return None if value in ("", None) else _moment(value)


def _seconds(value: object) -> object:
    if isinstance(value, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", value)
        if not parts or "".join(n + unit for n, unit in parts) != value.strip():
            raise ValueError(f"{value!r} is no duration; write it like 30s, 1m or 1h30m")
        value = sum(float(number) * _DURATION_S[unit] for number, unit in parts)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a duration is text like 30s, or seconds")
    if not 1 <= value <= 86400:
        raise ValueError("a step is between 1s and 1d")
    return float(value)


def _url(value: str) -> str:
    if not value:
        return value
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{value[:80]!r} is no http or https address")
    if "@" in parts.netloc:
        # The value is not quoted: it holds a password.
        raise ValueError("holds credentials; put them in a file and name it under http_config")
    return value.rstrip("/")


_STEP_SCHEMA = {"type": ["string", "number"], "description": "like 30s or 1m, or seconds"}
Moment = Annotated[datetime, BeforeValidator(_moment)]
OptionalMoment = Annotated[datetime | None, BeforeValidator(_optional_moment)]


class _Words(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class TimelineWords(_Words):
    """One thing that a person noted."""

    time: Moment
    event: Literal["detected", "acknowledged", "mitigated", "resolved", "note"]
    author: str = ""
    text: str = ""


class SourceWords(BaseModel):
    """Whom to ask. Further keys are options of the type; see `tbforensics sources`."""

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)
    type: str
    url: Annotated[str, AfterValidator(_url)] = ""
    http_config: str = Field(
        "", description="file in promtool's --http.config.file format; credentials live only there"
    )


class Words(_Words):
    """An incident for tbforensics: what happened, when, and whom to ask."""

    incident_id: Annotated[str, BeforeValidator(_id)]
    kind: str = Field(description="family of the incident; see `tbforensics kinds`")
    title: str = ""
    start: Moment = Field(description="first moment of the window, RFC 3339 with a zone")
    end: Moment = Field(description="first moment after the window")
    baseline_start: OptionalMoment = Field(
        None, description="a calm window to compare with; default: as long, just before `start`"
    )
    baseline_end: OptionalMoment = None
    step: Annotated[float, BeforeValidator(_seconds), WithJsonSchema(_STEP_SCHEMA)] = 30.0
    sources: dict[str, SourceWords] = {}
    thresholds: dict[str, Any] = {}
    timeline: list[TimelineWords] = []
    notes: str = ""


PARAMETER_NAMES = tuple(Words.model_fields)


# --- reading -------------------------------------------------------------------------------


def read_parameters(path: Path | str) -> Incident:
    """The incident that a parameters file describes.

    Errors: ParametersError naming every problem and where it stands; nothing was fetched.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LONGEST_FILE_BYTES:
            raise ParametersError(f"{path.name} is too long", next_step="it should be a page or so")
        value = plainyaml.read(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ParametersError(
            f"{path} cannot be read: {error.strerror}",
            next_step="write one with: tbforensics new KIND --id ID --start TIME --end TIME",
        ) from None
    except (plainyaml.NotPlain, UnicodeDecodeError) as error:
        raise ParametersError(
            f"{path.name} is not YAML that can be used: {error}", next_step="correct it there"
        ) from None
    if not isinstance(value, dict):
        raise ParametersError(
            f"{path.name} holds no keys", next_step="see parameters/*.example.yaml"
        )
    return incident_from(value, where=path.name)


def incident_from(parameters: Mapping[str, Any], where: str = "the parameters") -> Incident:
    """The incident that flat parameters describe. Errors: as `read_parameters`."""
    problems: list[str] = []
    words: Words | None = None
    try:
        words = Words.model_validate(dict(parameters))
    except ValidationError as error:
        problems += _problems(error, list(PARAMETER_NAMES))
    sources = _sources(parameters.get("sources"), problems)
    thresholds = _thresholds(parameters.get("kind"), parameters.get("thresholds"), problems)
    window = baseline = None
    if words:
        window, baseline = _windows(words, problems)
    if problems or not (words and window and baseline):
        raise ParametersError(
            f"{where} cannot be used:",
            problems=problems,
            next_step="correct these and run again; nothing was fetched",
        )
    timeline = tuple(
        TimelineEntry(entry.time, entry.event, entry.author, entry.text)
        for entry in sorted(words.timeline, key=lambda entry: entry.time)
    )
    asked = {
        "incident_id": words.incident_id,
        "kind": words.kind,
        "window": window.to_json(),
        "baseline": baseline.to_json(),
        "sources": [dataclasses.asdict(source) for source in sources],
    }
    return Incident(
        id=words.incident_id,
        kind=words.kind,
        title=words.title or words.incident_id,
        window=window,
        baseline=baseline,
        step_s=words.step,
        sources=sources,
        thresholds=thresholds,
        timeline=timeline,
        notes=words.notes,
        digest=hashlib.sha256(canonical(asked)).hexdigest(),
    )


def _problems(error: ValidationError, known: list[str]) -> list[str]:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            name = str(problem["loc"][-1])
            message = f"unknown key{plugins.did_you_mean(name, known)}"
        elif problem["type"].startswith("missing"):
            message = "required, and missing"
        lines.append(f"{path}: {message}")
    return lines


def _sources(given: object, problems: list[str]) -> tuple[SourceConfig, ...]:
    if not isinstance(given, Mapping):
        return ()
    configs = []
    for name, entry in sorted(given.items(), key=lambda item: str(item[0])):
        where = f"sources.{name}"
        if not re.fullmatch(r"[a-z][a-z0-9_-]{0,39}", str(name)):
            problems.append(f"{where}: a name is lower-case letters, digits, - or _")
        if not isinstance(entry, Mapping) or not isinstance(entry.get("type"), str):
            continue  # said by the model already
        try:
            source = plugins.load_source(entry["type"])
        except ParametersError as error:
            problems.append(f"{where}.type: {error.what} ({error.next_step})")
            continue
        rest = {k: v for k, v in entry.items() if k not in SourceWords.model_fields}
        options = _checked(source.options, rest, where, problems)
        # An empty list asks for nothing: a case from before there was such an option stays itself.
        options = {name: value for name, value in options.items() if value != ()}
        url = str(entry.get("url") or "").rstrip("/")
        if source.needs_url and not url:
            problems.append(f"{where}.url: required for the type {entry['type']}")
        configs.append(
            SourceConfig(
                str(name), entry["type"], url or None, entry.get("http_config") or None, options
            )
        )
    return tuple(configs)


def _thresholds(kind: object, given: object, problems: list[str]) -> dict[str, Json]:
    if not isinstance(kind, str):
        return {}
    try:
        known = plugins.load_kind(kind).thresholds
    except ParametersError as error:
        problems.append(f"kind: {error.what} ({error.next_step})")
        return {}
    return _checked(known, given if isinstance(given, Mapping) else {}, "thresholds", problems)


def _checked(
    shape: type, given: Mapping[str, Any], where: str, problems: list[str]
) -> dict[str, Json]:
    """What a frozen dataclass says may be given, with its defaults filled in."""
    config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)
    strict = pydantic.dataclasses.dataclass(shape, config=config, frozen=True)
    try:
        return dataclasses.asdict(TypeAdapter(strict).validate_python(dict(given)))
    except ValidationError as error:
        known = [field.name for field in dataclasses.fields(shape)]
        problems += [f"{where}.{line}" for line in _problems(error, known)]
    except ParametersError as error:  # what the shape itself will not have
        problems += [f"{where}: {line}" for line in error.problems or (error.what,)]
    return {}


def _windows(words: Words, problems: list[str]) -> tuple[Window | None, Window | None]:
    if words.end <= words.start:
        problems.append("end: not after start")
        return None, None
    window = Window(words.start, words.end)
    if words.end - words.start > timedelta(days=92):
        problems.append("end: the window is longer than 92 days")
    if (words.baseline_start is None) != (words.baseline_end is None):
        problems.append("baseline_start, baseline_end: give both or neither")
        return window, None
    if words.baseline_start is None or words.baseline_end is None:
        return window, Window(window.start - (window.end - window.start), window.start)
    if words.baseline_end <= words.baseline_start:
        problems.append("baseline_end: not after baseline_start")
        return window, None
    baseline = Window(words.baseline_start, words.baseline_end)
    if baseline.overlap_s(window):
        problems.append("baseline_end: the baseline overlaps the window, so it is not calm")
    return window, baseline


# --- writing -------------------------------------------------------------------------------


def flat(incident: Incident) -> dict[str, Json]:
    """The parameters of an incident with every default filled in; `incident_from` reads them."""
    return {
        "incident_id": incident.id,
        "kind": incident.kind,
        "title": incident.title,
        "start": utc_text(incident.window.start),
        "end": utc_text(incident.window.end),
        "baseline_start": utc_text(incident.baseline.start),
        "baseline_end": utc_text(incident.baseline.end),
        "step": f"{incident.step_s:g}s",
        "sources": {
            source.name: {
                "type": source.type,
                **({"url": source.url} if source.url else {}),
                **({"http_config": source.http_config} if source.http_config else {}),
                **source.options,
            }
            for source in incident.sources
        },
        "thresholds": dict(incident.thresholds),
        "timeline": [
            {**dataclasses.asdict(entry), "time": utc_text(entry.time)}
            for entry in incident.timeline
        ],
        "notes": incident.notes,
    }


def to_yaml(incident: Incident) -> bytes:
    """One spelling of the parameters, whatever their comments and order were."""
    text = yaml.safe_dump(flat(incident), sort_keys=False, allow_unicode=True, width=100)
    return text.encode("utf-8")
