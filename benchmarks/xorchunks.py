"""Samples out of one Prometheus reply, by the way they came: JSON, or streamed XOR chunks.

    python -m benchmarks.xorchunks [--series 500] [--hours 6] [--rounds 5]

A real Prometheus is filled with series as a scraper leaves them (counters, gauges, sums, flags;
times a few milliseconds early or late) and asked for all of them by the query API and by remote
read. Only the decoding of these two bodies is measured, to columns of times and values; of rows,
to Arrow tables by series and time. All runners must give the same samples.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import statistics
import sys
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.append(str(Path(__file__).parent.parent / "tests"))  # the server of the tests
import prometheus_server

from benchmarks.sidebyside import call, median, ratio, rounds, table
from tbforensics.model import Capture, Window
from tbforensics.reading import promjson, promrows, remoteframes, remoteread, xorchunks

START_MS = 1_773_136_800_000  # 2026-03-10T10:00:00Z
SCRAPE_MS = 15_000

Columns = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
Answer = tuple[int, int, int]  # how many samples, and sums of their times and their values' bits


def _answer(times: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> Answer:
    return len(times), int((times - START_MS).sum()), int((values.view(np.int64) >> 8).sum())


# --- runners -------------------------------------------------------------------------------


def orjson_loop(folder: str) -> Callable[[], Answer]:
    """The plain way: each sample a list of a float and a text, each text to a float."""
    import orjson

    return _looping(orjson.loads, Path(folder, "body.json").read_bytes())


def pysimdjson_loop(folder: str) -> Callable[[], Answer]:
    """pysimdjson, to Python objects."""
    import simdjson  # type: ignore[import-not-found, unused-ignore]

    return _looping(simdjson.loads, Path(folder, "body.json").read_bytes())


def _looping(loads: Callable[[bytes], object], body: bytes) -> Callable[[], Answer]:
    def work() -> Answer:
        result = loads(body)["data"]["result"]  # type: ignore[index]
        pairs = [pair for series in result for pair in series["values"]]
        times = np.array([round(seconds * 1000) for seconds, _ in pairs])
        return _answer(times, np.array([float(text) for _, text in pairs]))

    return work


def msgspec_structs(folder: str) -> Callable[[], Answer]:
    """Decoded straight to typed objects, texts to floats on the way."""
    import msgspec

    series = msgspec.defstruct("Series", [("values", list[tuple[float, float]])])
    data = msgspec.defstruct("Data", [("result", list[series])])  # type: ignore[valid-type]
    reply_type = msgspec.defstruct("Reply", [("data", data)])
    decoder = msgspec.json.Decoder(reply_type, strict=False)
    body = Path(folder, "body.json").read_bytes()

    def work() -> Answer:
        reply = decoder.decode(body)
        both = np.array([pair for series in reply.data.result for pair in series.values])
        return _answer(np.rint(both[:, 0] * 1000).astype(np.int64), both[:, 1].copy())

    return work


def promjson_numbers(folder: str) -> Callable[[], Answer]:
    body = Path(folder, "body.json").read_bytes()

    def work() -> Answer:
        _, times, values, _ = promjson.numbers(promjson.read_reply(body).items)
        return _answer(times, values)

    return work


def xor_chunks(folder: str) -> Callable[[], Answer]:
    """The chunks alone, as they lie in the frames."""
    from tbforensics.reading import prompb

    with Path(folder, "body.chunks").open("rb") as body:
        chunks = [
            chunk.data
            for frame in remoteframes.frames(body)
            for series in prompb.ChunkedReadResponse.FromString(frame.payload).chunked_series
            for chunk in series.chunks
        ]

    def work() -> Answer:
        found = xorchunks.decode(chunks)
        return _answer(found.times, found.values)

    return work


def json_rows(folder: str) -> Callable[[], Answer]:
    body = Path(folder, "body.json").read_bytes()
    capture = _capture(folder)
    return lambda: _of_rows(
        promrows.tables(capture, promjson.read_reply(body), samples=capture.role)
    )


def chunk_rows(folder: str) -> Callable[[], Answer]:
    from tbforensics.reading import prompb  # noqa: F401  # imports are not measured

    body, capture = Path(folder, "body.chunks").read_bytes(), _capture(folder)
    return lambda: _of_rows(remoteread.tables(capture, io.BytesIO(body)))


def _of_rows(tables: Iterator[tuple[str, object]]) -> Answer:
    answers = [
        _answer(
            found.column("ts").to_numpy().astype(np.int64),  # type: ignore[attr-defined]
            found.column("value").to_numpy(),  # type: ignore[attr-defined]
        )
        for name, found in tables
        if name == "samples"
    ]
    count, times, values = (sum(answer[n] for answer in answers) for n in range(3))
    return count, times, values


def _capture(folder: str) -> Capture:
    start = datetime.fromtimestamp(START_MS / 1000, UTC)
    hours = float(Path(folder, "hours").read_text())
    window = Window(start, start + timedelta(hours=hours))
    return Capture("p", "q", "samples", {}, start, window, 200, "0" * 64)


# --- data ----------------------------------------------------------------------------------


def fill(folder: Path, series: int, hours: int) -> None:
    """body.json and body.chunks, for the same samples."""
    (folder / "hours").write_text(str(hours))
    end_ms = START_MS + hours * 3_600_000
    with prometheus_server.serve(folder / "server", _history(series, hours)) as server:
        asked = {"query": f'{{job="node"}}[{hours}h]', "time": str((end_ms - 1) / 1000)}
        url = f"{server.url}/api/v1/query?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url) as reply:
            (folder / "body.json").write_bytes(reply.read())
        question = remoteread.question([("job", "=", "node")], START_MS, end_ms - 1)
        url, headers = f"{server.url}/api/v1/read", dict(remoteread.HEADERS)
        with urllib.request.urlopen(urllib.request.Request(url, question, headers)) as reply:
            (folder / "body.chunks").write_bytes(reply.read())


def _history(series: int, hours: int) -> str:
    random = np.random.default_rng(7)
    even = np.arange(START_MS + 5000, START_MS + hours * 3_600_000 - 5000, SCRAPE_MS)
    count = len(even)
    families: dict[str, Callable[[], npt.NDArray[np.float64]]] = {
        "flag": lambda: np.ones(count),
        "packets_total": lambda: random.poisson(3.0, count).cumsum().astype(float),
        "busy_seconds_total": lambda: random.exponential(4.0, count).cumsum(),
        "queue": lambda: random.integers(0, 200, count).astype(float),
        "bytes_total": lambda: random.integers(0, 1 << 20, count).cumsum().astype(float),
    }
    history = {}
    for place, (family, values) in enumerate(families.items()):
        history[family] = {}
        for target in range(place, series, len(families)):
            times = even + random.integers(-6, 7, count) + target % 1000
            pairs = zip(times.tolist(), values().tolist(), strict=True)
            history[family][f'job="node",instance="node-{target:04}:9100"'] = pairs
    return prometheus_server.openmetrics(history)


RUNNERS = {
    "orjson, a loop": ("orjson_loop", "body.json"),
    "pysimdjson, a loop": ("pysimdjson_loop", "body.json"),
    "msgspec": ("msgspec_structs", "body.json"),
    "promjson.numbers": ("promjson_numbers", "body.json"),
    "xorchunks.decode": ("xor_chunks", "body.chunks"),
    "rows from JSON": ("json_rows", "body.json"),
    "rows from chunks": ("chunk_rows", "body.chunks"),
}
NEEDS = {"pysimdjson, a loop": "simdjson", "msgspec": "msgspec"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--series", type=int, default=500)
    parser.add_argument("--hours", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    names = [n for n in RUNNERS if n not in NEEDS or importlib.util.find_spec(NEEDS[n])]
    with tempfile.TemporaryDirectory(prefix="xorchunks-") as folder:
        fill(Path(folder), asked.series, asked.hours)
        runners = {n: call("benchmarks.xorchunks", RUNNERS[n][0], folder) for n in names}
        measured = rounds(runners, asked.rounds)
        sizes = {n: Path(folder, RUNNERS[n][1]).stat().st_size / 1e6 for n in names}
    answers = {str(run.answer) for runs in measured.values() for run in runs}
    assert len(answers) == 1, f"runners disagree: {answers}"
    count = measured[names[0]][0].answer[0]
    rows = []
    for name in names:
        speed = count / 1e6 / statistics.median(run.cpu_s for run in measured[name])
        times = 1 / ratio(measured, name, to=names[0])
        rows.append([name, sizes[name], speed, times, median(measured[name], "peak_mb")])
    print(f"{count:,} samples of {asked.series} series\n")
    print(table(["", "body MB", "M samples/s of CPU", "x orjson", "peak MB"], rows))


if __name__ == "__main__":
    main()
