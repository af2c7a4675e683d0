"""Bytes that nobody thought of: `python -m torture.fuzz TARGET [examples [seed]]`.

Each target runs in a process of its own, with a limit on memory and on the time of one example.
What is allowed is an error of ours, where the target says so; anything else is a failure, and so
is an example that hangs. Prints one line of JSON.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tbforensics import manifest, parameters, parcel, plugins, scaffold, signing, theblock
from tbforensics.alerts import rules as alertrules
from tbforensics.archive import Archive
from tbforensics.credentials import read_credentials
from tbforensics.errors import EvidenceError, ForensicsError, ParametersError
from tbforensics.model import Capture, Window
from tbforensics.promql import text as promql
from tbforensics.reading import loglines, promjson, remoteframes, remoteread, xorchunks
from tbforensics.reading.envelopes import Keys, Shut, unseal
from tbforensics.reading.logrows import LineError
from torture import ROOT

FIXTURES = ROOT / "tests" / "fixtures"
SLOWEST_S = 10.0  # of one example; a page of 20 KB is read in milliseconds
ROOM_BYTES = 1 << 30  # of memory, beside what the process has when it begins
_LONGEST_SEED_BYTES = 20_000
_DAY = datetime(2026, 11, 20, tzinfo=UTC)
WINDOW = Window(_DAY, _DAY.replace(hour=23))

# --- bytes ---------------------------------------------------------------------------------------

_ODD = [
    *(b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\\ud800", b'"', b"\\", b"\n", b"\r", b"\x1b[2J"),
    *(b"NaN", b"Infinity", b"-1", b"1e999", b"-0", b"9" * 25, b"9" * 5000, b"0.1e-400", b"null"),
    *(b"[", b"]", b"{", b"}", b"[" * 2000, b'{"a":' * 2000, b"[]", b"{}", b"true", b'""'),
    *(b"253402300800", b"-62135596801", b"1e17", b"18446744073709551616", b"2026-11-20T24:00:00Z"),
    *(b"&a [*a]", b"!!python/object/apply:os.system [id]", b"? ", b": ", b"<<: *a", b"--- ", b"%"),
    *(b"../../etc/passwd", b"/etc/passwd", b"'; DROP TABLE samples; --", b"<script>", b"=1+1"),
    *("\u202e\u2028\ufeff".encode(), "İ".encode(), b"PK\x03\x04", b"\x1f\x8b\x08", b"(\xb5/\xfd"),
    *(b'"values":[[', b'{"metric":', b'"result":', b'"error":', b'"format":', b'"n":'),
]  # fmt: skip
_PLACE = st.floats(0, 1)
_CHANGE = st.tuples(
    st.sampled_from(("insert", "overwrite", "delete", "repeat", "cut", "flip", "swap")),
    _PLACE,
    _PLACE,
    st.one_of(st.sampled_from(_ODD), st.binary(max_size=12)),
)


def changed(content: bytes, changes: list[tuple[str, float, float, bytes]]) -> bytes:
    """A seed with some of its bytes moved, lost, repeated or replaced."""
    for how, start, length, odd in changes:
        at = int(start * len(content))
        end = min(len(content), at + int(length * length * 200) + 1)
        piece = content[at:end]
        content = {
            "insert": lambda c, a, e, p, o: c[:a] + o + c[a:],
            "overwrite": lambda c, a, e, p, o: c[:a] + o + c[a + len(o) :],
            "delete": lambda c, a, e, p, o: c[:a] + c[e:],
            "repeat": lambda c, a, e, p, o: c[:a] + p * 5 + c[a:],
            "cut": lambda c, a, e, p, o: c[:a],
            "flip": lambda c, a, e, p, o: c[:a] + bytes(b ^ 0x20 for b in p[:1]) + c[a + 1 :],
            "swap": lambda c, a, e, p, o: c[:a] + c[e : e + len(p)] + p + c[e + len(p) :],
        }[how](content, at, end, piece, odd)
    return content


_LEAF = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.sampled_from(["1e999", "NaN", "-1", "", "status", "success", "\x1b[2J", 1e308, 2**70]),
)  # fmt: skip
_TREE = st.recursive(
    _LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def inputs(count: int) -> st.SearchStrategy[tuple[int, bytes]]:
    """(number of a seed, bytes): mostly seeds with changes, some of it anything at all."""
    return st.tuples(
        st.integers(0, max(0, count - 1)),
        st.lists(_CHANGE, min_size=1, max_size=6),
        st.one_of(
            st.just(None), st.just(None), st.just(None), st.binary(max_size=400),
            _TREE.map(lambda tree: json.dumps(tree).encode()),
        ),
    )  # type: ignore[return-value]  # fmt: skip


# --- targets -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seed:
    """Bytes that mean something, and the capture that they came with, where one is needed."""

    content: bytes
    capture: Capture | None = None


@dataclass(frozen=True)
class Target:
    """seeds: what is changed. read: the parser. allowed: errors that are an answer."""

    seeds: Callable[[], list[Seed]]
    read: Callable[[Seed, bytes], object]
    allowed: tuple[type[BaseException], ...] = ()
    weight: float = 1.0


def _sealed(source_type: str) -> list[Seed]:
    """Real replies, out of the bundled cases, a few of every role."""
    found: dict[tuple[str, str], list[Seed]] = {}
    for folder in sorted((ROOT / "incidents").glob("example-*")):
        with suppress(ForensicsError, OSError):
            incident = parameters.read_parameters(folder / "parameters.yaml")
            types = {source.name: source.type for source in incident.sources}
            archive = Archive(folder)
            for capture in manifest.read_manifest(folder).captures:
                place = (folder.name, capture.role)
                few = len(found.get(place, ())) < 5
                if capture.role == "listing":
                    continue  # our own words, never a stranger's
                if capture.usable and types[capture.source] == source_type and few:
                    body = archive.read(capture)[:_LONGEST_SEED_BYTES]
                    found.setdefault(place, []).append(Seed(body, capture))
    return [seed for seeds in found.values() for seed in seeds]


def _capture(role: str, query: str = "q", **request: Any) -> Capture:
    return Capture("fuzz", query, role, request, _DAY, WINDOW, 200, "0" * 64, 1)


def _files(role: str, *patterns: str, **request: Any) -> list[Seed]:
    paths = sorted(path for pattern in patterns for path in FIXTURES.glob(pattern))
    return [
        Seed(path.read_bytes()[:_LONGEST_SEED_BYTES], _capture(role, file=path.name, **request))
        for path in paths
        if path.is_file()
    ]


def _journals() -> list[Seed]:
    said = {"family": "*", "modified": "2026-11-20T10:00:00Z"}
    return [*_sealed("journals"), *_files("file", "njord/*.ndjson", **said)]


def _replies() -> list[Seed]:
    """The node's recorded replies, each with the question that it answers."""
    seeds = []
    for path in sorted((FIXTURES / "the-block").glob("replies-*.jsonl")):
        for line in path.read_bytes().splitlines():
            value = json.loads(line)
            if isinstance(value, dict):
                question = {"id": 1, "method": str(value.get("method")), "params": {}}
                answer = {"id": 1, "result": value.get("result", value)}
                seeds.append(Seed(json.dumps(answer).encode(), _capture("snapshot", json=question)))
    return [*_sealed("jsonrpc"), *seeds[:60]]


def _aggregator() -> list[Seed]:
    names = {
        "export": "handed-over/export.zip", "posts": "handed-over/*.jsonl",
        "correlations": "handed-over/correlations*", "wrappers": "handed-over/wrappers.json",
    }  # fmt: skip
    seeds = [s for role, p in names.items() for s in _files(role, f"the-block/{p}", url="/x")]
    return [*seeds, Seed(b'[[1773144000,{"a":1}]]', _capture("peer", url="/peer/ab", file="ab"))]


def _stores() -> list[Seed]:
    """Each bundled store as it is kept: a tar of its files; and a SQLite store."""
    from tbforensics.reading import logstores

    seeds = []
    for root in sorted((FIXTURES / "the-block" / "handed-over").glob("store-*")):
        files = sorted(path for path in root.rglob("*") if path.is_file())
        named = ((path.relative_to(root).as_posix(), path.open("rb")) for path in files)
        seeds.append(Seed(b"".join(logstores.packed(named)), _capture("store", file="s")))
    import sqlite3

    with tempfile.TemporaryDirectory() as folder:
        database = sqlite3.connect(Path(folder) / "s")
        database.execute(
            "CREATE TABLE logs (id INTEGER PRIMARY KEY, timestamp INTEGER, level TEXT, "
            "message TEXT, correlation_id TEXT, peer TEXT, tx TEXT, block INTEGER, "
            "encrypted INTEGER, nonce BLOB)"
        )
        database.execute(
            "INSERT INTO logs VALUES (1, 1773144000, 'info', 'm', '', '', '', 1, 0, '')"
        )
        database.commit()
        database.close()
        content = (Path(folder) / "s").read_bytes()
    return [*seeds, Seed(content, _capture("store", file="s"))]


def _parse(source_type: str) -> Callable[[Seed, bytes], object]:
    def read(seed: Seed, content: bytes) -> int:
        assert seed.capture
        source = plugins.load_source(source_type)
        return sum(rows.num_rows for _, rows in source.parse(seed.capture, io.BytesIO(content)))

    return read


@cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def _in_file(name: str, read: Callable[[Path], object]) -> Callable[[Seed, bytes], object]:
    """For what reads a file, or a folder that holds it."""

    def act(_: Seed, content: bytes) -> object:
        path = _folder() / name
        path.write_bytes(content)
        return read(path)

    return act


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def _said(*texts: str) -> Callable[[], list[Seed]]:
    return lambda: [Seed(text.encode()) for text in texts]


def _read(*patterns: str) -> Callable[[], list[Seed]]:
    def seeds() -> list[Seed]:
        paths = sorted(path for pattern in patterns for path in ROOT.glob(pattern))
        return [Seed(path.read_bytes()[:200_000]) for path in paths if path.is_file()]

    return seeds


_HTTP_CONFIGS = _said(
    "basic_auth: {username: u, password: p}\n",
    "authorization: {type: Bearer, credentials: tok}\ntls_config: {insecure_skip_verify: true}\n",
    "oauth2: {client_id: c, client_secret: s, token_url: 'http://127.0.0.1/', scopes: [a]}\n",
    "http_headers: {X-Key: {values: [v], secrets: [s]}}\nproxy_url: http://127.0.0.1:1\n",
    "tls_config: {ca: 'x', min_version: TLS12, max_version: TLS13}\n",
)
_ALERTS = _said(
    json.dumps(
        {
            "version": "4", "commonLabels": {"alertname": "A"}, "commonAnnotations": {},
            "alerts": [{"status": "firing", "startsAt": "2026-11-20T10:00:00Z", "labels": {},
                        "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "http://p:9090/g"}],
        }
    )
)  # fmt: skip
_RULES = _said(
    "groups:\n  - name: g\n    interval: 15s\n    rules:\n      - alert: A\n"
    "        expr: sum(rate(m_total[5m])) > 1\n        for: 10m\n        labels: {severity: page}\n"
)
_EXPRESSIONS = _said(
    'm{a="b"}', 'sum by (a) (rate(m_total{x=~"a|b",y!=""}[5m] offset 1h)) / 2 > bool 3',
    "histogram_quantile(0.9, sum(rate(h_bucket[1m])) by (le))", "m @ end()", "absent(m)",
)  # fmt: skip


def _a_parcel() -> list[Seed]:
    """A bundled case, packed, with its bodies cut down to keep it small."""
    smallest = min(
        (ROOT / "incidents").glob("example-*"),
        key=lambda case: sum(p.stat().st_size for p in case.rglob("*") if p.is_file()),
    )
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted(smallest.rglob("*")):
            if path.is_file() and path.stat().st_size < 20_000:
                name = f"{smallest.name}/{path.relative_to(smallest).as_posix()}"
                archive.writestr(name, path.read_bytes())
        archive.writestr("ro-crate-metadata.json", "{}")
    flat = io.BytesIO()
    with zipfile.ZipFile(flat, "w") as archive:
        for name in ("manifest.json", "custody.jsonl", "parameters.yaml"):
            archive.writestr(name, (smallest / name).read_bytes())
    return [Seed(content.getvalue()), Seed(flat.getvalue())]


def _unpacked(path: Path) -> object:
    return parcel.unpack(path, path.parent)


def _journal(path: Path) -> object:
    return Archive(path.parent).recorded()


def _body(path: Path) -> object:
    (path.parent / "raw").mkdir(exist_ok=True)
    (path.parent / "raw" / f"{'0' * 64}.zst").write_bytes(path.read_bytes())
    return Archive(path.parent).read(_capture("r"))


def _bodies() -> list[Seed]:
    import zstandard

    return [Seed(zstandard.compress(text)) for text in (b"", b"x" * 5000, b'{"a":1}')]


def _opened(_: Seed, content: bytes) -> object:
    from contextlib import nullcontext

    keys = Keys(passphrase="correct horse")
    return unseal(lambda: nullcontext(io.BytesIO(content)), len(content), keys, io.BytesIO())


def _log_line(_: Seed, content: bytes) -> object:
    return [loglines.rows_of_line(line) for line in content.split(b"\n")]


def _normalised(seed: Seed, content: bytes) -> object:
    assert seed.capture
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    result = value.get("result", value) if isinstance(value, dict) else value
    return theblock.normalise(str(seed.capture.request["json"]["method"]), result)


def _rules(_: Seed, content: bytes) -> object:
    value = alertrules.plain_yaml(_text(content), "the rules")
    value = json.loads(json.dumps(value, default=str))
    rules = alertrules.from_file(value, "f", "s") + alertrules.from_server(value, "s")
    return alertrules.asked_for(alertrules.about(rules, {"m_total"}), ())


def _promql(_: Seed, content: bytes) -> object:
    text = _text(content)
    promql.duration_s(text)
    if promql.is_matchers(text):
        return promql.with_matchers("m", text)
    return promql.with_matchers(text, 'a="b"')


def _numbers(_: Seed, content: bytes) -> object:
    promjson.explain(content)
    reply = promjson.read_reply(content)
    return promjson.numbers(reply.items)


def _chunks() -> list[Seed]:
    from xor_encoder import STALE, bits_of, encoded

    start = round(_DAY.timestamp() * 1000)
    even = [(start + 15_000 * n, bits_of(float(n % 7))) for n in range(120)]
    rough = [(start + n * n * 977, bits_of(n / 7)) for n in range(120)]
    gone = [(start, bits_of(1.0)), (start + 1, STALE), (start + 2**40, bits_of(-0.0))]
    return [Seed(encoded(samples)) for samples in (even, rough, gone, even[:1], even[:2])]


def _streamed() -> list[Seed]:
    """What a frame of a remote read reply holds."""
    from tbforensics.reading import prompb

    message = prompb.ChunkedReadResponse()
    for kind, chunk in zip((1, 1, 1, 2, 9), _chunks(), strict=True):
        series = message.chunked_series.add()
        series.labels.add(name=b"__name__", value=b"m")
        series.labels.add(name=b"kind", value=b"%d" % (kind // 2))
        series.chunks.add(type=kind, data=chunk.content, min_time_ms=1, max_time_ms=2)
        series.chunks.add(type=1, data=chunk.content)
    return [Seed(message.SerializeToString())]


def _frames(_: Seed, content: bytes) -> object:
    """With a good checksum, or nothing behind it would ever be reached; and without."""
    framed = remoteframes.framed(content)
    for body in (framed * 2 + content, content):
        remoteread.explain(body)
        for _table in remoteread.tables(_capture("samples"), io.BytesIO(body)):
            pass
    return None


def _decoded(_: Seed, content: bytes) -> object:
    found = xorchunks.decode([content, content[:50], content])
    assert len(found.times) == found.counts.sum()
    return found


TARGETS: Mapping[str, Target] = {
    "prometheus.parse": Target(lambda: _sealed("prometheus"), _parse("prometheus")),
    "promjson": Target(lambda: _sealed("prometheus"), _numbers),
    "remoteread": Target(_streamed, _frames, weight=0.5),
    "xorchunks": Target(_chunks, _decoded),
    "logs.parse": Target(
        lambda: [*_sealed("logs"), *_files("file", "njord/app.ndjson", "the-block/search*.json")],
        _parse("logs"),
    ),
    "loglines": Target(
        lambda: [*_sealed("logs"), *_files("file", "njord/*.ndjson")], _log_line, (LineError,)
    ),
    "journals.parse": Target(_journals, _parse("journals")),
    "jsonrpc.parse": Target(_replies, _parse("jsonrpc")),
    "theblock.normalise": Target(
        lambda: [s for s in _replies() if s.capture], _normalised, (ValueError,)
    ),
    "explorer.parse": Target(lambda: _sealed("explorer"), _parse("explorer")),
    "governance.parse": Target(lambda: _sealed("governance"), _parse("governance")),
    "aggregator.parse": Target(_aggregator, _parse("aggregator")),
    "logstore.parse": Target(_stores, _parse("logstore"), weight=0.3),
    "parameters": Target(
        _read("parameters/*.yaml"), _in_file("p.yaml", parameters.read_parameters),
        (ParametersError,), 0.5,
    ),
    "credentials": Target(
        _HTTP_CONFIGS, _in_file("h.yaml", lambda path: read_credentials("s", path, {})),
        (ParametersError,),
    ),
    "alert": Target(_ALERTS, _in_file("a.json", scaffold.read_alert), (ParametersError,)),
    "rule files": Target(_RULES, _rules, (ParametersError, TypeError, ValueError, LookupError)),
    "promql": Target(_EXPRESSIONS, _promql, (ForensicsError, ValueError)),
    "manifest": Target(
        _read("incidents/*/manifest.json"),
        _in_file("manifest.json", lambda path: manifest.read_manifest(path.parent)),
        (EvidenceError,), 0.3,
    ),
    "custody": Target(
        _read("incidents/*/custody.jsonl"),
        _in_file("custody.jsonl", lambda path: manifest.custody(path.parent)),
        (EvidenceError,),
    ),
    "captures": Target(
        _read("tests/fixtures/njord/portfolio.ndjson"), _in_file("captures.jsonl", _journal)
    ),
    "raw bodies": Target(_bodies, _in_file("body", _body), (EvidenceError,)),
    "parcels": Target(_a_parcel, _in_file("p.zip", _unpacked), (EvidenceError,), 0.3),
    "statements": Target(
        _said('{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[]}'),
        _in_file(signing.NAME, lambda path: signing.read(path.parent)), (EvidenceError,),
    ),
    "public keys": Target(
        _said("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9s a@b\n"),
        _in_file("k.pub", signing.read_public), (EvidenceError,),
    ),
    "envelopes": Target(
        lambda: _files("x", "the-block/handed-over/export.*"), _opened, (Shut, ValueError), 0.3
    ),
}  # fmt: skip


# --- running -------------------------------------------------------------------------------------


@dataclass
class Result:
    """executions: how many inputs were tried. failures: what went wrong, once for each place."""

    target: str
    seed: int
    executions: int = 0
    slowest_s: float = 0.0
    grown_mb: int = 0
    failures: dict[str, str] = field(default_factory=dict)


class _TooSlow(BaseException):
    pass


def _ring(*_: object) -> None:
    raise _TooSlow


def run(name: str, examples: int, number: int) -> Result:
    """Try so many inputs on one target, in this process."""
    target, result = TARGETS[name], Result(name, number)
    seeds = target.seeds()
    assert seeds, f"no seeds for {name}"
    began_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.signal(signal.SIGALRM, _ring)

    @seed(number)
    @settings(
        max_examples=max(1, round(examples * target.weight)), deadline=None, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(inputs(len(seeds)))
    def attack(drawn: Any) -> None:
        place, changes, instead = drawn
        content = changed(seeds[place].content, changes) if instead is None else instead
        _try(target, seeds[place], content, result)

    attack()
    result.grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - began_kb) >> 10
    return result


def _try(target: Target, seed: Seed, content: bytes, result: Result) -> None:
    result.executions += 1
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, SLOWEST_S)
    try:
        target.read(seed, content)
    except target.allowed:
        pass
    except _TooSlow:
        result.failures.setdefault("hang", f"{SLOWEST_S:g} s for {content[:300]!r}")
    except Exception as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        ours = [f for f in traceback.extract_tb(error.__traceback__) if "tbforensics" in f.filename]
        where = f"{Path((ours or [last])[-1].filename).name}:{(ours or [last])[-1].lineno}"
        what = f"{type(error).__name__} at {where}"
        result.failures.setdefault(what, f"{str(error)[:200]} for {content[:300]!r}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    result.slowest_s = max(result.slowest_s, time.monotonic() - began)


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ROOM_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main() -> None:
    name = sys.argv[1]
    examples = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    number = int(sys.argv[3]) if len(sys.argv) > 3 else 1
    for source in plugins.source_names():
        plugins.load_source(source)
    _limit_memory()
    result = run(name, examples, number)
    print(json.dumps(result.__dict__))


if __name__ == "__main__":
    main()
