"""What a kind and an analyst ask of large evidence, beside the plainest SQL, pandas and polars.

    python -m benchmarks.analysis --size B --rounds 5

The evidence is made up (`madeup`) and lies in the Parquet parts that a case keeps. `plain` is the
shortest DuckDB SQL that gives the same numbers, over the views that a case has; pandas and polars
read the parts of the query in question. Every runner is a process of its own and hands back a
digest of its numbers; a table with another digest than ours would not be the same answer.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks import madeup
from benchmarks.sidebyside import Measured, call, median, ratio, rounds, table
from tbforensics.analysis.quantiles import bucket_quantiles

STEP_S, STEP_MS = 60.0, 60_000
LEVELS = ("WARN", "ERROR")
RUNNERS = ("plain", "ours", "polars", "pandas")
TASKS = {
    "increase": "increase per series and minute, resets undone",
    "by_label": "the same by one label",
    "last": "last value per series and minute",
    "highest": "highest value per series and minute",
    "p95": "95th percentile per target and minute, from buckets",
    "sight": "which query was seen in which minute",
    "asof": "warnings and errors with the height of their node (ASOF)",
}
Work = Callable[[], list[float]]


def digest(values: Any) -> list[float]:
    """How many numbers there are but zeros, their sum, their sum of squares, the highest."""
    flat = np.asarray(values, float).ravel()
    flat = flat[np.isfinite(flat) & (flat != 0)]
    said = (len(flat), flat.sum(), (flat**2).sum(), flat.max(initial=0))
    return [float(f"{float(number):.9g}") for number in said]


# --- ours ----------------------------------------------------------------------------------


def ours(task: str, folder: str, size: str) -> Work:
    from tbforensics import frames
    from tbforensics.evidence import Evidence

    evidence, span = Evidence(Path(folder)), madeup.SIZES[size].span

    def work() -> list[float]:
        if task == "increase":
            return digest(frames.increase(evidence, "packets_total", span, STEP_S))
        if task == "by_label":
            rises = frames.increase(evidence, "packets_total", span, STEP_S)
            return digest(frames.summed(rises, "reason"))
        if task == "last":
            return digest(frames.last(evidence, "queue_depth", span, STEP_S))
        if task == "highest":
            return digest(frames.values(evidence, "queue_depth", span, STEP_S, "max"))
        if task == "p95":
            rises = frames.increase(evidence, "latency", span, STEP_S)
            return digest(frames.quantile(rises, 0.95, "instance"))
        if task == "sight":
            return digest(frames.sight(evidence, span, STEP_S, ["packets_total", "latency"]))
        lines = frames.at_lines(evidence, "height", span, {"target": "instance"}, LEVELS)
        return digest(lines["value"])

    return work


# --- the plainest SQL ----------------------------------------------------------------------

_RISES = """
    SELECT sid, time_bucket(INTERVAL 60 SECONDS, ts - INTERVAL 1 MILLISECOND) AS step,
           CASE WHEN value < lag(value) OVER w THEN value ELSE value - lag(value) OVER w END AS rise
    FROM samples WHERE sid IN (SELECT sid FROM series WHERE query = '{query}')
    WINDOW w AS (PARTITION BY sid ORDER BY ts)
"""
_PACKETS, _BUCKETS = _RISES.format(query="packets_total"), _RISES.format(query="latency")
_VALUES = """
SELECT sid, time_bucket(INTERVAL 60 SECONDS, ts) AS step, {value} AS answer
FROM samples WHERE sid IN (SELECT sid FROM series WHERE query = 'queue_depth') GROUP BY ALL
"""
PLAIN = {
    "increase": f"SELECT sid, step, sum(rise) AS answer FROM ({_PACKETS}) GROUP BY ALL",
    "by_label": f"""
        SELECT reason, step, sum(rise) AS answer FROM ({_PACKETS})
        JOIN (SELECT sid, labels['reason'] AS reason FROM series) USING (sid) GROUP BY ALL""",
    "last": _VALUES.format(value="arg_max(value, ts)"),
    "highest": _VALUES.format(value="max(value)"),
    "p95": f"""
        WITH counts AS (
            SELECT instance, step, le, sum(rise) AS n FROM ({_BUCKETS})
            JOIN (SELECT sid, labels['instance'] AS instance,
                         replace(labels['le'], '+Inf', 'Infinity')::DOUBLE AS le FROM series)
            USING (sid) GROUP BY ALL
        ),
        beside AS (
            SELECT *, 0.95 * max(n) OVER one AS rank, lag(n) OVER (one ORDER BY le) AS below,
                   lag(le) OVER (one ORDER BY le) AS lower
            FROM counts WINDOW one AS (PARTITION BY instance, step)
        )
        SELECT instance, step, lower + (le - lower) * (rank - below) / (n - below) AS answer
        FROM beside WHERE below < rank AND n >= rank AND isfinite(le)""",
    "sight": """
        SELECT DISTINCT query, time_bucket(INTERVAL 60 SECONDS, ts) AS step, 1 AS answer
        FROM samples JOIN series USING (sid)""",
    "asof": """
        SELECT ts, level, message, line, target, said.value AS answer
        FROM (SELECT * FROM log_lines WHERE level IN ('WARN', 'ERROR')) lines
        ASOF LEFT JOIN (SELECT labels['instance'] AS target, ts, value
                        FROM samples JOIN series USING (sid) WHERE query = 'height') said
        USING (target, ts) ORDER BY ts""",
}


def plain(task: str, folder: str, size: str) -> Work:
    from tbforensics.evidence import Evidence

    evidence = Evidence(Path(folder))
    return lambda: digest(evidence.sql(PLAIN[task])["answer"])


# --- peers ---------------------------------------------------------------------------------


def _parts(folder: str, query: str) -> list[str]:
    return sorted(str(path) for path in Path(folder, "evidence/samples").glob(f"main.{query}.*"))


def _told(folder: str, query: str, label: str) -> dict[int, str]:
    """The value of one label of each series of a query."""
    told = pq.read_table(Path(folder, "evidence/series/all.parquet")).to_pylist()
    return {row["sid"]: dict(row["labels"])[label] for row in told if row["query"] == query}


def _quantiles(counts: Any) -> list[float]:
    """counts: rises of each target and minute (rows) by bound (columns, ascending)."""
    return digest(bucket_quantiles(np.array(counts.columns, float), counts.to_numpy().T, 0.95))


def pandas(task: str, folder: str, size: str) -> Work:
    import pandas as pd

    def samples(query: str) -> Any:
        return pd.concat(map(pd.read_parquet, _parts(folder, query)), ignore_index=True)

    def rises(query: str) -> Any:
        held = samples(query).sort_values(["sid", "ts"])
        risen = held.groupby("sid")["value"].diff()
        held["rise"] = risen.where(~(risen < 0), held["value"])
        held["step"] = (held["ts"] - pd.Timedelta(milliseconds=1)).dt.floor("60s")
        return held[risen.notna()]

    def work() -> list[float]:
        if task == "increase":
            return digest(rises("packets_total").groupby(["sid", "step"])["rise"].sum())
        if task == "by_label":
            held = rises("packets_total")
            reasons = held["sid"].map(_told(folder, "packets_total", "reason"))
            return digest(held.groupby([reasons, "step"])["rise"].sum())
        if task in ("last", "highest"):
            held = samples("queue_depth").sort_values(["sid", "ts"])
            cells = held.groupby(["sid", held["ts"].dt.floor("60s")])["value"]
            return digest(cells.last() if task == "last" else cells.max())
        if task == "p95":
            held = rises("latency")
            les = held["sid"].map({k: float(v) for k, v in _told(folder, "latency", "le").items()})
            nodes = held["sid"].map(_told(folder, "latency", "instance")).rename("instance")
            counts = held.groupby([nodes, "step", les.rename("le")])["rise"].sum().unstack()
            return _quantiles(counts)
        if task == "sight":
            seen = pd.concat([samples(q)[["ts"]].assign(query=q) for q in madeup.QUERIES])
            return digest(seen.groupby(["query", seen["ts"].dt.floor("60s")]).size() > 0)
        lines = pd.read_parquet(Path(folder, "evidence/log_lines"))
        lines = lines[lines["level"].isin(LEVELS)].sort_values("ts")
        heights = samples("height").sort_values("ts")
        heights["target"] = heights["sid"].map(_told(folder, "height", "instance"))
        return digest(pd.merge_asof(lines, heights, on="ts", by="target")["value"])

    return work


def polars(task: str, folder: str, size: str) -> Work:
    import polars as pl

    def samples(query: str) -> Any:
        return pl.scan_parquet(_parts(folder, query))

    def rises(query: str) -> Any:
        risen = pl.col("value").diff().over("sid")
        held = samples(query).sort("sid", "ts").with_columns(risen=risen)
        rise = pl.when(pl.col("risen") < 0).then("value").otherwise("risen")
        step = pl.col("ts").dt.offset_by("-1ms").dt.truncate("60s")
        return held.filter(pl.col("risen").is_not_null()).with_columns(rise=rise, step=step)

    def told(query: str, label: str) -> Any:
        return pl.col("sid").replace_strict(_told(folder, query, label), return_dtype=pl.String)

    def work() -> list[float]:
        total = pl.col("rise").sum()
        if task == "increase":
            answer = rises("packets_total").group_by("sid", "step").agg(total)
        elif task == "by_label":
            held = rises("packets_total").with_columns(reason=told("packets_total", "reason"))
            answer = held.group_by("reason", "step").agg(total)
        elif task in ("last", "highest"):
            cells = samples("queue_depth").group_by("sid", pl.col("ts").dt.truncate("60s"))
            value = pl.col("value").sort_by("ts").last() if task == "last" else pl.max("value")
            answer = cells.agg(rise=value)
        elif task == "p95":
            le = told("latency", "le").cast(pl.Float64)
            held = rises("latency").with_columns(instance=told("latency", "instance"), le=le)
            counts = held.group_by("instance", "step", "le").agg(total).sort("le").collect()
            wide = counts.pivot("le", index=["instance", "step"], values="rise")
            return _quantiles(wide.drop("instance", "step").to_pandas())
        elif task == "sight":
            minute = pl.col("ts").dt.truncate("60s")
            seen = [samples(q).select(minute, query=pl.lit(q)) for q in madeup.QUERIES]
            answer = pl.concat(seen).unique().with_columns(rise=pl.lit(1.0))
        else:
            kept = pl.col("level").is_in(LEVELS)
            lines = pl.scan_parquet(Path(folder, "evidence/log_lines")).filter(kept).sort("ts")
            heights = samples("height").with_columns(target=told("height", "instance")).sort("ts")
            joined = lines.join_asof(heights, on="ts", by="target", check_sortedness=False)
            answer = joined.with_columns(rise="value")
        return digest(answer.select("rise").collect()["rise"].to_numpy())

    return work


# --- the table -----------------------------------------------------------------------------


def row(task: str, measured: dict[str, list[Measured]]) -> Sequence[object]:
    ours_said = measured["ours"][0].answer
    peers: list[object] = []
    for runs in measured.values():
        same = all(_near(run.answer, ours_said) for run in runs)
        wall = f"{median(runs):.2f} s, {median(runs, 'peak_mb'):,.0f} MB"
        peers.append(wall if same else f"{wall} (other answer: {runs[0].answer})")
    cpu = median(measured["ours"], "cpu_s") / median(measured["plain"], "cpu_s")
    return [TASKS[task], ratio(measured, "ours", to="plain"), cpu, *peers]


def _near(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(math.isclose(a, b, rel_tol=1e-6) for a, b in pairs)  # sums in another order


def stored(folder: Path) -> str:
    """How much room a sample takes in the parts, by query and in all."""
    sizes: list[tuple[str, int, int]] = []
    for query in madeup.QUERIES:
        parts = [Path(part) for part in _parts(str(folder), query)]
        count = sum(pq.read_metadata(part).num_rows for part in parts)
        sizes.append((query, count, sum(part.stat().st_size for part in parts)))
    sizes.append(("all", sum(n for _, n, _ in sizes), sum(size for *_, size in sizes)))
    rows = [[query, f"{count:,}", size / count] for query, count, size in sizes]
    return table(["query", "samples", "bytes a sample"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=madeup.SIZES, default="S")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--runner", choices=RUNNERS, action="append", help="beside ours and plain")
    parser.add_argument("--keep", type=Path, help="where to make the evidence, or find it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="analysis-") as temporary:
        folder = given.keep or Path(temporary)
        if not (folder / "evidence").is_dir():
            madeup.write(folder, madeup.SIZES[given.size])
        print(stored(folder), end="\n\n")
        lines = []
        names = [name for name in RUNNERS if name in {"ours", "plain", *(given.runner or RUNNERS)}]
        for task in given.task or TASKS:
            commands = {
                name: call("benchmarks.analysis", name, task, str(folder), given.size)
                for name in names
            }
            lines.append(row(task, rounds(commands, given.rounds)))
        print(table(["task", "ours / plain", "of CPU", *names], lines))


if __name__ == "__main__":
    main()
