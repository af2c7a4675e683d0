"""Words and numbers as a reader sees them. Text in, text out; nothing here is HTML yet."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from tbforensics.model import Json, Verdict, utc_text

# What a browser or a terminal would obey instead of showing: C0 and C1 controls, bidi controls,
# zero-width and other format characters, lone surrogates, private use, tags.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u06dd\u070f\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ud800-\uf8ff\ufe00-\ufe0f\ufeff\uffa0"
    "\ufff0-\ufffb\ufffe\uffff\U000e0000-\U000e0fff\U000f0000-\U0010ffff]"
)


VERDICTS = {
    Verdict.CONFIRMED: ("●", "Confirmed", "The evidence shows it."),
    Verdict.CLEARED: ("✓", "Cleared", "We saw all that we had to see, and it is not there."),
    Verdict.INCONCLUSIVE: (
        "?",
        "Inconclusive",
        "We did not see enough to say. Silence is not health.",
    ),
}


def visible(value: object, *, limit: int = 500, lines: bool = False) -> str:
    """Text in which nothing hides: controls and bidi marks as escapes, the rest cut at `limit`.

    lines: keep line breaks and tabs as they are.
    The result is text, not HTML: it still has to be escaped.
    """
    text = value if isinstance(value, str) else str(value)
    left = len(text) - limit
    if left > 0:
        text = text[:limit]
    text = show_hidden(text, lines=lines)
    return f"{text}… ({left:,} more characters)" if left > 0 else text


def show_hidden(text: str, *, lines: bool = False) -> str:
    """The same text with escapes in place of what a screen would obey or swallow."""
    if lines:
        text = text.replace("\r\n", "\n")
    return _UNSEEN.sub(lambda found: _escape(found.group(), lines), text)


def _escape(character: str, lines: bool) -> str:
    if lines and character in "\n\t":
        return character
    code = ord(character)
    if character in "\n\t\r":
        return {"\n": "\\n", "\t": "\\t", "\r": "\\r"}[character]
    return (
        f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"
    )


def number(value: float | int, unit: str = "", *, digits: int = 4) -> str:
    """A number to read: thousands apart, `digits` that count, its unit behind it.

    A share of something is read in percent; the record keeps what was computed.
    """
    if unit.startswith("share of ") and math.isfinite(value):
        return f"{100 * value:.1f} % {visible(unit.removeprefix('share '), limit=40)}"
    if isinstance(value, float) and not math.isfinite(value):
        text = "not a number" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    elif float(value).is_integer():
        text = f"{int(value):,}"
    else:
        text = f"{value:,.2f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return text if unit in ("", "1") else f"{text} {visible(unit, limit=40)}"


def duration(seconds: float) -> str:
    """Seconds as hours, minutes and seconds: `1 h 02 min`, `5 min 00 s`, `-12 s`."""
    if not math.isfinite(seconds):
        return "unknown"
    sign, whole = "-" if seconds < 0 else "", round(abs(seconds))
    if whole < 60:
        return f"{sign}{round(abs(seconds), 3):g} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{sign}{minutes} min {rest:02d} s"
    return f"{sign}{minutes // 60} h {minutes % 60:02d} min"


def slug(name: str) -> str:
    """A name as it can stand in an id: letters, digits, dot, dash, underscore."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:80] or "unnamed"


def percent(ratio: float) -> str:
    """Whole percent, but never 100 for a share that is not whole nor 0 for one that is not none."""
    if not math.isfinite(ratio):
        return "unknown"
    whole = round(100 * ratio)
    if whole in (0, 100) and ratio not in (0.0, 1.0):
        return f"{min(99.9, max(0.1, round(100 * ratio, 1))):g} %"
    return f"{whole} %"


@dataclass(frozen=True)
class Table:
    """Cells as text, ready to be escaped. `numeric` columns are set right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]

    @property
    def text(self) -> str:
        grid = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in grid) for i in range(len(self.columns))]
        lines = (
            "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(line, widths, self.numeric, strict=True)
            ).rstrip()
            for line in grid
        )
        return "\n".join(lines)


def table_of(rows: Iterable[Mapping[str, Json]], *, limit: int = 200) -> Table:
    """The table of rows that need not have the same keys; a missing value is an empty cell."""
    kept = [dict(row) for row in rows]
    keys = list(dict.fromkeys(key for row in kept for key in row))
    return Table(
        tuple(visible(key, limit=60) for key in keys),
        tuple(tuple(_cell(row.get(key), limit) for key in keys) for row in kept),
        tuple(bool(kept) and all(_is_number(row.get(key)) for row in kept) for key in keys),
    )


def _is_number(value: Json) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _cell(value: Json, limit: int) -> str:
    if value is None or value is pd.NaT or value is pd.NA:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return utc_text(value) if value.tzinfo else visible(value)
    if isinstance(value, float):
        return "" if math.isnan(value) else number(value)
    if isinstance(value, dict | list | tuple):
        return visible(json.dumps(value, ensure_ascii=False, default=str), limit=limit)
    return visible(value, limit=limit)


def text_of(value: object) -> str:
    """Multi-line text in a notebook is a string or a list of strings."""
    return "".join(map(str, value)) if isinstance(value, list) else str(value)
