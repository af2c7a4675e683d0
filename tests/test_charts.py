"""Charts: UTC, gaps stay gaps, nothing is random, labels are cut, and thinning keeps the peaks."""

from __future__ import annotations

import base64
import importlib.util
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from tbforensics import charts
from tbforensics.model import Moment, Window
from tbforensics.report_page import rows as shaping
from tbforensics.report_page.chart_json import chart_of

START = datetime(2026, 3, 10, 10, tzinfo=UTC)
WINDOW = Window(START + timedelta(minutes=20), START + timedelta(minutes=40))
BASELINE = Window(START, START + timedelta(minutes=10))


def frame(values: dict[object, list[float]], step_s: int = 60) -> pd.DataFrame:
    """A wide frame; one column per entry, one row per step."""
    n = len(next(iter(values.values())))
    index = pd.date_range(START, periods=n, freq=f"{step_s}s")
    wide = pd.DataFrame(dict(enumerate(values.values())), index=index)
    keys = list(values)
    tuples = bool(keys) and isinstance(keys[0], tuple)
    wide.columns = pd.MultiIndex.from_tuples(keys, names=["source", "peer"]) if tuples else keys
    return wide


def spec_of(chart: object) -> dict:
    charts.enable()
    return chart_of(chart.to_dict())


def long(chart: object) -> pd.DataFrame:
    """The samples that a chart draws, as rows t, v, series."""
    tables = [pd.DataFrame(t) for t in spec_of(chart)["data"].values()]
    return next(t for t in tables if {"t", "v", "series"} <= set(t))


CALM = {"a": [1.0, 2.0, 3.0], "b": [3.0, 2.0, 1.0]}


def one_of_each() -> dict[str, object]:
    both = {"window": WINDOW, "baseline": BASELINE}
    moments = [Moment(START, "human", "saw it", "ops", 30.0), Moment(START, "log", "error")]
    table = pd.DataFrame({"peer": ["p1", "p2"], "paid": [2.0, -1.0]})
    seen = frame({"q1": [1.0, 0.0, 1.0], "q2": [True, True, True]})
    marks = [(START, "onset")]
    return {
        "line": charts.line(frame(CALM), unit="s", title="t", marks=marks, **both),
        "stacked": charts.stacked(frame(CALM), unit="s", title="t", marks=marks, **both),
        "bars": charts.bars(table, "paid", "peer", unit="BZZ", title="t"),
        "coverage_strip": charts.coverage_strip(seen, **both),
        "timeline": charts.timeline(moments, window=WINDOW),
    }


KINDS = ["line", "stacked", "bars", "coverage_strip", "timeline"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_frame_gives_the_same_json(kind):
    once, again = spec_of(one_of_each()[kind]), spec_of(one_of_each()[kind])
    assert json.dumps(once) == json.dumps(again)


@pytest.mark.parametrize("kind", KINDS)
def test_a_chart_has_a_title_a_sentence_a_picture_and_tooltips(kind):
    charts.enable()
    bundle = one_of_each()[kind]._repr_mimebundle_()
    chart = bundle[charts.CHART_MIME]
    assert set(bundle) == {charts.CHART_MIME, "image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"] == chart["alt"] and len(chart["alt"]) > 20
    assert chart["spec"]["title"]["text"]
    assert '"tooltip"' in json.dumps(chart["spec"])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_chart_is_remote_or_in_the_time_of_the_reader(kind):
    text = json.dumps(spec_of(one_of_each()[kind]))
    assert "http" not in text and '"url"' not in text
    assert "timeFormat" not in text
    temporal = text.count('"type": "temporal"')
    assert text.count('"type": "utc"') >= temporal - text.count('"x2"')


@pytest.mark.parametrize("kind", ["line", "stacked"])
def test_a_gap_stays_a_gap(kind):
    gappy = frame({"a": [1.0, np.nan, np.nan, 4.0, 5.0]})
    drawn = long(getattr(charts, kind)(gappy, unit="s", title="t"))
    assert [None if pd.isna(v) else v for v in drawn["v"]] == [1, None, 4, 5]


def test_a_sample_between_two_gaps_is_a_point():
    rows, _, _ = shaping.long_rows(
        frame({"a": [1.0, np.nan, 7.0, np.nan, 1.0, 2.0]}), aligned=False
    )
    assert list(shaping.isolated(rows)["v"]) == [1, 7]


@pytest.mark.parametrize("aligned", [False, True])
def test_thinning_keeps_the_lowest_and_the_highest_and_says_so(aligned):
    values = np.sin(np.arange(50_000) / 500)
    values[12_345], values[40_001] = 99.0, -99.0
    wide = pd.DataFrame({"a": values}, index=pd.date_range(START, periods=50_000, freq="1s"))
    rows, _, notes = shaping.long_rows(wide, aligned=aligned)
    assert len(rows) <= 2 * shaping.POINTS_LIMIT
    assert {99, -99} <= set(rows["v"])
    assert rows["t"].is_monotonic_increasing
    assert any("50,000 samples" in note for note in notes)


def test_thinning_does_not_close_a_gap():
    values = np.ones(50_000)
    values[30_000:30_100] = np.nan
    kept = shaping.kept_positions(values)
    assert 30_000 in kept
    assert np.isnan(values[kept]).sum() == 1


def test_few_points_are_all_drawn():
    drawn = long(charts.line(frame(CALM), unit="s", title="t"))
    assert len(drawn) == 6


def test_beyond_twelve_series_the_largest_eleven_and_all_others_are_drawn():
    many = frame({("prom", f"peer-{i:02d}"): [float(i + 1)] * 3 for i in range(30)})
    drawn = long(charts.stacked(many, unit="bytes", title="t"))
    names = list(dict.fromkeys(drawn["series"]))
    assert len(names) == 12
    assert names[0] == "prom · peer-29" and names[-1] == "all others (19), summed"
    assert drawn.groupby("t")["v"].sum().tolist() == [sum(range(1, 31))] * 3
    assert spec_of(charts.line(many, unit="s", title="t"))["spec"]["title"]["subtitle"]


def test_twelve_series_are_drawn_as_they_are():
    twelve = frame({f"s{i}": [float(i + 1)] for i in range(12)})
    assert len(set(long(charts.line(twelve, unit="s", title="t"))["series"])) == 12


EMPTY = {
    "no rows": frame(CALM).iloc[:0],
    "no columns": frame(CALM)[[]],
    "no samples": frame({"a": [np.nan, np.nan]}),
    "nothing at all": pd.DataFrame(),
}


@pytest.mark.parametrize("kind", ["line", "stacked"])
@pytest.mark.parametrize("case", EMPTY)
def test_no_samples_is_a_chart_that_says_so(kind, case):
    chart = getattr(charts, kind)(EMPTY[case], unit="s", title="t", window=WINDOW)
    assert "no samples" in json.dumps(spec_of(chart)).lower()


def test_nothing_to_list_is_a_chart_that_says_so():
    nothing = [
        charts.bars(pd.DataFrame({"a": [], "b": []}), "a", "b", unit="s", title="t"),
        charts.coverage_strip(pd.DataFrame()),
        charts.timeline([]),
    ]
    assert all("No samples" in spec_of(chart)["alt"] for chart in nothing)


def test_hostile_labels_are_cut_made_visible_and_still_told_apart():
    evil = "</script><img src=x onerror=alert(1)>\u202e\x1b[31m"
    wide = frame({"x" * 1_000_000: [1.0], "x" * 1_000_000 + "y": [2.0], evil: [3.0]})
    chart = spec_of(charts.line(wide, unit=evil, title=evil * 1000, marks=[(START, evil)]))
    text = json.dumps(chart, ensure_ascii=False)
    assert not {"\u202e", "\x1b"} & set(text)
    assert len(text) < 20_000
    assert len(set(long(charts.line(wide, unit="s", title="t"))["series"])) == 3


def test_infinite_values_are_left_out_and_said():
    rows, _, notes = shaping.long_rows(frame({"a": [1.0, np.inf, 2.0]}), aligned=False)
    assert [None if v is None else v for v in rows["v"]] == [1, None, 2]
    assert "infinite values are not drawn" in notes


def test_a_time_without_a_zone_is_refused():
    naive = pd.DataFrame({"a": [1.0]}, index=pd.date_range("2026-03-10", periods=1))
    with pytest.raises(ValueError, match="zone"):
        charts.line(naive, unit="s", title="t")
    with pytest.raises(ValueError, match="zone"):
        charts.line(frame(CALM), unit="s", title="t", marks=[(datetime(2026, 3, 10), "onset")])  # noqa: DTZ001


def test_a_frame_in_another_zone_is_drawn_in_utc():
    east = frame(CALM).tz_convert("Asia/Tokyo")
    assert long(charts.line(east, unit="s", title="t")).equals(
        long(charts.line(frame(CALM), unit="s", title="t"))
    )


def test_a_day_stands_on_the_axis():
    spec = spec_of(charts.line(frame(CALM), unit="s", title="t", window=WINDOW))
    assert "time (UTC), 2026-03-10" in json.dumps(spec)


def test_coverage_is_drawn_as_runs_and_what_was_not_expected_is_left_white():
    seen = frame({"q": [1.0, 1.0, 0.0, 0.0, np.nan, 1.0]})
    rows, names = shaping.spans_of_sight(seen)
    begin = int(START.timestamp()) * 1000
    assert names == ["q"]
    assert list(rows["state"]) == ["seen", "not seen", "seen"]
    assert [(t - begin) // 60_000 for t in rows["t"]] == [0, 2, 5]
    assert [(t - begin) // 60_000 for t in rows["end"]] == [2, 4, 6]


def test_bars_keep_the_sum():
    table = pd.DataFrame({"peer": [f"p{i}" for i in range(50)], "paid": np.arange(50.0)})
    rows = shaping.ranked_bars(table, "paid", "peer", 12)
    assert len(rows) == 12 and sum(rows["v"]) == table["paid"].sum()
    assert rows["series"].iloc[0] == "p49" and shaping.is_others(rows["series"].iloc[-1])


def test_a_chart_of_an_analyst_keeps_its_rows_too():
    import altair as alt

    charts.enable()
    many = pd.DataFrame({"x": range(9000), "y": range(9000)})
    bundle = alt.Chart(many).mark_point().encode(x="x", y="y")._repr_mimebundle_()
    (columns,) = bundle[charts.CHART_MIME]["data"].values()
    assert len(columns["x"]) == 9000


def test_the_picture_is_packed_without_changing_a_pixel():
    import struct
    import zlib

    from tbforensics.report_page import chart_json

    head = struct.pack(">IIBBBBB", 4, 2, 8, 6, 0, 0, 0)
    pixels = bytes(range(17)) + bytes(range(17, 34))
    loose = b"".join(
        [
            chart_json._PNG_HEAD,
            chart_json._chunk(b"IHDR", head),
            chart_json._chunk(b"IDAT", zlib.compress(pixels, 0)),
            chart_json._chunk(b"IEND", b""),
        ]
    )
    parts = dict(chart_json._chunks(chart_json.squeezed(loose)))
    assert zlib.decompress(parts[b"IDAT"]) == pixels and parts[b"IHDR"] == head


def test_live_charts_in_the_lab_need_a_package_that_is_named():
    if importlib.util.find_spec("anywidget") is None:
        with pytest.raises(ImportError, match="anywidget"):
            charts.interactive()
    else:
        charts.interactive()
        charts.enable()


def test_an_answer_of_the_day_after_does_not_squash_the_timeline():
    late = Moment(START + timedelta(days=1), "rpc", "asked afterwards")
    near = Moment(WINDOW.start, "human", "saw it")
    chart = spec_of(charts.timeline([near, late], window=WINDOW))
    assert "1 further off are not drawn" in json.dumps(chart["spec"])
    assert "asked afterwards" not in json.dumps(chart)
    assert "1 further off" in json.dumps(spec_of(charts.timeline([late], window=WINDOW)))
