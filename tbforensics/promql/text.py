"""PromQL as text, and its times: exact milliseconds, where the API speaks of seconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from tbforensics.model import Window

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_STRING = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'|`[^`]*`'
_MATCHER = rf"\s*[a-zA-Z_]\w*\s*(?:=~|!~|!=|=)\s*(?:{_STRING})\s*"
_MATCHERS = re.compile(rf"{_MATCHER}(?:,{_MATCHER})*,?\s*")
_TOKEN = re.compile(
    rf"""(?P<other>{_STRING}|\#[^\n]*|\[[^\]]*\]
        |(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)[a-z0-9]*
        |\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)
        |\b(?:and|or|unless|bool|offset|atan2|group_left|group_right|inf|nan)\b(?!\s*\{{)
        |[a-zA-Z_:][\w:]*(?=\s*\(|\s+(?:by|without)\b))
      |(?P<name>[a-zA-Z_:][\w:]*)?\s*\{{(?P<inside>(?:{_STRING}|[^"'`}}])*+)\}}
      |(?P<bare>[a-zA-Z_:][\w:]*)""",
    re.VERBOSE | re.IGNORECASE,
)
LONGEST_TEXT = 10_000  # the time to cut a text at its braces grows with the square of its length
_UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1, "d": 86_400_000, "w": 604_800_000}


def is_matchers(text: str) -> bool:
    """Whether a text is a list of label matchers, such as `job="x",instance=~"a.*"`."""
    return len(text) <= LONGEST_TEXT and bool(_MATCHERS.fullmatch(text))


def with_matchers(text: str, matchers: str) -> str:
    """An expression with label matchers put into every one of its selectors.

    Errors: ValueError for one that is longer than any that people write.
    """
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"an expression of more than {LONGEST_TEXT} characters")

    def restricted(token: re.Match[str]) -> str:
        if token["other"]:
            return token[0]
        if token["bare"]:
            return f"{token['bare']}{{{matchers}}}"
        inside = token["inside"].strip().removesuffix(",").rstrip()
        return f"{token['name'] or ''}{{{inside}{',' if inside else ''}{matchers}}}"

    return _TOKEN.sub(restricted, text)


def next_edge(at_ms: int, end_ms: int, length_ms: int) -> int:
    """Where the slice that starts at `at_ms` ends: on the absolute grid, or at the end."""
    edge_ms = min((at_ms // length_ms + 1) * length_ms, end_ms)
    assert at_ms < edge_ms <= end_ms  # so slices leave no gap, and none is seen twice
    return edge_ms


def floor_ms(moment: datetime) -> int:
    """Whole milliseconds since the epoch, in integers all the way."""
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def ceil_ms(moment: datetime) -> int:
    return -((_EPOCH - moment) // timedelta(milliseconds=1))


def moment_of(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def window_of(start_ms: int, end_ms: int) -> Window:
    return Window(moment_of(start_ms), moment_of(end_ms))


def seconds_text(ms: int) -> str:
    """Decimal seconds, exactly."""
    whole, rest = divmod(ms, 1000)
    return f"{whole}.{rest:03d}".rstrip("0") if rest else str(whole)


def duration_text(ms: int) -> str:
    unit = next(unit for unit, length_ms in _UNITS_MS.items() if ms % length_ms == 0)
    return f"{ms // _UNITS_MS[unit]}{unit}"


def duration_s(text: str) -> float | None:
    """Seconds of `5m` or `1h30m`; None for what is no duration."""
    parts = re.findall(r"(\d+)(ms|[smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        return None
    return sum(int(number) * _UNITS_MS[unit] for number, unit in parts) / 1000
