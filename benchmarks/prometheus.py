"""Samples of one selector from a real Prometheus into something that SQL can be asked of.

    python -m benchmarks.prometheus --size M --rounds 5

`curl` downloads the JSON of `query_range` to nothing and is the floor of whoever reads JSON. The
peers end with a DuckDB table. Ours end with a case: every reply archived under its hash, and
Parquet parts with the views over them; what a server is always asked beside the selector (its
flags, rules, `up`, ...) is asked and kept too. Both our roads must give the same rows by digest.

The server's peak is that of a fresh server which answers one runner only.
"""

from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.sidebyside import ROOT, Measured, call, median, ratio, rounds, table

sys.path.append(str(ROOT / "tests"))

from prometheus_server import Server, start, stop

START = datetime(2026, 3, 10, tzinfo=UTC)
SCRAPE_MS, BLOCK_S = 15_000, 2 * 3600
FLOOR = "curl query_range"
RUNNERS = {
    "prometheus-pandas": "prometheus_pandas",
    "prometheus-api-client": "api_client",
    "urllib3 + orjson": "plain",
    "ours, JSON": "ours_json",
    "ours, remote read": "ours_read",
}
Work = Callable[[], Any]


@dataclass(frozen=True)
class Size:
    series: int
    hours: int
    peers: bool = True  # beyond some size they need more memory than most machines have

    @property
    def end(self) -> datetime:
        return START + timedelta(hours=self.hours)


SIZES = {"S": Size(500, 6), "M": Size(1000, 24), "B": Size(5000, 24, peers=False)}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=SIZES, default="S")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], help="runners whose names hold a word")
    parser.add_argument("--data", type=Path, help="keep the history there for the next time")
    given = parser.parse_args(arguments)
    size = SIZES[given.size]
    chosen = [name for name in RUNNERS if any(word in name for word in given.only or [""])]
    if not size.peers:
        chosen = [name for name in chosen if name.startswith("ours")]
    with tempfile.TemporaryDirectory(prefix="tbforensics-bench-") as temporary:
        data = (given.data or Path(temporary)) / f"history-{given.size}"
        make_history(data, size)
        names = [FLOOR, *chosen]
        peaks = {}
        for name in names:
            with served(data, Path(temporary)) as server:
                (only,) = rounds({name: _command(name, server, given.size)}, 1)[name]
                peaks[name] = _peak_mb(server.process.pid), only.answer
        with served(data, Path(temporary)) as server:
            runners = {name: _command(name, server, given.size) for name in names}
            measured = rounds(runners, given.rounds)
    print(f"{size.series:,} series x {size.hours} h, {given.rounds} rounds\n")
    print(table(*_table(measured, {name: mb for name, (mb, _) in peaks.items()})))
    return _same_rows(measured)


def _command(name: str, server: Server, size: str) -> list[str]:
    runner = RUNNERS.get(name, "curl")
    return call("benchmarks.prometheus", "run", runner, server.url, size, server.process.pid)


def _table(
    measured: dict[str, list[Measured]], peaks: dict[str, float]
) -> tuple[Sequence[str], list[Sequence[object]]]:
    head = (
        *("runner", "wall s", f"x {FLOOR}", "faster than prometheus-pandas"),
        *("CPU s", "server CPU s", "peak MB", "server peak MB", "wire MB", "samples"),
    )
    lines = []
    for name, runs in measured.items():
        slowest = "prometheus-pandas"
        faster = ratio(measured, slowest, to=name) if slowest in measured else float("nan")
        said = runs[-1].answer
        server_s = sorted(run.answer["server_cpu_s"] for run in runs)[len(runs) // 2]
        lines.append(
            (
                *(name, median(runs), ratio(measured, name, to=FLOOR), faster),
                *(median(runs, "cpu_s"), server_s, median(runs, "peak_mb"), peaks[name]),
                *(said["wire_mb"], f"{said['samples']:,}"),
            )
        )
    return head, lines


def _same_rows(measured: dict[str, list[Measured]]) -> int:
    ours = {
        n: {run.answer["digest"] for run in runs} for n, runs in measured.items() if "ours" in n
    }
    digests = set().union(*ours.values())
    print(f"\nrows of ours by digest: {', '.join(sorted(digests))}")
    return len(digests) > 1


# --- the server --------------------------------------------------------------------------------


@contextmanager
def served(data: Path, folder: Path) -> Iterator[Server]:
    """A fresh server over the history."""
    home = Path(tempfile.mkdtemp(dir=folder))
    (home / "data").symlink_to(data.resolve())
    server = start(home, "# EOF\n")
    try:
        yield server
    finally:
        stop(server)
        shutil.rmtree(home)


def make_history(data: Path, size: Size) -> None:
    """Blocks of two hours: counters of whole numbers, a tenth gauges, times that jitter."""
    if data.exists():
        return
    making = data.with_name(f".{data.name}-making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=making.parent) as scratch:
        for block in range(size.hours * 3600 // BLOCK_S):
            text = Path(scratch) / "block.om"
            _write_block(text, block, size)
            command = ["promtool", "tsdb", "create-blocks-from", "openmetrics", text, making]
            subprocess.run(command, check=True, capture_output=True)
    making.rename(data)


def _write_block(path: Path, block: int, size: Size) -> None:
    first_ms = round(START.timestamp() * 1000) + block * BLOCK_S * 1000
    count = BLOCK_S * 1000 // SCRAPE_MS
    with path.open("w") as file:
        file.write("# TYPE bench_requests unknown\n")
        for series in range(size.series):
            dice = random.Random(series * 1000 + block)
            offset = random.Random(series // 50).randrange(SCRAPE_MS - 20) + 10
            labels = f'instance="node-{series // 50:03}:9100",job="node",peer="{series % 50:02}"'
            times = [first_ms + offset + n * SCRAPE_MS + dice.randint(-6, 6) for n in range(count)]
            if series % 10 == 9:
                values = [f"{dice.random() * 100:.3f}" for _ in range(count)]
            else:
                values, at = [], block * count * 3
                for _ in range(count):
                    at += int(dice.expovariate(0.35))
                    values.append(str(at))
            pairs = zip(values, times, strict=True)
            file.writelines(
                f"bench_requests{{{labels}}} {value} {ms // 1000}.{ms % 1000:03}\n"
                for value, ms in pairs
            )
        file.write("# TYPE up unknown\n")
        for target in range(-(-size.series // 50)):
            offset = random.Random(target).randrange(SCRAPE_MS - 20) + 10
            file.writelines(
                f'up{{instance="node-{target:03}:9100",job="node"}} 1 {ms // 1000}.{ms % 1000:03}\n'
                for ms in range(first_ms + offset, first_ms + BLOCK_S * 1000, SCRAPE_MS)
            )
        file.write("# EOF\n")


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


# --- runners -----------------------------------------------------------------------------------


def run(runner: str, url: str, size: str, pid: int) -> Work:
    """One runner, ready to begin."""
    work: Work = {
        "curl": curl,
        "prometheus_pandas": prometheus_pandas,
        "api_client": api_client,
        "plain": plain,
        "ours_json": ours_json,
        "ours_read": ours_read,
    }[runner](url, SIZES[size])

    def measured() -> Work:
        before = _cpu_s(pid)
        answer = work()
        server_cpu_s = _cpu_s(pid) - before

        def told() -> dict[str, Any]:
            said = answer() if callable(answer) else answer
            return {"wire_mb": float("nan"), "digest": "", **said, "server_cpu_s": server_cpu_s}

        return told

    return measured


def range_url(url: str, size: Size) -> str:
    asked = {
        "query": "bench_requests",
        "start": str(START.timestamp()),
        "end": str(size.end.timestamp() - SCRAPE_MS / 1000),
        "step": str(SCRAPE_MS / 1000),
    }
    return f"{url}/api/v1/query_range?{urllib.parse.urlencode(asked)}"


def curl(url: str, size: Size) -> Work:
    command = ["curl", "-sSf", "-o", "/dev/null", "-w", "%{size_download}", range_url(url, size)]

    def work() -> dict[str, Any]:
        said = subprocess.run(command, check=True, capture_output=True).stdout
        return {"samples": size.series * size.hours * 240, "wire_mb": int(said) / 1e6}

    return work


def prometheus_pandas(url: str, size: Size) -> Work:
    import duckdb
    from prometheus_pandas.query import Prometheus

    def work() -> dict[str, Any]:
        last = size.end - timedelta(milliseconds=SCRAPE_MS)
        frame = Prometheus(url).query_range("bench_requests", START, last, SCRAPE_MS / 1000)
        duckdb.connect().execute("CREATE TABLE samples AS SELECT * FROM frame")
        return {"samples": int(frame.count().sum())}

    return work


def api_client(url: str, size: Size) -> Work:
    import duckdb
    from prometheus_api_client import MetricRangeDataFrame, PrometheusConnect

    def work() -> dict[str, Any]:
        last = size.end - timedelta(milliseconds=SCRAPE_MS)
        step = str(SCRAPE_MS / 1000)
        found = PrometheusConnect(url).custom_query_range("bench_requests", START, last, step)
        frame = MetricRangeDataFrame(found).reset_index()
        duckdb.connect().execute("CREATE TABLE samples AS SELECT * FROM frame")
        return {"samples": len(frame)}

    return work


def plain(url: str, size: Size) -> Work:
    """What a careful programmer writes in ten lines."""
    import duckdb
    import orjson
    import pyarrow as pa
    import urllib3

    def work() -> dict[str, Any]:
        headers = {"Accept-Encoding": "identity"}
        body = urllib3.PoolManager().request("GET", range_url(url, size), headers=headers).data
        result = orjson.loads(body)["data"]["result"]
        numbers = [len(series["values"]) for series in result]
        sids = [n for n, count in enumerate(numbers) for _ in range(count)]
        columns = {
            "sid": pa.array(sids),
            "ts": pa.array([time for series in result for time, _ in series["values"]]),
            "value": pa.array([float(text) for series in result for _, text in series["values"]]),
        }
        rows = pa.table(columns)
        duckdb.connect().execute("CREATE TABLE samples AS SELECT * FROM rows")
        return {"samples": len(rows), "wire_mb": len(body) / 1e6}

    return work


def ours_json(url: str, size: Size) -> Work:
    return _ours(url, size, avoid=("remote_read",))


def ours_read(url: str, size: Size) -> Work:
    return _ours(url, size)


def _ours(url: str, size: Size, **options: Any) -> Work:
    from tbforensics import build, evidence
    from tbforensics.archive import Archive
    from tbforensics.model import Incident, Query, SourceConfig, Window
    from tbforensics.sources.prometheus import SOURCE, Options
    from tbforensics.wire import Client

    middle = START + (size.end - START) / 2
    window, baseline = Window(middle, size.end), Window(START, middle)
    config = SourceConfig("main", "prometheus", url)
    incident = Incident("x", "x", "x", window, baseline, 30.0, (config,), {}, (), "", "")
    folder = Path(tempfile.mkdtemp(prefix="tbforensics-bench-case-"))

    def work() -> dict[str, Any]:
        client = Client(config, Archive(folder), manners=SOURCE.manners)
        query = Query("requests", "prometheus", "bench_requests")
        with build.making(folder, incident) as parts:
            captures = []
            for capture in SOURCE.fetch([query], incident, Options(**options), client):
                captures.append(capture)
                parts.add(capture)
            parts.finish(captures)
        evidence.write_views(folder)
        case = evidence.Evidence(folder)
        (counted,) = case.records(_COUNTED)
        assert all(capture.usable for capture in captures if capture.role == "samples")
        asked = sum(capture.bytes for capture in captures if capture.query == "requests")
        found = {"samples": counted["n"], "wire_mb": asked / 1e6, "asked": len(captures)}

        def digested() -> dict[str, Any]:
            (digest,) = case.records(_DIGEST)
            shutil.rmtree(folder)
            return {**found, "digest": str(digest["digest"])}

        return digested

    return work


_COUNTED = "SELECT count(*) AS n FROM samples JOIN series USING (sid) WHERE query = 'requests'"
_DIGEST = "SELECT bit_xor(hash(sid, epoch_ms(ts), value)) AS digest FROM samples"


if __name__ == "__main__":
    sys.exit(main())
