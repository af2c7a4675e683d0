"""What every row works on: a real Prometheus, a stand-in node, project folders, the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from prometheus_server import Server, serve
from standin_node import NodeState, StandInNode

from examples import quic_failure as scenario
from tbforensics.case import prove
from tbforensics.reading import remoteread
from torture import ROOT
from torture.proxy import Plan, Proxy, in_text, proxy, question_key
from torture.table import Counts

COMMAND = Path(sys.executable).with_name("tbforensics")
ID = "INC-torture"
# Fewer questions than the whole example, of every type of source.
ASKED = {
    "incident_id": ID,
    "kind": "quic_failure",
    "start": "2026-11-20T10:20:00Z",
    "end": "2026-11-20T10:40:00Z",
    "baseline_start": "2026-11-20T10:00:00Z",
    "baseline_end": "2026-11-20T10:20:00Z",
    "step": "30s",
}
# Seconds in place of minutes; everything else as the sources have it.
HASTE = {
    "connect_s": 3.0, "read_s": 5.0, "whole_reply_s": 6.0, "retries": 1, "backoff_s": 0.05,
    "longest_wait_s": 2.0, "ban_s": 0.2, "requests_per_s": 200.0,
}  # fmt: skip
_OURS = "TBFORENSICS_"


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


@dataclass
class Home:
    """A project of its own for one row, and the two proxies that its sources lead to."""

    folder: Path
    prometheus: Proxy
    node: Proxy
    given: dict[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> Path:
        return self.folder / "parameters" / f"{ID}.yaml"

    @property
    def case(self) -> Path:
        return self.folder / "incidents" / ID

    @property
    def partial(self) -> Path:
        return self.folder / "incidents" / f".{ID}.collecting"

    def write(self, **changes: Any) -> None:
        """The parameters file, with what a row wants otherwise."""
        self.given |= changes
        self.parameters.parent.mkdir(exist_ok=True)
        plain = json.loads(json.dumps(self.given))  # what is there twice would become an alias
        self.parameters.write_text(yaml.safe_dump(plain))

    def source(self, name: str, **changes: Any) -> None:
        sources = {**self.given["sources"], name: {**self.given["sources"][name], **changes}}
        self.write(sources=sources)

    def asked(self) -> int:
        return len(self.prometheus.asked) + len(self.node.asked)

    def answered(self) -> set[str]:
        """The questions that the journal of an interrupted collection holds an answer to."""
        return {
            _key(capture["request"])
            for capture in self._journal()
            if capture["sha256"] and not capture["error"]
        }

    def forget_what_was_on_its_way(self) -> None:
        """After a kill: what was sent and had not been put on record was never received."""
        on_record = self._journal()
        if self.case.exists():
            on_record += [*self.manifest()["captures"], *self.manifest()["earlier"]]
        kept = {capture["sha256"] for capture in on_record}
        for sent in (self.prometheus.sent, self.node.sent):
            for sha256 in sent.keys() - kept:
                del sent[sha256]

    def _journal(self) -> list[dict[str, Any]]:
        journal = self.partial / "captures.jsonl"
        captures = []
        for line in journal.read_bytes().split(b"\n") if journal.exists() else ():
            with suppress(ValueError):
                captures.append(json.loads(line))
        return captures

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.case / "manifest.json").read_bytes())  # type: ignore[no-any-return]

    def failed(self, source: str = "prometheus") -> list[dict[str, Any]]:
        captures = self.manifest()["captures"]
        return [c for c in captures if c["source"] == source and c["error"]]

    def errors(self, source: str = "prometheus") -> list[str]:
        return [capture["error"] for capture in self.failed(source)]

    def files(self) -> Iterator[Path]:
        yield from (path for path in self.folder.rglob("*") if path.is_file())


def _key(request: Mapping[str, Any]) -> str:
    path = urlsplit(str(request.get("url", ""))).path or "/"
    params = {**request.get("params", {}), **request.get("form", {})}
    if told := request.get("remote_read"):
        first_ms, last_ms = (round(float(told[name]) * 1000) for name in ("start", "end"))
        params["query"] = in_text(remoteread.question(told["matchers"], first_ms, last_ms))
    return question_key(str(request.get("method")), path, params, request.get("json"))


class Bench:
    """The servers, started when the first row needs them, and a folder for everything."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._node: StandInNode | None = None

    def __enter__(self) -> Bench:
        self.folder = Path(
            self._stack.enter_context(tempfile.TemporaryDirectory(prefix="torture-"))
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def prometheus(self) -> Server:
        with self._lock:
            if self._server is None:
                history = scenario.history()
                self._server = self._stack.enter_context(
                    serve(self.folder / "tsdb", history, rules=scenario.RULES)
                )
            return self._server

    @property
    def node(self) -> StandInNode:
        with self._lock:
            if self._node is None:
                state = NodeState(**scenario.node_state())
                # Several rows ask it at once from one address.
                self._node = self._stack.enter_context(StandInNode(state, tokens_per_s=10_000.0))
            return self._node

    @contextmanager
    def home(
        self,
        plan: Plan = lambda asked: None,
        *,
        node_plan: Plan = lambda asked: None,
        upstream: str = "",
        place: Path | None = None,
        **changes: Any,
    ) -> Iterator[Home]:
        """A project whose sources lead through proxies. place: where, for a disk of its own."""
        with (
            proxy(upstream or self.prometheus.url, plan) as to_prometheus,
            proxy(self.node.url, node_plan) as to_node,
        ):
            folder = Path(tempfile.mkdtemp(dir=place or self.folder))
            (folder / "incidents").mkdir()
            scenario.write_dumps(folder / "dumps")
            home = Home(folder, to_prometheus, to_node)
            sources = {
                "dumps": {"type": "logs", "path": "dumps"},
                "node": {"type": "jsonrpc", "url": to_node.url},
                "node-logs": {"type": "logs", "url": to_node.url},
                "prometheus": {"type": "prometheus", "url": to_prometheus.url},
            }
            home.write(**{**ASKED, "sources": sources, **changes})
            yield home
            shutil.rmtree(folder, ignore_errors=True)

    def start(
        self,
        *words: str | Path,
        launch: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        before: Any = None,
    ) -> subprocess.Popen[bytes]:
        """The command in a process of its own. launch: see `torture.launch`; None for as it is."""
        how = [str(COMMAND)]
        if launch is not None:
            how = [sys.executable, "-m", "torture.launch", json.dumps(dict(launch))]
        clean = {
            name: value
            for name, value in os.environ.items()
            if not (name.startswith(_OURS) or name.lower().endswith("_proxy"))
        }
        return subprocess.Popen(
            [*how, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**clean, **(environment or {})},
            preexec_fn=before,
        )

    def run(self, *words: str | Path, timeout_s: float = 150, **how: Any) -> Ran:
        """As `start`, to its end."""
        running = self.start(*words, **how)
        try:
            out, err = running.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            running.kill()
            out, err = running.communicate()
            raise AssertionError(f"hung for {timeout_s:g} s: {(out + err).decode()}") from None
        return Ran(running.returncode, out.decode("utf-8", "replace"), err.decode(errors="replace"))

    def collect(self, home: Home, command: str = "collect", **how: Any) -> Ran:
        how.setdefault("launch", {"manners": HASTE})
        return self.run(command, home.parameters, **how)

    def holds(self, home: Home, counts: Counts | None = None) -> None:
        """The case proves itself; with counts also made anew from `raw/`, with each whole reply."""
        broken = [c for c in prove(home.case, recompute=counts is not None) if not c.holds]
        assert not broken, f"verify says: {broken}"
        left = [path.name for path in (home.folder / "incidents").iterdir() if path != home.case]
        assert not left, f"left behind: {left}"
        if counts is not None:
            sent = {**home.prometheus.sent, **home.node.sent}
            raw = {path.stem for path in (home.case / "raw").glob("*.zst")}
            counts.replies += len(sent)
            counts.lost += sum(length for sha256, length in sent.items() if sha256 not in raw)
