"""A real VictoriaMetrics on a free loopback port, over a history that is imported into it."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from prometheus_server import Samples, free_port, number


def installed() -> bool:
    return bool(shutil.which("victoria-metrics"))


@contextmanager
def serve(folder: Path, families: Mapping[str, Mapping[str, Samples]]) -> Iterator[str]:
    """Its address, until the block ends."""
    url = f"http://127.0.0.1:{free_port()}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "victoria-metrics",
                f"-storageDataPath={folder / 'data'}",
                f"-httpListenAddr={url.removeprefix('http://')}",
                "-retentionPeriod=100y",
                "-memory.allowedBytes=128MB",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", "GOMAXPROCS": "2"},
        )
    try:
        _answers(f"{url}/health", b"OK")
        lines = [
            f"{name}{{{labels}}} {number(value)} {ms}\n"
            for name, series in families.items()
            for labels, samples in series.items()
            for ms, value in samples
        ]
        text = "".join(lines).encode()
        urllib.request.urlopen(f"{url}/api/v1/import/prometheus", text).close()
        urllib.request.urlopen(f"{url}/internal/force_flush").close()
        # What was imported is found only once its index is flushed too, a second or so later.
        for name in families:
            _answers(f"{url}/api/v1/label/__name__/values?start=0", f'"{name}"'.encode())
        yield url
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(url: str, wanted: bytes) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(url, timeout=1) as reply:
                if wanted in reply.read():
                    return
        except OSError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"VictoriaMetrics does not answer {wanted!r} at {url}")
