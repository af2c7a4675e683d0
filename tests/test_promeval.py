"""Our evaluator against a real Prometheus: the same expressions, the same moments, one corpus."""

from __future__ import annotations

import json
import math
import urllib.parse
import urllib.request
from collections.abc import Iterator

import numpy as np
import prometheus_server
import pytest

from tbforensics.promeval import evaluate
from tbforensics.promranges import semantics
from tbforensics.promread import read
from tbforensics.promseries import Floats, Ints, Labels, Samples, Series, labels_of
from tbforensics.promvectors import Vector

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
