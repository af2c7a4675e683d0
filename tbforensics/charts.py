"""Frames in, Altair charts out. The only drawing, and the only room that loads altair.

Every chart: time in UTC, its unit on the axis, tooltips, an alt text, and the same JSON each time
the same frame is drawn. Labels come from evidence, so they are cut and made visible first.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from tbforensics.model import Moment, Window, utc_text
from tbforensics.report_page import rows as shaping
from tbforensics.report_page.chart_json import CHART_MIME, POINTER, mimebundle
from tbforensics.report_page.quick import without_slow_grammar
from tbforensics.report_page.text import visible
from tbforensics.report_page.theme import CLOCK, COLOURS, DASHES, OTHERS, PALE, THEME

with without_slow_grammar():
    import altair as alt

WIDTH = 720
TIME = "time (UTC)"
STAMP = "%Y-%m-%d %H:%M:%S UTC"
Mark = tuple[datetime, str] | Moment


def enable() -> None:
    """Charts in this process show as our own mime type, a PNG and their alt text."""
    alt.theme.register("tbforensics", enable=True)(_theme)
    alt.data_transformers.enable("default", max_rows=None)
    alt.renderers.register("tbforensics", mimebundle)
    alt.renderers.enable("tbforensics")


def interactive() -> None:
    """Live charts in JupyterLab, with no network. For analysts; a report needs `enable`.

    Errors: ImportError when anywidget is not installed, which altair's own widget needs.
    """
    if importlib.util.find_spec("anywidget") is None:
        raise ImportError("live charts in JupyterLab need anywidget: pip install anywidget")
    enable()
    alt.renderers.enable("jupyter", offline=True)


def _theme() -> Any:
    return {"config": THEME}


# --- the charts --------------------------------------------------------------------------


def line(
    frame: pd.DataFrame | pd.Series,
    *,
    unit: str,
    title: str,
    window: Window | None = None,
    baseline: Window | None = None,
    marks: Sequence[Mark] = (),
    zero: bool = True,
    height: int = 240,
) -> alt.LayerChart:
    """One line per column; a gap stays a gap.

    Shape: UTC index, one column per series (strings, or a MultiIndex of labels).
    marks: moments to rule off, such as onset and recovery. zero: the axis begins at 0.
    """
    page = _Page(title, unit, window, baseline, tuple(marks), height)
    rows, names, notes = shaping.long_rows(frame, aligned=False)
    if rows.empty:
        return _nothing(page)
    legend = _legend(names, frame, "stroke")
    colour = _colour(names, legend, COLOURS)
    drawn = _samples(rows, unit, zero).mark_line(strokeWidth=1.6, strokeJoin="round")
    layers = [drawn.encode(color=colour, strokeDash=_dash(names, legend))]
    alone = shaping.isolated(rows)
    if len(alone):
        points = _samples(alone, unit, zero).mark_point(filled=True, size=16)
        layers.append(points.encode(color=colour))
    near = shaping.pointed(rows, aligned=False)
    layers.append(_dots(_samples(near, unit, zero), unit).encode(color=colour))
    return _finish(layers, page, shaping.sentence("Line chart", rows, names, unit), notes, rows)


def stacked(
    frame: pd.DataFrame,
    *,
    unit: str,
    title: str,
    window: Window | None = None,
    baseline: Window | None = None,
    marks: Sequence[Mark] = (),
    height: int = 240,
) -> alt.LayerChart:
    """Who made the total: the columns of `line`, one upon the other, the largest at the bottom."""
    page = _Page(title, unit, window, baseline, tuple(marks), height)
    rows, names, notes = shaping.long_rows(frame, aligned=True)
    if rows.empty:
        return _nothing(page)
    rows["rank"] = rows["series"].map({name: rank for rank, name in enumerate(names)})

    def encoded(rows: pd.DataFrame) -> alt.Chart:
        return _samples(rows, unit, True).encode(
            y=_value(unit, True).stack("zero"),
            order="rank:Q",
            color=_colour(names, _legend(names, frame, "square"), PALE),
        )

    near = _dots(encoded(shaping.pointed(rows, aligned=True)), unit)
    text = shaping.sentence("Stacked areas", rows, names, unit)
    return _finish([encoded(rows).mark_area(line=False), near], page, text, notes, rows)


def bars(
    table: pd.DataFrame, value: str, label: str, *, unit: str, title: str, limit: int = 12
) -> alt.LayerChart:
    """One bar per row, the longest first; what is beyond `limit` is summed in one.

    Shape: a column of numbers `value` and a column of names `label`.
    """
    rows = shaping.ranked_bars(table, value, label, limit)
    page = _Page(title, unit, height=22 * len(rows))
    if rows.empty:
        return _nothing(page)
    names = list(rows["series"])
    shown = alt.Color("series:N", legend=None, scale=_range(names, [COLOURS[0]] * limit, OTHERS))
    base = alt.Chart(rows).encode(
        x=alt.X("v:Q", title=shaping.unit_word(unit), axis=alt.Axis(format="~s", tickCount=6)),
        y=_names("series", names),
        tooltip=[
            alt.Tooltip("series:N", title=visible(label)),
            alt.Tooltip("text:N", title=shaping.unit_word(unit)),
        ],
    )
    words = base.mark_text(align="left", dx=4).encode(text="text:N")
    text = f"Bar chart. Largest: {names[0]}, {rows['text'].iloc[0]}."
    return _finish([base.mark_bar().encode(color=shown), words], page, text)


def coverage_strip(
    seen: pd.DataFrame,
    *,
    title: str = "What we could see",
    window: Window | None = None,
    baseline: Window | None = None,
) -> alt.LayerChart:
    """When each query was seen and when it was not.

    Shape: UTC index of step starts; one column per query; True, False or a share of what was
        expected in the step (seen when above 0). NaN: nothing was expected.
    """
    rows, names, notes = shaping.spans_of_sight(seen)
    page = _Page(title, "", window, baseline, height=22 * len(names))
    if rows.empty:
        return _nothing(page)
    states = alt.Scale(domain=["seen", "not seen"], range=[COLOURS[2], COLOURS[1]])
    drawn = alt.Chart(rows).transform_calculate(**_said("t", "from"), **_said("end", "to"))
    drawn = drawn.mark_bar(height=12).encode(
        x=_time("t"),
        x2="end:T",
        y=_names("query", names),
        color=alt.Color("state:N", title=None, scale=states),
        tooltip=["query:N", "state:N", "from:N", "to:N"],
    )
    blind = sorted(set(rows["query"][rows["state"] == "not seen"]))
    text = f"{len(names)} queries; not seen all the time: {', '.join(blind) or 'none'}."
    return _finish([drawn], page, text, notes, rows)


def timeline(
    moments: Iterable[Moment], *, title: str = "In what order", window: Window | None = None
) -> alt.LayerChart:
    """Findings, log lines, answers and people's notes along one axis of time.

    window: what is shown, and once more its length on either side; what lies further off, such as
        an answer of the day after, is counted and left to the table.
    """
    known = sorted(moments, key=lambda moment: moment.time)
    shown, notes = shaping.near(known, window)
    if not shown:
        return _nothing(_Page(title, "", window), notes)
    rows = pd.DataFrame([shaping.moment_row(moment) for moment in shown])
    origins = list(dict.fromkeys(rows["origin"]))
    page = _Page(title, "", window, height=30 * len(origins))
    scale = alt.Scale(domain=origins, range=COLOURS)
    base = alt.Chart(rows).transform_calculate(**_said("t", "time"))
    base = base.encode(
        y=_names("origin", origins),
        color=alt.Color("origin:N", legend=None, scale=scale),
        tooltip=["time:N", "origin:N", "what:N", "source:N"],
    )
    spread = base.mark_rule(strokeWidth=3, opacity=0.35).encode(x=_time("early"), x2="late:T")
    dots = base.mark_point(filled=True, size=60, opacity=0.85).encode(x=_time("t"))
    ends = utc_text(shown[0].time), utc_text(shown[-1].time)
    return _finish(
        [spread, dots], page, f"{len(shown)} moments, {ends[0]} to {ends[1]}.", notes, rows
    )


# --- the parts of a chart ----------------------------------------------------------------


@dataclass(frozen=True)
class _Page:
    """What every chart over time shares."""

    title: str
    unit: str
    window: Window | None = None
    baseline: Window | None = None
    marks: tuple[Mark, ...] = ()
    height: int = 240


def _time(column: str) -> alt.X:
    """UTC on the axis, whatever the zone of the reader."""
    scale = alt.Scale(type="utc", nice=False)
    return alt.X(f"{column}:T", title=TIME, scale=scale, axis=alt.Axis(format=CLOCK))


def _value(unit: str, zero: bool) -> alt.Y:
    axis = alt.Axis(format="~s", tickCount=5)
    return alt.Y("v:Q", title=shaping.unit_word(unit), scale=alt.Scale(zero=zero), axis=axis)


def _names(column: str, order: Sequence[str]) -> alt.Y:
    axis = alt.Axis(labelLimit=260, grid=False)
    return alt.Y(f"{column}:N", sort=list(order), title=None, axis=axis)


def _said(column: str, name: str) -> dict[str, str]:
    """A tooltip's own time would be in the reader's zone; this is text in UTC."""
    return {name: f"utcFormat(datum.{column}, '{STAMP}')"}


def _samples(rows: pd.DataFrame, unit: str, zero: bool) -> alt.Chart:
    return alt.Chart(rows).encode(x=_time("t"), y=_value(unit, zero))


def _dots(base: alt.Chart, unit: str) -> alt.Chart:
    """Points that appear under the pointer; the nearest one answers with its tooltip."""
    near = alt.selection_point(
        name="near", on="pointerover", clear="pointerout", nearest=True, fields=["t", "series"]
    )
    shown = alt.condition(near, alt.value(1), alt.value(0), empty=False)
    points: alt.Chart = base.transform_filter("isValid(datum.v)").mark_point(filled=True, size=45)
    tooltip = alt.TooltipValue(alt.ExprRef(_nearest_row(unit)))
    return points.encode(opacity=shown, tooltip=tooltip).add_params(near).properties(name=POINTER)


def _nearest_row(unit: str) -> str:
    """A tooltip in UTC, written out: a list of fields would not find the row, which the area
    around a nearest point holds one level deeper than the point itself."""
    row = "(isValid(datum.datum) ? datum.datum : datum)"
    word = json.dumps(shaping.unit_word(unit))
    time = f"utcFormat({row}.t, '{STAMP}')"
    return f"{{time: {time}, series: {row}.series, {word}: format({row}.v, ',.6~r')}}"


def _range(names: Sequence[str], looks: Sequence[Any], last: Any) -> alt.Scale:
    """One look per name, in order; "all others" has its own."""
    kept = list(looks[: len(names)])
    if shaping.is_others(names[-1]):
        kept[-1] = last
    return alt.Scale(domain=list(names), range=kept)


def _colour(names: Sequence[str], legend: alt.Legend | None, looks: Sequence[str]) -> alt.Color:
    return alt.Color("series:N", sort=None, scale=_range(names, looks, OTHERS), legend=legend)


def _dash(names: Sequence[str], legend: alt.Legend | None) -> alt.StrokeDash:
    scale = _range(names, DASHES, [2, 2])
    return alt.StrokeDash("series:N", sort=None, scale=scale, legend=legend)


def _legend(
    names: Sequence[str], frame: pd.DataFrame | pd.Series, symbol: str
) -> alt.Legend | None:
    if len(names) == 1:
        return None
    levels = frame.columns.names if isinstance(frame, pd.DataFrame) else []
    title = " · ".join(visible(level, limit=40) for level in levels if level is not None)
    longest = max(len(name) for name in names)
    columns = max(1, min(4, WIDTH // (7 * min(longest, 34) + 40)))
    return alt.Legend(title=title or None, columns=columns, symbolType=symbol)


def _finish(
    drawn: Sequence[alt.Chart],
    page: _Page,
    text: str,
    notes: Sequence[str] = (),
    rows: pd.DataFrame | None = None,
) -> alt.LayerChart:
    """Shade the windows beneath, rule off the marks above, and name the whole."""
    layers = [*_bands(page), *drawn, *_rules(page.marks)]
    days = shaping.days_shown(rows, [page.window, page.baseline])
    for layer in layers:
        if isinstance(layer.encoding.x, alt.X) and layer.encoding.x["title"] == TIME:
            layer.encoding.x["title"] = f"{TIME}, {days}"
    marked = "".join(f" Marked: {said} at {utc_text(at)}." for at, said in map(_mark, page.marks))
    title = visible(page.title, limit=120)
    chart: alt.LayerChart = alt.LayerChart(layer=layers).properties(
        title=alt.TitleParams(title, subtitle=list(notes) or alt.Undefined),
        description=f"{title}. {text}{marked}",
        width=WIDTH,
        height=page.height,
    )
    return chart


def _bands(page: _Page) -> list[alt.Chart]:
    bands = [("baseline", page.baseline, 0, 0.08), ("incident window", page.window, 1, 0.13)]
    layers = []
    for name, span, hue, opacity in bands:
        if span is None:
            continue
        row = pd.DataFrame(
            {
                "t": [shaping.epoch_ms(span.start)],
                "end": [shaping.epoch_ms(span.end)],
                "name": [name],
            }
        )
        base = alt.Chart(row).encode(x=_time("t"))
        words = base.mark_text(align="left", baseline="bottom", fontSize=10.5)
        layers.append(base.mark_rect(color=COLOURS[hue], opacity=opacity).encode(x2="end:T"))
        layers.append(words.encode(text="name:N", y=alt.value(-3)))
    return layers


def _rules(marks: Sequence[Mark]) -> list[alt.Chart]:
    layers = []
    for i, (moment, said) in enumerate(map(_mark, marks)):
        row = pd.DataFrame(
            {"t": [shaping.epoch_ms(moment)], "name": [said], "time": [utc_text(moment)]}
        )
        base = alt.Chart(row).encode(x=_time("t"), tooltip=["name:N", "time:N"])
        words = base.mark_text(align="left", baseline="top", dx=4, limit=200)
        layers.append(base.mark_rule(strokeDash=[3, 3], strokeWidth=1.2))
        layers.append(words.encode(text="name:N", y=alt.value(2 + 13 * (i % 3))))
    return layers


def _mark(mark: Mark) -> tuple[datetime, str]:
    moment, said = (mark.time, mark.text) if isinstance(mark, Moment) else mark
    return moment, visible(said, limit=80)


def _nothing(page: _Page, notes: Sequence[str] = ()) -> alt.LayerChart:
    """No samples is something to see, not an error."""
    low = _Page(page.title, page.unit, page.window, page.baseline, (), 90)
    said = alt.Chart(pd.DataFrame({"said": ["no samples"]})).mark_text(fontSize=14)
    words = said.encode(text="said:N", x=alt.value("width"), y=alt.value(45))
    return _finish([words], low, "No samples.", notes)


__all__ = [
    "CHART_MIME", "Mark", "bars", "coverage_strip", "enable", "interactive", "line", "mimebundle",
    "stacked", "timeline",
]  # fmt: skip
