"""A real Prometheus on a free loopback port, over a history that is made for it.

In a test:   `with serve(tmp_path, history) as prometheus: ... prometheus.url`
By hand:     `python tests/prometheus_server.py history.om` serves until it is ended.

`history` is OpenMetrics text with a time on every sample and `# EOF` at the end.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CONFIG = """\
global: {scrape_interval: 1h, evaluation_interval: 15s}
rule_files: [rules.yml]
scrape_configs:
  - job_name: itself
    static_configs: [{targets: ["127.0.0.1:%d"]}]
"""
RULES = """\
groups:
  - name: chain-health
    rules:
      - alert: NoBlocks
        expr: increase(blocks_total[5m]) == 0
        for: 2m
        labels: {severity: page}
"""

Samples = Iterable[tuple[int, float]]  # (ms since the epoch, value)


@dataclass
class Server:
    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()

    def log(self) -> str:
        return (self.folder / "prometheus.log").read_text(errors="replace")


def installed() -> bool:
    return bool(shutil.which("prometheus") and shutil.which("promtool"))


def openmetrics(families: Mapping[str, Mapping[str, Samples]]) -> str:
    """History from {family: {labels: samples}}; labels as they are written, without braces."""
    lines = []
    for family, series in families.items():
        lines.append(f"# TYPE {family} unknown")
        for labels, samples in series.items():
            name = f"{family}{{{labels}}}" if labels else family
            lines += [f"{name} {number(value)} {_seconds(ms)}" for ms, value in samples]
    return "\n".join([*lines, "# EOF", ""])


def number(value: float) -> str:
    return repr(float(value)).replace("inf", "Inf").replace("nan", "NaN")


def _seconds(ms: int) -> str:
    return f"{ms // 1000}.{ms % 1000:03d}"


@contextmanager
def serve(
    folder: Path,
    history: str,
    *flags: str,
    rules: str = RULES,
    config: str = CONFIG,
    port: int = 0,
) -> Iterator[Server]:
    """Load a history and answer for it until the block ends. config: with a place for a port."""
    server = start(folder, history, *flags, rules=rules, config=config, port=port)
    try:
        yield server
    finally:
        stop(server)


def start(
    folder: Path,
    history: str,
    *flags: str,
    rules: str = RULES,
    config: str = CONFIG,
    port: int = 0,
) -> Server:
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "history.om"
    text.write_text(history)
    if not history.startswith("# EOF"):
        subprocess.run(
            ["promtool", "tsdb", "create-blocks-from", "openmetrics", text, folder / "data"],
            check=True,
            capture_output=True,
        )
    (folder / "rules.yml").write_text(rules)
    for _ in range(3):  # another process may take the free port first
        server = _started(folder, flags, config, port or free_port())
        if _ready(server):
            return server
        stop(server)
    raise RuntimeError(f"Prometheus does not start:\n{server.log()}")


def _started(folder: Path, flags: tuple[str, ...], config: str, port: int) -> Server:
    (folder / "prometheus.yml").write_text(config % port)
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--storage.tsdb.retention.time=100y",
                f"--web.listen-address=127.0.0.1:{port}",
                *flags,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", "GOMAXPROCS": "2"},
        )
    return Server(f"http://127.0.0.1:{port}", folder, process)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _ready(server: Server) -> bool:
    for _ in range(300):
        if server.process.poll() is not None:
            return False
        try:
            with urllib.request.urlopen(f"{server.url}/-/ready", timeout=1) as reply:
                return bool(reply.status == 200)
        except OSError:
            time.sleep(0.05)
    return False


def stop(server: Server) -> None:
    server.process.terminate()
    try:
        server.process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        server.kill()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that the server ends with us
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder), Path(sys.argv[1]).read_text()) as server,
    ):
        print(server.url, flush=True)
        server.process.wait()


if __name__ == "__main__":
    main()
