"""Our evaluator against a real Prometheus: the same expressions, the same moments, one corpus."""

from __future__ import annotations

import json
import math
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

import made
import numpy as np
import prometheus_server
import pytest

from tbforensics import frames
from tbforensics.promql import functions as promfunctions
from tbforensics.promql import ranges as promranges
from tbforensics.promql.buckets import quantile
from tbforensics.promql.evaluate import evaluate
from tbforensics.promql.parse import RANGE_FUNCTIONS, VECTOR_FUNCTIONS, Unsupported, read
from tbforensics.promql.ranges import semantics
from tbforensics.promql.series import (
    Floats,
    Ints,
    Labels,
    Samples,
    Series,
    gone,
    labels_of,
    load,
)
from tbforensics.promql.vectors import EvaluationFailed, Vector

TOLERANCE = 1e-9  # relative: sums run in another order than Prometheus' compensated ones
START_MS, SECONDS = 1_795_168_800_000, 5400
OLD = semantics("2.42.0+ds")

# --- the corpus ----------------------------------------------------------------------------


def corpus(seed: int) -> dict[str, list[Series]]:
    """Counters, gauges and a histogram of three targets, with all that may happen to them."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Series]] = {}

    def add(name: str, times: Ints, values: Floats, **labels: str) -> None:
        keep = np.isfinite(values) | np.isnan(values) | np.isinf(values)
        named = labels_of({"__name__": name, **labels})
        found.setdefault(name, []).append(Series(named, times[keep], values[keep]))

    for number, target in enumerate(("a", "b", "c")):
        every_ms = (15_000, 15_000, 30_000)[number]
        times = START_MS + int(rng.integers(0, 15_000)) + np.arange(0, SECONDS * 1000, every_ms)
        whole = {"job": "x", "instance": target}

        def seen(times: Ints = times, late: float = 0.0, early: float = 1.0) -> Ints:
            """Scrapes that came: some lost, a hole, and only from `late` to `early`."""
            kept = rng.random(len(times)) > 0.03
            hole = int(rng.integers(0, len(times)))
            kept[hole : hole + int(rng.integers(0, 50))] = False
            kept[: int(late * len(times))] = False
            kept[int(early * len(times)) :] = False
            return np.flatnonzero(kept)

        for reason in ("tls", "Timeout", 'odd"\\é'):
            rises = rng.poisson(rng.choice([0.02, 0.5, 30.0]), len(times)).astype(float)
            total = np.cumsum(rises)
            for at in rng.integers(1, len(times), int(rng.integers(0, 4))):
                total[at:] -= total[at]  # a restart
            kept = seen(late=float(rng.choice([0.0, 0.3, 0.6])))
            add("fails_total", times[kept], total[kept], reason=reason, **whole)
        attempts = np.cumsum(rng.poisson(40, len(times))).astype(float) + 1e9
        kept = seen()
        add("tries_total", times[kept], attempts[kept], **whole)
        level = rng.normal(5, 3, len(times)).round(2)
        level[rng.random(len(times)) < 0.2] = 5.0
        level[rng.random(len(times)) < 0.02] = np.nan
        kept = seen(early=float(rng.choice([1.0, 0.6])))
        add("level", times[kept], level[kept], lane=("fast", "slow")[number % 2], **whole)
        add("info", times, np.ones(len(times)), version=f"1.{number}", **whole)
        if number < 2:
            counts = np.cumsum(rng.poisson([3.0, 2.0, 1.0, 0.3], (len(times), 4)), axis=0)
            kept = seen()
            for bound, column in zip(("0.1", "1", "10", "+Inf"), counts.cumsum(1).T, strict=True):
                values = column.astype(float)
                add("took_seconds_bucket", times[kept], values[kept], le=bound, **whole)
    return found


EXPRESSIONS = [
    line
    for line in r"""
# selectors
level
level{lane="fast"}
level{lane!="fast"}
level{instance=~"a|b"}
fails_total{reason!~"t.*"}
fails_total{reason=~".*o.*"}
level{nope=""}
nothing
level offset 7m
level offset -3m
{__name__=~"le.*l"}
fails_total{reason="odd\"\\é"}
# ranges
rate(fails_total[5m])
increase(fails_total[5m])
increase(fails_total[10m] offset 4m)
rate(fails_total[1m])
rate(fails_total[37s])
delta(level[5m])
irate(tries_total[5m])
idelta(level[5m])
changes(level[10m])
resets(fails_total[20m])
rate(tries_total[30m])
avg_over_time(level[5m])
min_over_time(level[5m])
max_over_time(level[5m])
sum_over_time(level[5m])
count_over_time(level[5m])
last_over_time(level[12m])
present_over_time(level[6m])
stddev_over_time(tries_total[5m])
deriv(tries_total[10m])
stdvar_over_time(took_seconds_bucket[5m])
predict_linear(tries_total[10m], 3600)
quantile_over_time(0.9, level[5m])
quantile_over_time(1.5, level[5m])
absent_over_time(level[5m])
absent_over_time(level{instance="a"}[2m])
max_over_time(rate(fails_total[2m])[10m:30s])
avg_over_time(sum(level)[7m:45s] offset 1m)
# aggregations
sum(rate(fails_total[5m]))
sum by (reason) (rate(fails_total[5m]))
count(level)
sum without (instance, reason) (fails_total)
avg by (job) (level)
min(level)
max by (lane) (level)
stddev(tries_total)
stdvar by (instance) (fails_total)
group by (instance) (fails_total)
quantile(0.5, fails_total)
count by (nope) (level)
quantile by (reason) (0.3, fails_total)
sum by (le) (rate(took_seconds_bucket[5m]))
# histograms
histogram_quantile(0.95, sum(rate(took_seconds_bucket[5m])) by (le))
histogram_quantile(0.5, rate(took_seconds_bucket[5m]))
histogram_quantile(0.999, sum by (le, instance) (increase(took_seconds_bucket[10m])))
histogram_quantile(0.01, took_seconds_bucket)
histogram_quantile(2, took_seconds_bucket)
histogram_quantile(0.9, took_seconds_bucket{le!="+Inf"})
# operators
level + 1
2 * level - 1
-level
level % 3
level ^ 2
2 ^ level
level / 0
1 - level / 10
level > 5
5 < level
level >= bool 5
level == 5
level != 5
level <= 5 > 2
1 > bool 2
fails_total / on(instance, job) group_left tries_total
sum by (instance) (fails_total) / sum by (instance) (tries_total)
tries_total - tries_total
tries_total / ignoring(lane) level
level * on(instance) group_left(version) info
info * on(instance) group_right(version) fails_total
fails_total > on(instance) group_left level
level > bool tries_total offset 5m
tries_total > ignoring(lane) level
level and fails_total
level and on(instance) fails_total
level or info
fails_total unless on(instance) level
level or on(instance) info
level and ignoring(lane) info
rate(fails_total[5m]) > 0.1 and on(instance) rate(tries_total[5m]) > 0.2
sum(rate(fails_total[5m])) by (instance) > 0.5 or max(level) > 9
(increase(fails_total[10m]) > 30) or (increase(tries_total[10m]) > 1e3)
# functions
abs(level - 5)
ceil(level)
floor(-level)
round(level)
round(level, 0.25)
exp(level)
ln(level)
log2(level)
log10(level)
sqrt(level)
sgn(level - 5)
clamp(level, 2, 6)
clamp_min(level, 3)
clamp_max(level, 4)
clamp(level, 6, 2)
absent(level)
absent(nothing{a="b", c=~"d"})
absent(sum(nothing))
vector(1)
scalar(level{instance="a"})
scalar(level)
time()
time() - timestamp(level)
timestamp(level + 0)
vector(time() % 60)
sort(level)
hour()
minute(vector(time()))
day_of_week()
day_of_month()
month()
year()
hour((level > 0) * 1e6)
label_replace(level, "kind", "$1-${2}", "instance", "(.)(.*)")
label_replace(level, "kind", "x", "instance", "z+")
label_join(level, "both", "/", "job", "instance")
sum(level) / (count(level) + 1)
""".splitlines()
    if line and not line.startswith("#")
]


@pytest.fixture(scope="module", params=[7, 20261120])
def server(request, tmp_path_factory) -> Iterator[tuple[str, Samples]]:
    if not prometheus_server.installed():
        pytest.skip("Prometheus is not installed")
    samples = corpus(request.param)
    families = {
        name: {
            spelled(series.labels): zip(series.times.tolist(), series.values, strict=True)
            for series in found
        }
        for name, found in samples.items()
    }
    history = prometheus_server.openmetrics(families)
    with prometheus_server.serve(tmp_path_factory.mktemp("prometheus"), history) as running:
        yield running.url, samples


def spelled(labels: Labels) -> str:
    return ",".join(
        f"{k}={json.dumps(v, ensure_ascii=False)}" for k, v in labels if k != "__name__"
    )


def asked(url: str, text: str, moments: Ints) -> dict[Labels, dict[int, float]]:
    given = {
        "query": text,
        "start": moments[0] / 1000,
        "end": moments[-1] / 1000,
        "step": (moments[1] - moments[0]) / 1000,
    }
    address = f"{url}/api/v1/query_range?{urllib.parse.urlencode(given)}"
    with urllib.request.urlopen(address, timeout=30) as reply:
        data = json.load(reply)["data"]
    return {
        labels_of(row["metric"]): {round(t * 1000): float(v) for t, v in row["values"]}
        for row in data["result"]
    }


def ours(text: str, samples: Samples, moments: Ints) -> dict[Labels, dict[int, float]]:
    value = evaluate(read(text), samples, moments, OLD)
    if not isinstance(value, Vector):
        return {(): dict(zip(moments.tolist(), value.tolist(), strict=True))}
    return {
        labels: dict(zip(moments[here].tolist(), values[here].tolist(), strict=True))
        for labels, values, here in zip(value.labels, value.values, value.present, strict=True)
    }


def same(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=1e-9)


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_prometheus_and_we_say_the_same(server, text):
    url, samples = server
    moments = START_MS - 60_000 + np.arange(0, SECONDS + 900, 47) * 1000 + 500
    theirs, mine = asked(url, text, moments), ours(text, samples, moments)
    assert {k: sorted(v) for k, v in mine.items()} == {k: sorted(v) for k, v in theirs.items()}
    wrong = [
        (labels, ms, mine[labels][ms], value)
        for labels, values in theirs.items()
        for ms, value in values.items()
        if not same(mine[labels][ms], value)
    ]
    assert not wrong, wrong[:5]


FAILURES = [
    "level * on(job) info",
    "level + on(job) group_left info",
    "info * on(job) group_right fails_total",
    "level / on() group_left() info",
    'label_replace(level, "instance", "same", "job", ".*")',
    'label_replace(fails_total, "reason", "", "job", ".*")',
    'sum_over_time({__name__=~"fails_total|level"}[5m]) * on(instance) group_left info + on() info',
]


@pytest.mark.parametrize("text", FAILURES)
def test_where_prometheus_answers_with_an_error_so_do_we(server, text):
    url, samples = server
    moments = START_MS + np.arange(600, SECONDS, 300) * 1000
    with pytest.raises(urllib.error.HTTPError) as refused:
        asked(url, text, moments)
    with refused.value as error:
        assert error.code == 422
    with pytest.raises(EvaluationFailed):
        ours(text, samples, moments)


# --- what differs between versions ---------------------------------------------------------


def one(name: str, samples: list[tuple[float, float]], ends: tuple[float, ...] = ()) -> Samples:
    """A series from (seconds, value)."""
    times = np.array([round(s * 1000) for s, _ in samples], np.int64)
    gone_at = np.array([round(s * 1000) for s in ends], np.int64)
    values = np.array([v for _, v in samples], float)
    return {name: [Series((("__name__", name),), times, values, gone_at)]}


def at(text: str, samples: Samples, second: float, version: str = "2.42.0") -> float | None:
    value = evaluate(read(text), samples, np.array([round(second * 1000)]), semantics(version))
    assert isinstance(value, Vector)
    return float(value.values[0, 0]) if len(value.labels) else None


MINUTE = [(15.0 * n, float(n)) for n in range(5)]


def test_a_range_holds_its_first_moment_in_prometheus_2_and_not_in_3():
    samples = one("m", MINUTE)
    assert at("count_over_time(m[1m])", samples, 60, "2.53.1+ds") == 5
    assert at("count_over_time(m[1m])", samples, 60, "3.0.0") == 4
    assert at("count_over_time(m[1m])", samples, 60, "v3.5.0") == 4
    assert at("count_over_time(m[1m])", samples, 60, "unreadable") == 4
    assert at("max_over_time(vector(1)[1m:15s])", samples, 60, "3.0.0") == 1
    assert at("count_over_time(m[1m:15s])", samples, 60, "2.53.1") == 5
    assert at("count_over_time(m[1m:15s])", samples, 60, "3.0.0") == 4


def test_a_sample_of_exactly_the_lookback_is_still_good_in_prometheus_2_and_not_in_3():
    samples = one("m", [(0, 7.0)])
    assert at("m", samples, 300, "2.42.0") == 7
    assert at("m", samples, 300, "3.0.0") is None
    assert at("m", samples, 299.999, "3.0.0") == 7
    assert at("m", samples, 300.001, "2.42.0") is None


def test_the_same_rate_has_four_samples_or_three_and_comes_out_the_same_only_when_steady():
    samples = one("m", MINUTE)
    assert at("increase(m[1m])", samples, 60, "2.42.0") == 4
    # (0, 60] sees 1 to 4 and stretches what it saw over the 15 s that it did not.
    assert at("increase(m[1m])", samples, 60, "3.0.0") == 4
    burst = one("m", [(0, 0.0), (15, 10.0), (30, 10.0), (45, 10.0), (60, 10.0)])
    assert at("increase(m[1m])", burst, 60, "2.42.0") == 10
    assert at("increase(m[1m])", burst, 60, "3.0.0") == 0


def test_since_2_52_the_zero_point_of_a_counter_bounds_only_half_a_step_of_stretching():
    # First sample 60 s after the range began, its zero point 12 s before it, a step is 20 s.
    samples = one("m", [(60, 6.0), (80, 16.0), (100, 26.0), (120, 36.0)])
    assert at("increase(m[2m])", samples, 120, "2.51.2") == pytest.approx(30 * 72 / 60)
    assert at("increase(m[2m])", samples, 120, "2.52.0") == pytest.approx(30 * 70 / 60)
    near_zero = one("m", [(60, 1.0), (80, 11.0), (100, 21.0), (120, 31.0)])
    for version in ("2.51.2", "2.52.0"):
        assert at("increase(m[2m])", near_zero, 120, version) == pytest.approx(30 * 62 / 60)


def test_dots_of_a_regex_meet_line_breaks_only_since_3():
    labels = (("__name__", "m"), ("text", "a\nb"))
    samples = {"m": [Series(labels, np.array([0], np.int64), np.array([1.0]))]}
    assert at('m{text=~"a.b"}', samples, 0, "2.53.1") is None
    assert at('m{text=~"a.b"}', samples, 0, "3.0.0") == 1
    assert at('m{text=~"a"}', samples, 0, "3.0.0") is None  # anchored at both ends


def test_a_series_that_was_found_gone_is_away_at_once_and_comes_back():
    samples = one("m", [(0, 1.0), (15, 2.0), (60, 3.0)], ends=(30.0,))
    assert [at("m", samples, s) for s in (29, 30, 45, 59, 60)] == [2, None, None, None, 3]
    assert at("sum_over_time(m[1m])", samples, 60) == 6  # a marker is no sample
    assert at("timestamp(m)", samples, 29) == 15


def test_a_series_is_found_gone_at_the_first_scrape_without_it():
    scrapes = np.arange(0, 150, 15)
    assert gone(np.array([0, 15, 30, 90, 105]), scrapes).tolist() == [45, 120]
    assert gone(np.array([0, 15, 30]), np.array([0, 15, 30])).tolist() == []
    assert gone(np.array([3, 18, 33]), scrapes).tolist() == []  # times of its own
    assert gone(np.array([], np.int64), scrapes).tolist() == []


def test_nothing_collected_is_an_empty_answer_and_not_an_error():
    moments = np.array([0, 1000])
    for text in ("m", "rate(m[5m])", "sum(m)", "m > 1", "m / m", "histogram_quantile(.9, m)"):
        value = evaluate(read(text), {}, moments, OLD)
        assert isinstance(value, Vector)
        assert value.values.shape == (0, 2)
    assert at("absent(m)", {}, 0) == 1
    empty = {"m": [Series((("__name__", "m"),), np.empty(0, np.int64), np.empty(0))]}
    assert at("m", empty, 0) is at("rate(m[5m])", empty, 0) is at("timestamp(m)", empty, 0) is None


# --- ours that counts, theirs that guesses -------------------------------------------------


def test_our_increase_counts_what_happened_and_theirs_stretches_it(tmp_path):
    """Two failures in a minute: Prometheus says 2.36, because it stretches 45 s to 53 s."""
    rises = [(s, float(s >= 30) + float(s >= 45)) for s in range(0, 121, 15)]
    shifted = [(s + 7, v) for s, v in rises]  # no scrape at the edges, as it is in life
    evidence = made.evidence_of(
        tmp_path,
        {"m": {made.labels(): shifted}, "up": {made.labels(): [(s, 1.0) for s, _ in shifted]}},
    )
    span = made.window(0, 120)
    counted = frames.increase(evidence, "m", span, 60.0).iloc[:, 0]
    first_minute = round(made.at(60).timestamp() * 1000)
    samples = load(evidence, "main", ["m", "up"], ["m"])
    theirs = evaluate(read("increase(m[1m])"), samples, np.array([first_minute]), OLD)
    assert isinstance(theirs, Vector)
    assert counted.tolist() == [2.0, 0.0]  # whole failures, and their sum is the total
    # 45 s between the first and the last of four scrapes, and 8 s more to the end of the range;
    # to its beginning no further, because there the counter would stand at nothing.
    assert float(theirs.values[0, 0]) == pytest.approx(2 * (45 + 8) / 45)
    evidence.close()


def test_a_series_born_at_its_first_event_counts_for_us_and_not_for_them(tmp_path):
    """A family that registers at first use: its first failure is invisible to `increase`."""
    born = [(s, 1.0) for s in range(30, 121, 15)]
    evidence = made.evidence_of(
        tmp_path,
        {"m": {made.labels(): born}, "up": {made.labels(): made.ups(0, 120)}},
    )
    counted = frames.increase(evidence, "m", made.window(0, 120), 60.0).iloc[:, 0]
    samples = load(evidence, "main", ["m", "up"], ["m"])
    moment = round(made.at(60).timestamp() * 1000)
    theirs = evaluate(read("increase(m[1m])"), samples, np.array([moment]), OLD)
    assert isinstance(theirs, Vector)
    assert counted.sum() == 1.0
    assert float(theirs.values[0, 0]) == 0.0
    evidence.close()


# --- quantiles that say what they do not know ----------------------------------------------


def test_a_quantile_beyond_the_buckets_is_unresolved_and_not_a_number():
    bounds = np.array([0.1, 1.0, 10.0, np.inf])
    counts = np.array([50.0, 60.0, 90.0, 100.0])
    within = quantile(bounds, counts, 0.75)
    assert (within.value, within.lower, within.upper, within.unresolved) == (5.5, 1.0, 10.0, "")
    below, above = quantile(bounds, counts, 0.3), quantile(bounds, counts, 0.95)
    assert math.isnan(below.value) and math.isnan(above.value)
    assert below.unresolved == "unresolved: below the first bound 0.1"
    assert above.unresolved == "unresolved: above the last bound 10"
    assert quantile(bounds, 0 * counts, 0.5).unresolved == "unresolved: nothing was counted"
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile(bounds, counts, 95)
    with pytest.raises(ValueError, match=r"\+Inf"):
        quantile(bounds[:3], counts[:3], 0.5)


# --- what is refused -----------------------------------------------------------------------


def test_every_part_that_cannot_be_replayed_is_listed_at_once():
    with pytest.raises(Unsupported) as refused:
        read("topk(3, m) > m @ 5 and max_over_time(m[5m:]) > 1")
    assert refused.value.problems == (
        "the aggregation topk",
        "the @ modifier",
        "a subquery without a step: the server's default is not recorded",
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("(" * 100 + "m" + ")" * 100, "brackets within brackets"),
        ("m +" * 500 + "m", "names, numbers and operators"),
        ("m" * 30_000, "characters"),
        ("sum(", "no PromQL that we know"),
        ('m{a=~"(?=x)"}', "no PromQL that we know"),
        ("m{a='\ud800'}", "no PromQL that we know"),
        ("histogram_avg(m)", "histogram_avg"),
    ],
)
def test_what_is_too_large_or_unknown_is_refused_in_words(text, why):
    with pytest.raises(Unsupported) as refused:
        read(text)
    assert why in " ".join(refused.value.problems)


def test_brackets_and_operators_within_texts_and_comments_are_not_counted():
    assert read('m{a="' + "(" * 500 + '"} # ' + "((" * 200)


def test_a_question_that_looks_at_too_much_is_refused_before_it_is_computed():
    samples = one("m", MINUTE)
    with pytest.raises(Unsupported, match="cannot be replayed") as refused:
        at("max_over_time(rate(m[1y])[1y:1ms])", samples, 60)
    assert "50,000,000 samples" in refused.value.problems[0]


def test_every_function_that_is_read_is_also_evaluated():
    special = {"absent_over_time", "predict_linear", "quantile_over_time"}
    assert set(promranges.FUNCTIONS) | special == RANGE_FUNCTIONS
    assert set(promfunctions.FUNCTIONS) == VECTOR_FUNCTIONS
