"""One sober look for all charts: colours that the colour-blind can tell, on white and on black."""

from __future__ import annotations

from typing import Any

# Six hues of Okabe and Ito (the yellow is lost on white, the black on black), then the same six
# dashed, or paler where a dash cannot be drawn.
_HUES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]
_PALE_HUES = ["#7fb3d6", "#eeb089", "#85cdb8", "#e6bfd4", "#f3d08a", "#b2dcf4"]
OTHERS = "#8a8f98"
COLOURS = [*_HUES, *_HUES]
PALE = [*_HUES, *_PALE_HUES]
DASHES = [[1, 0]] * 6 + [[6, 3]] * 6

CLOCK = {  # no AM and PM, and the order of ISO 8601
    "year": "%Y", "quarter": "%Y-%m", "month": "%Y-%m", "week": "%m-%d", "date": "%m-%d",
    "day": "%m-%d", "hours": "%H:%M", "minutes": "%H:%M", "seconds": "%H:%M:%S",
    "milliseconds": "%S.%L",
}  # fmt: skip

_INK, _QUIET, _GRID = "#22262b", "#59616b", "#e3e6ea"
FONT = "Helvetica Neue, Arial, Liberation Sans, DejaVu Sans, sans-serif"

THEME: dict[str, Any] = {
    "background": "#ffffff",
    "autosize": {"type": "fit-x", "contains": "padding"},
    "font": FONT,
    "padding": 6,
    "view": {"stroke": None},
    "title": {
        "anchor": "start",
        "frame": "group",
        "fontSize": 14,
        "fontWeight": 600,
        "offset": 18,
        "color": _INK,
        "subtitleColor": _QUIET,
        "subtitleFontSize": 11.5,
        "subtitlePadding": 4,
    },
    "axis": {
        "labelColor": _QUIET,
        "titleColor": _QUIET,
        "domainColor": _QUIET,
        "tickColor": _QUIET,
        "gridColor": _GRID,
        "labelFontSize": 11.5,
        "titleFontSize": 11.5,
        "titleFontWeight": 400,
        "titlePadding": 8,
        "labelPadding": 5,
        "labelOverlap": "greedy",
    },
    "axisX": {"grid": False, "labelFlush": False, "labelSeparation": 12},
    "axisY": {"domain": False, "ticks": False},
    "legend": {
        "orient": "bottom",
        "direction": "horizontal",
        "columns": 3,
        "labelColor": _QUIET,
        "titleColor": _QUIET,
        "titleFontWeight": 400,
        "labelFontSize": 11.5,
        "titleFontSize": 11.5,
        "labelLimit": 220,
        "symbolStrokeWidth": 2.5,
    },
    "text": {"color": _QUIET, "fontSize": 11},
    "rule": {"color": _QUIET},
}
