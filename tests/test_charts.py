"""Charts: UTC, gaps stay gaps, nothing is random, labels are cut, and thinning keeps the peaks."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from browser import chromium
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tbforensics import charts, report
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


SPIKE_AT, DIP_AT = 12_345, 98_001


def many_points() -> pd.DataFrame:
    """120,000 points, among them one sample that is high and one that is low."""
    values = np.sin(np.arange(120_000) / 500)
    values[SPIKE_AT], values[DIP_AT] = 99.0, -99.0
    return pd.DataFrame({"a": values}, index=pd.date_range(START, periods=len(values), freq="1s"))


def at_ms(place: int) -> int:
    return round((START + timedelta(seconds=place)).timestamp() * 1000)


@pytest.mark.parametrize("kind", ["line", "stacked"])
def test_one_sample_that_stands_out_is_drawn_and_found_among_120_000(kind):
    chart = spec_of(getattr(charts, kind)(many_points(), unit="s", title="t"))
    drawn, found = (pd.DataFrame(chart["data"][layer["data"]["name"]]) for layer in layers(chart))
    for rows in (drawn, found):
        told = dict(zip(rows["t"], rows["v"], strict=True))
        assert (told[at_ms(SPIKE_AT)], told[at_ms(DIP_AT)]) == (99, -99)
    assert len(drawn) <= shaping.POINTS_LIMIT and len(found) <= shaping.POINTED_LIMIT
    assert drawn["t"].is_monotonic_increasing
    assert (drawn["t"].iloc[0], drawn["t"].iloc[-1]) == (at_ms(0), at_ms(119_999))
    (note,) = chart["spec"]["title"]["subtitle"]
    assert note == f"drawn from 120,000 points, {len(drawn):,} shown; extremes kept"


def layers(chart: dict) -> list[dict]:
    """What draws the samples, and what the pointer finds."""
    data = chart["spec"].get("data")
    return [{"data": layer.get("data", data)} for layer in chart["spec"]["layer"]]


def test_the_rows_of_all_series_together_are_bounded():
    walks = np.random.default_rng(1).normal(size=(30_000, 12)).cumsum(axis=0)
    wide = pd.DataFrame(walks, index=pd.date_range(START, periods=30_000, freq="1s"))
    rows, _, _ = shaping.long_rows(wide.rename(columns=str), aligned=False)
    assert len(rows) <= shaping.ROWS_LIMIT
    assert len(shaping.pointed(rows, aligned=False)) <= shaping.POINTED_LIMIT
    extremes = rows.assign(v=rows["v"].astype(float)).groupby("series")["v"].agg(["min", "max"])
    assert extremes.loc["7"].tolist() == pytest.approx([walks[:, 7].min(), walks[:, 7].max()])


@pytest.mark.parametrize("aligned", [False, True])
def test_thinning_closes_no_gap(aligned):
    values = np.random.default_rng(2).normal(size=60_000)
    for begin in (5, 30_000, 30_007, 30_012, 59_990):  # several within what becomes one column
        values[begin : begin + 3] = np.nan
    rows, _, _ = shaping.long_rows(
        pd.DataFrame({"a": values}, index=pd.date_range(START, periods=60_000, freq="1s")),
        aligned=aligned,
    )
    for part in (rows, shaping.pointed(rows, aligned=False)):
        places = (part["t"].to_numpy() - at_ms(0)) // 1000
        for one, other in itertools.pairwise(range(len(part))):
            if part["v"].iloc[one] is not None and part["v"].iloc[other] is not None:
                assert not np.isnan(values[places[one] : places[other]]).any()


def test_few_samples_among_many_steps_are_all_drawn():
    values = np.full(120_000, np.nan)
    values[::100] = 1.0
    wide = pd.DataFrame({"a": values}, index=pd.date_range(START, periods=120_000, freq="1s"))
    rows, _, notes = shaping.long_rows(wide, aligned=False)
    assert rows["v"].count() == 1200 and notes == []


def test_of_each_column_the_first_lowest_highest_and_last_are_kept():
    values = np.array([3.0, 1.0, 2.0, 9.0, 4.0, 5.0, 5.0, 5.0, 5.0, 5.0])
    assert shaping.kept_positions(values, 8).tolist() == [0, 1, 3, 4, 5, 9]


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
    rows, names, _ = shaping.spans_of_sight(seen)
    begin = int(START.timestamp()) * 1000
    assert names == ["q"]
    assert list(rows["state"]) == ["seen", "not seen", "seen"]
    assert [(t - begin) // 60_000 for t in rows["t"]] == [0, 2, 5]
    assert [(t - begin) // 60_000 for t in rows["end"]] == [2, 4, 6]


def test_a_strip_that_flickers_is_drawn_in_wider_steps_that_hide_no_silence():
    flicker = np.ones((30_000, 2))
    flicker[::2, 0] = 0.0
    flicker[20_001, 1] = 0.0
    seen = pd.DataFrame(flicker, columns=["a", "b"]).set_index(
        pd.date_range(START, periods=30_000, freq="60s")
    )
    rows, _, (note,) = shaping.spans_of_sight(seen)
    assert len(rows) <= shaping.ROWS_LIMIT and "drawn as one" in note
    assert set(rows["state"][rows["query"] == "a"]) == {"not seen"}
    blind = rows[(rows["query"] == "b") & (rows["state"] == "not seen")]
    assert blind["t"].item() <= at_ms(20_001 * 60) < blind["end"].item()
    assert rows["end"].max() == at_ms(30_000 * 60)


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


def test_a_report_of_120_000_points_is_small_and_its_spike_can_be_pointed_at(tmp_path):
    charts.enable()
    chart = charts.line(many_points(), unit="s", title="t")
    output = new_output("display_data", data=chart._repr_mimebundle_())
    cell = new_code_cell("show()", outputs=[output], execution_count=1)
    said = ("One spike", "spike-1", "none", WINDOW, None, None, (), "", "", "0", START)
    path = tmp_path / "report.html"
    path.write_text(report.render(new_notebook(cells=[cell]), report.Header(*said)))
    assert path.stat().st_size < 3_000_000
    with chromium() as page:
        page.look()
        page.open(path)
        page.wait("document.documentElement.dataset.charts !== undefined")
        assert page.run("document.documentElement.dataset.charts") == "1 of 1"
        box = page.run(
            "(({x, y, width, height}) => ({x, y, width, height}))"
            "(document.querySelector('canvas').getBoundingClientRect())"
        )
        # The spike stands a tenth of the way along, and nothing else is so high.
        left, right = box["x"] + 40, box["x"] + box["width"] - 6
        at = left + (right - left) * SPIKE_AT / 120_000
        for step in range(3):
            page.move(at + step, box["y"] + 70)
        page.wait("!!document.querySelector('#vg-tooltip-element.visible')")
        tip = page.run("document.querySelector('#vg-tooltip-element').textContent")
        assert "99" in tip and "2026-03-10 13:25:45 UTC" in tip
        assert page.complaints == []
