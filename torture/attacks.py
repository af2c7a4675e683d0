"""The attack table: hostile bytes wherever a stranger can put any; secrets that must not leak."""

from __future__ import annotations

import base64
import gzip
import html
import itertools
import json
import re
import secrets
import signal
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard
from browser import chromium
from http_fake import Handler, fake

from tbforensics.case import open_case
from tbforensics.errors import ForensicsError
from torture import ROOT
from torture import proxy as net
from torture.bench import ID, Bench, Home, Ran
from torture.faults import WHOLE, no_traceback
from torture.proxy import Asked
from torture.table import Counts, NotTried, Row

ESC = "\x1b]8;;http://evil.example\x1b\\link\x1b[31m\x1b[2J\x07\x9b"
MARKUP = '</script><script>document.title="owned"</script><img src=x onerror=alert(1)>'
SQL = "'); DROP TABLE log_lines; --"
FORMULA = '=HYPERLINK("http://evil.example/","x")'
_MOMENT = 1795170000  # 2026-11-20T10:20:00Z


def inert(ran: Ran) -> None:
    """Nothing on the terminal acts."""
    acting = re.findall("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", ran.said)
    assert not acting, f"control characters in the output: {acting[:5]}"
    no_traceback(ran)


# --- a hostile Prometheus ----------------------------------------------------------------------


def _matrix(*series: Any) -> str:
    return json.dumps({"status": "success", "data": {"resultType": "matrix", "result": [*series]}})


def _series(values: Any, **labels: str) -> dict[str, Any]:
    return {"metric": {"__name__": WHOLE, **labels}, "values": values}


def _raw(values: str, labels: str = '{"__name__":"x_total"}') -> str:
    item = f'{{"metric":{labels},"values":{values}}}'
    return f'{{"status":"success","data":{{"resultType":"matrix","result":[{item}]}}}}'


_ONE = f'[[{_MOMENT},"1"]]'
NUMBERS = {
    "NaN and infinities": _raw(
        f'[[{_MOMENT},"NaN"],[{_MOMENT + 1},"+Inf"],[{_MOMENT + 2},"-Inf"]]'
    ),
    "bare NaN": _raw(f"[[{_MOMENT},NaN],[Infinity,1]]"),
    "times beyond any calendar": _raw('[[1e18,"1"],[-1e18,"1"],[99999999999999999999,"1"]]'),
    "negative times": _raw('[[-1,"1"],[-62135596801,"1"]]'),
    "out of order": _raw(f'[[{_MOMENT + 60},"5"],[{_MOMENT},"9"],[{_MOMENT + 30},"1"]]'),
    "the same time twice": _raw(f'[[{_MOMENT},"1"],[{_MOMENT},"2"]]'),
    "values that overflow": _raw(f'[[{_MOMENT},"1e999"],[{_MOMENT + 1},"-1e999"]]'),
    "a number of 100,000 digits": _raw(f'[[{_MOMENT},"{"9" * 100_000}"]]'),
    "numbers as words": _raw(f'[[{_MOMENT},"many"],["now","1"],[null,null]]'),
}
LABELS = {
    "20,000 labels": _matrix(_series([[_MOMENT, "1"]], **{f"l{n}": "v" for n in range(20_000)})),
    "5,000 series, each with a label name of its own": _matrix(
        *(_series([[_MOMENT, "1"]], **{f"l{n}": "v"}) for n in range(5_000))
    ),
    "a label of 5 MB": _matrix(_series([[_MOMENT, "1"]], peer="x" * 5_000_000)),
    "markup": _matrix(_series([[_MOMENT, "1"], [_MOMENT + 600, "99"]], peer=MARKUP, reason=MARKUP)),
    "SQL": _matrix(_series([[_MOMENT, "1"], [_MOMENT + 600, "9"]], peer=SQL, reason=SQL)),
    "terminal codes": _matrix(
        _series([[_MOMENT, "1"], [_MOMENT + 600, "9"]], peer=ESC, reason=ESC)
    ),
    "a formula": _matrix(_series([[_MOMENT, "1"]], peer=FORMULA)),
    "half a surrogate pair": _raw(_ONE, '{"__name__":"x_total","peer":"\\ud800"}'),
    "bytes that are no UTF-8": _raw(_ONE, '{"__name__":"x_total","peer":"\udcff\udcfe"}'),
    "labels that are no text": _raw(_ONE, '{"__name__":1,"peer":{"a":[]},"x":null}'),
    "a key twice": _raw(_ONE, '{"__name__":"a","__name__":"b","peer":"1","peer":"2"}'),
    "names of our columns": _matrix(_series([[_MOMENT, "1"]], source="evil", series="1", ts="0")),
    "an empty name": _matrix(_series([[_MOMENT, "1"]], **{"": "x", " ": "y", "__name__": ""})),
}
SHAPES = {
    "100,000 brackets": "[" * 100_000,
    "100,000 objects": '{"a":' * 100_000,
    "a histogram as deep": _raw(_ONE)[:-3]
    + ',"histograms":' + "[" * 50_000 + "]" * 50_000 + "}]}}",
    "nothing": "",
    "a number": "1e5",
    "status twice": '{"status":"success","status":"error","data":{},"data":[],"error":"x"}',
    "another kind of result": '{"status":"success","data":{"resultType":"streams","result":[{}]}}',
    "a result that is no list": '{"status":"success","data":{"resultType":"matrix","result":{}}}',
    "series that are no objects": _matrix(1, None, [], "x", {}, {"metric": []}),
    "an error in terminal codes": json.dumps(
        {"status": "error", "error": ESC, "errorType": MARKUP}),
    "warnings without end": json.dumps({"status": "success", "warnings": [MARKUP] * 10_000,
                                        "data": {"resultType": "matrix", "result": []}}),
    "what looks like our placeholder": _raw('0,"values":1'),
}  # fmt: skip


def hostile_prometheus(bodies: Mapping[str, str]) -> Callable[[Bench, Counts], str]:
    """Each query gets another of the bodies, in turn."""

    def act(bench: Bench, counts: Counts) -> str:
        turn, given = itertools.cycle(bodies.values()), dict[str, net.Fault]()

        def plan(asked: Asked) -> net.Fault | None:
            if not asked.selector:
                return None
            if asked.selector not in given:
                body = next(turn).encode("utf-8", "surrogateescape")
                given[asked.selector] = net.says(body, Content_Type="application/json")
            return given[asked.selector]

        with bench.home(plan) as home:
            ran = bench.collect(home)
            inert(ran)
            assert ran.code in (0, 3), f"exit {ran.code}: {ran.said}"
            counts.inputs += len(given)
            bench.holds(home, counts)
            case = open_case(home.case)
            aside = case.sql("SELECT count(*) AS n FROM quarantine")["n"][0]
            case.evidence.close()
            _parsers_held(home)
        assert len(given) >= len(bodies), f"only {len(given)} of {len(bodies)} were asked for"
        return f"{len(given)} replies: exit {ran.code}, holds, {aside} pieces set aside"

    return act


def _parsers_held(home: Home) -> None:
    """What breaks a parser is set aside too, but a parser that breaks has a bug."""
    case = open_case(home.case)
    broke = case.sql(
        "SELECT reason FROM quarantine WHERE reason LIKE 'the reply could not be read%'"
    )
    case.evidence.close()
    assert broke.empty, f"a parser broke: {broke['reason'].tolist()}"


RULES = {
    "20,000 brackets": "(" * 20_000 + "up" + ")" * 20_000,
    "20,000 minus signs": "-" * 20_000 + "up",
    "a chain of 5,000 sums": "+".join(["up"] * 5_000),
    "a regex that backtracks": 'up{job=~"(a+)+$"} == 1',
    "a regex of 100 KB": f'up{{job=~"{"a|" * 50_000}"}}',
    "terminal codes": f"{WHOLE} > {ESC}",
    "a range of 290 years": f"increase({WHOLE}[290y]) > 0",
    "subqueries within subqueries": f"max_over_time(rate({WHOLE}[5m])[1h:1s]) > 0",
    "a step of 1 ms over days": f"max_over_time({WHOLE}[30d:1ms]) > 0",
}


def hostile_rules(bench: Bench, counts: Counts) -> str:
    groups = [
        {"name": ESC, "file": "../../x", "interval": 1e-9, "rules": [
            {"type": "alerting", "name": name, "query": text, "duration": 1e300,
             "labels": {"a": MARKUP},
             "annotations": {"summary": "{{ template \"x\" }}" * 100}, "health": "ok"}
            for name, text in RULES.items()]},
        {"name": None, "rules": [None, 1, {"type": "alerting"}, {"type": "alerting", "query": 7}]},
    ]  # fmt: skip
    body = json.dumps({"status": "success", "data": {"groups": groups}})
    reply = net.says(body, Content_Type="application/json")
    with bench.home(lambda asked: reply if asked.path.endswith("/rules") else None) as home:
        ran = bench.collect(home)
        inert(ran)
        assert ran.code in (0, 3), f"exit {ran.code}: {ran.said}"
        counts.inputs += len(RULES) + 4
        bench.holds(home, counts)
    return f"{len(RULES) + 4} rules: exit {ran.code}, holds"


def a_million_series(bench: Bench, counts: Counts) -> str:
    """One sample each, in one reply of some 90 MB."""
    items = b",".join(
        b'{"metric":{"__name__":"x_total","peer":"%d"},"values":[[%d,"%d"]]}' % (n, _MOMENT, n)
        for n in range(1_000_000)
    )
    body = b'{"status":"success","data":{"resultType":"matrix","result":[' + items + b"]}}"
    hits = itertools.count()
    reply = net.says(body, Content_Type="application/json")

    def plan(asked: Asked) -> net.Fault | None:
        return reply if WHOLE in asked.selector and next(hits) == 0 else None

    with bench.home(plan) as home:
        running, most_kb = bench.start("collect", home.parameters), 0
        while running.poll() is None:
            most_kb = max(most_kb, _resident_kb(running.pid))
            time.sleep(0.1)
        out, err = running.communicate()
        ran = Ran(running.returncode, out.decode(), err.decode())
        inert(ran)
        assert ran.code in (0, 3), f"exit {ran.code}: {ran.said}"
        assert most_kb < 6 << 20, f"{most_kb >> 10} MiB resident"
        counts.inputs += 1
        proof = bench.run("verify", home.case)
        assert proof.code == 0, proof.said
    return f"exit {ran.code}, peak {most_kb >> 10} MiB, holds"


def _resident_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmHWM:\s+(\d+)", status)
    return int(found[1]) if found else 0


# --- a hostile node, hostile files -------------------------------------------------------------

REPLIES = {
    "100,000 brackets": b"[" * 100_000,
    "a result as deep": b'{"jsonrpc":"2.0","id":1,"result":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "numbers of 10,000 digits": b'{"jsonrpc":"2.0","id":1,"result":{"block":%b}}' % (b"9" * 10_000),
    "another question's answer": b'{"jsonrpc":"2.0","id":77,"result":{}}',
    "an error that is no object": b'{"jsonrpc":"2.0","id":1,"error":"\\u001b[2J"}',
    "an error without end": json.dumps(
        {"id": 1, "error": {"code": -1, "message": MARKUP * 50_000}}).encode(),
    "NaN": b'{"jsonrpc":"2.0","id":1,"result":NaN}',
    "a list of lists": b'{"jsonrpc":"2.0","id":1,"result":[[[]],[[]]]}',
    "no UTF-8": b'{"jsonrpc":"2.0","id":1,"result":"\xff\xfe"}',
}  # fmt: skip


def hostile_node(bench: Bench, counts: Counts) -> str:
    """Every method, and the log search, of three nodes at once."""
    turn = itertools.cycle(REPLIES.values())

    def plan(asked: Asked) -> net.Fault | None:
        return net.says(next(turn), Content_Type="application/json")

    with bench.home(node_plan=plan) as home:
        sources = home.given["sources"]
        more = {f"{kind}-{n}": sources[kind] for n in range(3) for kind in ("node", "node-logs")}
        home.write(sources={**sources, **more})
        ran = bench.collect(home)
        inert(ran)
        assert ran.code == 3, f"exit {ran.code}: {ran.said}"
        tried = len(home.node.asked)
        counts.inputs += tried
        bench.holds(home, counts)
        _parsers_held(home)
    assert tried >= len(REPLIES)
    return f"{tried} replies: exit 3, holds"


def _lines() -> bytes:
    line = {"timestamp": _MOMENT, "level": "warn"}
    texts = (MARKUP, SQL, ESC, FORMULA, "x" * 300_000, "\ud800", "\u202etxt.exe", "{{7*7}}", "%s%n")
    good = [json.dumps({**line, "message": text}).encode() for text in texts]
    return b"\n".join([
        *good, b"\xff\xfe\x00 not text", b"[" * 50_000, b'{"a":' * 50_000, b"{}", b"null",
        b"\x00" * 99,
        json.dumps({**line, "timestamp": 10**30, "message": "later"}).encode(),
        json.dumps({**line, "message": {"a": [1] * 50}}).encode(),
    ])  # fmt: skip


def write_hostile_files(folder: Path) -> int:
    """Files as a stranger would hand them over; how many."""
    folder.mkdir(exist_ok=True)
    lines = _lines()
    files = {
        f"x{SQL}.jsonl": lines,
        'a"b;$(touch owned).log': lines,
        f"{ESC.replace('/', '')}.jsonl": lines,
        "<img src=x onerror=alert(1)>.jsonl": lines,
        "one-line.log": b"x" * (64 << 20),
        "bomb.jsonl.gz": gzip.compress(bytes(200 << 20), 9),
        "bomb.jsonl.zst": zstandard.compress(bytes(200 << 20)),
        "torn.jsonl.gz": gzip.compress(lines)[:-20],
        "array.json": b"[" + b",".join(lines.split(b"\n")) + b"]",
        "deep.json": b"[" * 200_000,
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "link.jsonl").symlink_to("/etc/passwd")
    (folder / "up").symlink_to("/")
    subprocess.run(["mkfifo", folder / "pipe.jsonl"], check=True)
    return len(files) + 3


def hostile_report(bench: Bench, counts: Counts) -> str:
    """`run` over all of it, then the page in a browser without a network."""
    hostile = itertools.cycle((LABELS["markup"], LABELS["SQL"], LABELS["terminal codes"]))

    def plan(asked: Asked) -> net.Fault | None:
        if asked.selector.startswith((WHOLE, "net_peer")):
            return net.says(next(hostile), Content_Type="application/json")
        return None

    words = f"{MARKUP} {ESC} {SQL} [x](javascript:alert(1)) $\\href{{javascript:alert(1)}}{{x}}$"
    with bench.home(plan) as home:
        counts.inputs += write_hostile_files(home.folder / "dumps") + 20
        told = [{"time": "2026-11-20T10:30:00Z", "event": "note", "author": words, "text": words}]
        home.write(title=words, notes=words, timeline=told)
        ran = bench.collect(home, "run")
        inert(ran)
        assert ran.code in (0, 3), f"exit {ran.code}: {ran.said}"
        bench.holds(home)
        held = _tables(home)
        assert not list(home.folder.rglob("owned")), "a file name was run"
        page = home.case / "report.html"
        _keeps_its_policy(page)
        _runs_nothing(page)
        _notebook_is_inert(home.case / "report.ipynb")
    return f"exit {ran.code}, {held}, no request, dialog, complaint or script; policy kept"


def _tables(home: Home) -> str:
    """Names that hold SQL are data, and every table is still there."""
    case = open_case(home.case)
    names = case.sql("SELECT DISTINCT file FROM log_lines WHERE file LIKE '%DROP TABLE%'")
    assert not names.empty, "the file whose name is SQL was not read"
    tables = ("series", "samples", "log_lines", "snapshots", "quarantine")
    rows = {name: int(case.sql(f"SELECT count(*) AS n FROM {name}")["n"][0]) for name in tables}
    lines = case.sql("SELECT DISTINCT file FROM log_lines WHERE file LIKE '%passwd%'")
    assert lines.empty, "a link was followed"
    case.evidence.close()
    return f"{rows['log_lines']} lines and {rows['quarantine']} pieces set aside"


def _keeps_its_policy(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert found, "the page has no policy"
    policy = html.unescape(found[1])
    assert "default-src 'none'" in policy, policy
    assert "unsafe-inline" not in re.sub(r"style-src[^;]*", "", policy), policy
    assert "unsafe-eval" not in policy and "http:" not in policy and "https:" not in policy, policy


def _runs_nothing(page: Path) -> None:
    with chromium() as browser:
        browser.open(page)
        time.sleep(2)
        assert browser.run("document.title") != "owned"
        outside = [
            url for url in browser.requests if not url.startswith(("file:", "data:", "blob:"))
        ]
        assert not outside, f"asked for {outside}"
        assert not browser.dialogs, browser.dialogs
        assert not browser.complaints, browser.complaints


def _notebook_is_inert(path: Path) -> None:
    """Outputs that JupyterLab would render hold no script, handler or remote address."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        for output in cell.get("outputs", ()):
            shown = "".join(output.get("data", {}).get("text/html", ""))
            assert "<script>document" not in shown and "<img src=x" not in shown, shown[:300]
            assert "text/javascript" not in output.get("data", {}), "a script in an output"
            assert "application/javascript" not in output.get("data", {}), "a script in an output"


SQL_TRIED = (
    "SELECT * FROM read_csv('/etc/passwd')", "SELECT * FROM read_text('/etc/passwd')",
    "COPY samples TO '/tmp/owned'", "ATTACH '/tmp/owned.duckdb'", "INSTALL httpfs", "LOAD httpfs",
    "SELECT * FROM '/etc/passwd'", "SELECT * FROM glob('/*')",
    "SET enable_external_access=true", "SET memory_limit='1TB'", "PRAGMA enable_profiling",
    "SELECT * FROM read_parquet('http://127.0.0.1:1/x')", "EXPORT DATABASE '/tmp/owned'",
)  # fmt: skip


def sql_over_a_case(bench: Bench, counts: Counts) -> str:
    """What an analyst may paste from a stranger's notebook."""
    case = open_case(ROOT / "incidents" / "example-quic-failure")
    allowed = []
    for text in SQL_TRIED:
        counts.inputs += 1
        try:
            case.sql(text)
        except ForensicsError:
            continue
        except Exception as error:
            allowed.append(f"{type(error).__name__} for {text}")
        else:
            allowed.append(f"it ran: {text}")
    case.evidence.close()
    assert not allowed, "; ".join(allowed)
    assert not list(Path("/tmp").glob("owned*"))
    return f"{len(SQL_TRIED)} statements refused in words"


def csv(bench: Bench, counts: Counts) -> str:
    written = [
        path
        for path in (ROOT / "tbforensics").rglob("*.py")
        if re.search(r"to_csv|\bcsv\.", path.read_text())
    ]
    assert not written, f"there is a CSV export now, and no row that attacks it: {written}"
    raise NotTried("nothing is exported as CSV or to a spreadsheet")


# --- parameters files and parcels --------------------------------------------------------------


@dataclass(frozen=True)
class Parameters:
    """A parameters file that must be refused in words before anything is asked or written."""

    name: str
    change: Mapping[str, Any] | str


_PLAIN = """\
incident_id: INC-1
kind: quic_failure
start: 2026-11-20T10:00:00Z
end: 2026-11-20T11:00:00Z
"""
PARAMETERS = (
    Parameters("a YAML tag that runs", "x: !!python/object/apply:os.system ['touch owned']\n"),
    Parameters("a tag of its own", "x: !evil {a: 1}\n"),
    Parameters("aliases that multiply", "a: &a [x]\nb: &b [*a,*a]\nc: [*b,*b]\n"),
    Parameters("a merge key", "<<: {incident_id: x}\n" + _PLAIN),
    Parameters("a key twice", _PLAIN + "kind: drawdown\n"),
    Parameters("a key that is a list", "? [a, b]\n: c\n" + _PLAIN),
    Parameters("a key that is a map", "? {a: b}\n: c\n" + _PLAIN),
    Parameters("10,000 brackets", "x: " + "[" * 10_000),
    Parameters("a NUL and terminal codes", "x: \x00\x1b[2J"),
    Parameters("no UTF-8", "x: \udcff\n"),
    Parameters("two documents", _PLAIN + "---\n" + _PLAIN),
    Parameters("a megabyte", "notes: " + "x" * 1_100_000),
    Parameters("an id that climbs", {"incident_id": "../../owned"}),
    Parameters("an absolute id", {"incident_id": "/tmp/owned"}),
    Parameters("an id of two lines", {"incident_id": "INC-1\nowned"}),
    Parameters("an id that ends in a line break", {"incident_id": "INC-1\n"}),
    Parameters("an id that is SQL", {"incident_id": SQL}),
    Parameters("an id in terminal codes", {"incident_id": ESC}),
    Parameters("a hidden id", {"incident_id": ".hidden"}),
    Parameters("a source that climbs", {"sources": {"../x": {"type": "logs", "path": "x"}}}),
    Parameters("a source of two lines", {"sources": {"a\nb": {"type": "logs", "path": "x"}}}),
    Parameters("a type that is a path", {"sources": {"a": {"type": "../../x", "url": "http://h"}}}),
    Parameters("a kind that is a path", {"kind": "../quic_failure"}),
    Parameters("a file address", {"sources": {"a": {"type": "prometheus", "url": "file:///etc/passwd"}}}),
    Parameters("a password in an address",
               {"sources": {"a": {"type": "prometheus", "url": "http://u:canary-url@h/"}}}),
    Parameters("a Python expression",
               {"thresholds": {"x=__import__('os').system('touch owned'); y": 1}}),
    Parameters("a threshold without end", {"thresholds": {"min_failures": float("inf")}}),
    Parameters("a time without a zone", {"start": "2026-11-20T10:00:00"}),
    Parameters("the year 0 and 10,000",
               {"start": "0000-01-01T00:00:00Z", "end": "10000-01-01T00:00:00Z"}),
    Parameters("a window of centuries",
               {"start": "0001-01-01T00:00:00Z", "end": "9999-12-31T00:00:00Z"}),
    Parameters("a step of nothing", {"step": "0s"}),
)  # fmt: skip


def hostile_parameters(bench: Bench, counts: Counts) -> str:
    with bench.home() as home:
        plain = dict(home.given)
        wrong = []
        for case in PARAMETERS:
            counts.inputs += 1
            if isinstance(case.change, str):
                home.parameters.write_bytes(case.change.encode("utf-8", "surrogateescape"))
            else:
                home.given = dict(plain)
                home.write(**case.change)
            before = set(home.folder.rglob("*"))
            ran = bench.run("run", home.parameters)
            try:
                inert(ran)
                assert ran.code == 1, f"exit {ran.code}: {ran.said}"
                assert "Next:" in ran.said, ran.said
                assert "canary" not in ran.said, ran.said
                assert set(home.folder.rglob("*")) == before, "something was written"
            except AssertionError as why:
                wrong.append(f"{case.name}: {str(why)[-200:]}")
        assert not wrong, "\n".join(wrong)
        assert not home.asked()
    return f"{len(PARAMETERS)} files: exit 1 in words, nothing asked, nothing written"


def hostile_parcels(bench: Bench, counts: Counts) -> str:
    """Archives from strangers, to `import`."""
    symlink = zipfile.ZipInfo("raw/x.zst")
    symlink.external_attr = 0o120777 << 16
    entries: dict[str, list[tuple[str | zipfile.ZipInfo, bytes]]] = {
        "a name that climbs": [("../../owned", b"x")],
        "an absolute name": [("/tmp/owned", b"x")],
        "a name in terminal codes": [(f"raw/{ESC}", b"x")],
        "a backslash": [("..\\..\\owned", b"x")],
        "a link": [(symlink, b"/etc/passwd")],
        "a name twice": [("manifest.json", b"{}"), ("manifest.json", b"[]")],
        "a bomb": [("manifest.json", bytes(300 << 20))],
        "100,000 files": [(f"raw/{n:064x}.zst", b"") for n in range(100_000)],
        "nothing": [],
    }
    with bench.home() as home:
        wrong = []
        for name, contents in entries.items():
            path = home.folder / "p.zip"
            with (
                warnings.catch_warnings(),
                zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
            ):
                warnings.simplefilter("ignore")  # that a name is there twice
                for entry, content in contents:
                    archive.writestr(entry, content)
            counts.inputs += 1
            before = set(home.folder.rglob("*"))
            ran = bench.run("import", path, "--to", home.folder)
            try:
                inert(ran)
                assert ran.code == 1, f"exit {ran.code}: {ran.said}"
                assert set(home.folder.rglob("*")) == before, "something was written"
            except AssertionError as why:
                wrong.append(f"{name}: {str(why)[-200:]}")
        assert not wrong, "\n".join(wrong)
        assert not Path("/tmp/owned").exists()
    return f"{len(entries)} parcels: exit 1 in words, nothing written"


def terminal_codes(bench: Bench, counts: Counts) -> str:
    """A server that words its refusals in terminal codes, with every command that prints them."""
    said = json.dumps({"status": "error", "errorType": ESC, "error": ESC})
    with bench.home(
        net.always(net.says(said, 422)), node_plan=net.always(net.says(ESC, 500))
    ) as home:
        (home.folder / "dumps" / f"{ESC.replace('/', '')}.jsonl").write_bytes(_lines())
        for words in (("collect", home.parameters), ("verify", home.case), ("report", home.case)):
            ran = bench.collect(home) if words[0] == "collect" else bench.run(*words)
            inert(ran)
            counts.inputs += 1
        spoiled = home.case / "raw" / "\x1b[2J.zst"
        spoiled.write_bytes(b"x")
        broken = bench.run("verify", home.case)
        inert(broken)
        assert broken.code == 1, broken.said
    return "collect, verify and report print escapes only"


# --- secrets -----------------------------------------------------------------------------------


def _canary() -> str:
    return f"canary{secrets.token_hex(8)}"


def _config_of(way: str, canary: str, token_url: str) -> str:
    return {
        "basic": f"basic_auth: {{username: u, password: {canary}}}\n",
        "bearer": f"authorization: {{credentials: {canary}}}\n",
        "oauth2": f"oauth2: {{client_id: c, client_secret: {canary}, token_url: '{token_url}'}}\n",
        "header": f"http_headers: {{X-Api-Key: {{secrets: [{canary}]}}}}\n",
        "proxy": f"proxy_url: http://u:{canary}@127.0.0.1:9\n",
    }[way]


def planted_secrets(interrupted: bool) -> Callable[[Bench, Counts], str]:
    """A canary in each place where a secret may stand; the servers answer, refuse and hang up."""

    def act(bench: Bench, counts: Counts) -> str:
        token = _canary()

        def issue(to: Handler, before: int) -> None:
            to.reply(json.dumps({"access_token": token, "expires_in": 3600}))

        faults = itertools.cycle(
            (net.passed, net.drop, net.says(ESC, 500), net.shortened, net.passed)
        )
        with fake(issue) as tokens, bench.home(lambda asked: next(faults)) as home:
            canaries = {way: _canary() for way in ("basic", "bearer", "oauth2", "header", "proxy")}
            sources, url = dict(home.given["sources"]), home.prometheus.url
            for way, canary in canaries.items():
                (home.folder / f"{way}.yaml").write_text(_config_of(way, canary, tokens.url))
                sources[way] = {"type": "prometheus", "url": url, "http_config": f"{way}.yaml"}
            sources["env"] = {"type": "prometheus", "url": url}
            sources["user"] = {"type": "prometheus", "url": url}
            sources["node-logs"] = {**sources["node-logs"], "passphrase_env": "LOG_SECRET"}
            (home.folder / "phrase").write_text(phrase := _canary())
            sources["logs-file"] = {
                **sources["node-logs"],
                "passphrase_env": "",
                "passphrase_file": "phrase",
            }
            home.write(sources=sources)
            environment = {
                "TBFORENSICS_ENV_BEARER_TOKEN": _canary(), "TBFORENSICS_USER_USERNAME": "u",
                "TBFORENSICS_USER_PASSWORD": _canary(), "LOG_SECRET": _canary(),
            }  # fmt: skip
            environment["TBFORENSICS_KEY_PASSPHRASE"] = _canary()
            hidden = [*canaries.values(), token, phrase]
            hidden += [value for value in environment.values() if value.startswith("canary")]
            said = _ran_with(bench, home, environment, interrupted)
            spellings = [s for canary in hidden for s in _spellings(canary)]
            found = [f"printed: {s}" for s in spellings if s in said]
            own = {home.folder / f"{way}.yaml" for way in canaries} | {home.folder / "phrase"}
            searched = 0
            for path in (path for path in home.files() if path not in own):
                searched += 1
                content = _content(path)
                found += [
                    f"{path.relative_to(home.folder)}: {s}"
                    for s in spellings
                    if s.encode() in content
                ]
            assert not found, "\n".join(found[:10])
            used = {a.authorization for a in home.prometheus.asked}
            assert len(used) >= (1 if interrupted else 5), f"not all were used: {len(used)}"
        return f"{len(hidden)} canaries, {searched} files and all output: none found"

    return act


def _ran_with(bench: Bench, home: Home, environment: Mapping[str, str], interrupted: bool) -> str:
    if not interrupted:
        ran = bench.collect(home, "run", environment=environment)
        no_traceback(ran)
        assert ran.code in (0, 3), f"exit {ran.code}: {ran.said}"
        return ran.said
    running = bench.start("run", home.parameters, environment=environment)
    while running.poll() is None and len(home.prometheus.asked) < 10:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    return b"".join(running.communicate(timeout=120)).decode()


def _spellings(canary: str) -> list[str]:
    basic = base64.b64encode(f"u:{canary}".encode()).decode()
    oauth = base64.b64encode(f"c:{canary}".encode()).decode()
    return [canary, basic, oauth, base64.b64encode(canary.encode()).decode().rstrip("=")]


def _content(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".zst":
        return zstandard.ZstdDecompressor().stream_reader(content).read()
    return content


BAD_CONFIGS = {
    "no YAML": "basic_auth: {password: CANARY\n  x: [",
    "a wrong key": "basic_auth: {username: u, password: CANARY, pasword: CANARY}\n",
    "a secret where a map belongs": "basic_auth: CANARY\n",
    "a secret of two lines": 'authorization: {credentials: "CANARY\\nx"}\n',
    "two ways in": "basic_auth: {password: CANARY}\nauthorization: {credentials: CANARY}\n",
    "a header of two lines": 'http_headers: {X: {secrets: ["CANARY\\r\\nEvil: 1"]}}\n',
    "100,000 brackets": "basic_auth: " + "[" * 100_000 + "CANARY",
    "aliases that multiply": "a: &a [CANARY]\nb: [*a, *a]\n",
    "a tag that runs": "!!python/object/apply:os.system [CANARY]\n",
    "a CA that is none": "tls_config: {ca: CANARY}\n",
    "a TLS version that is none": "tls_config: {min_version: CANARY}\n",
    "a token address that is none": "oauth2: {client_id: c, client_secret: CANARY, token_url: x}\n",
    "a proxy that is none": "proxy_url: 'CANARY://['\n",
    "a list": "- CANARY\n",
}


def bad_configs(bench: Bench, counts: Counts) -> str:
    """http_config files that are wrong: refused or on record, and never quoted."""
    with bench.home() as home:
        home.write(sources={"prometheus": home.given["sources"]["prometheus"]})
        home.source("prometheus", http_config="http.yaml")
        wrong = []
        for name, text in BAD_CONFIGS.items():
            counts.inputs += 1
            canary = _canary()
            (home.folder / "http.yaml").write_text(text.replace("CANARY", canary))
            ran = bench.collect(home)
            try:
                inert(ran)
                assert ran.code in (1, 3), f"exit {ran.code}: {ran.said}"
                assert canary not in ran.said, "the output quotes the secret"
                kept = [
                    p.name
                    for p in home.files()
                    if p.name != "http.yaml" and canary.encode() in _content(p)
                ]
                assert not kept, f"the secret is in {kept}"
            except AssertionError as why:
                wrong.append(f"{name}: {str(why)[-300:]}")
            subprocess.run(["rm", "-rf", home.folder / "incidents" / ID], check=True)
        assert not wrong, "\n".join(wrong)
    return f"{len(BAD_CONFIGS)} files: told in words, the secret nowhere"


# --- fuzz --------------------------------------------------------------------------------------


def fuzzed(target: str, examples: int) -> Callable[[Bench, Counts], str]:
    def act(bench: Bench, counts: Counts) -> str:
        number = secrets.randbelow(1 << 31)
        ran = subprocess.run(
            [sys.executable, "-m", "torture.fuzz", target, str(examples), str(number)],
            cwd=ROOT, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        again = f"python -m torture.fuzz {target!r} {examples} {number}"
        assert ran.returncode == 0, f"{again}: exit {ran.returncode}: {ran.stderr[-800:]}"
        result = json.loads(ran.stdout.splitlines()[-1])
        counts.inputs += result["executions"]
        assert not result["failures"], f"{again}: {result['failures']}"
        return (
            f"{result['executions']:,} inputs, slowest {result['slowest_s']:.2f} s, "
            f"grew {result['grown_mb']} MB (seed {number})"
        )

    return act


def rows() -> Iterable[Row]:
    from torture.fuzz import TARGETS

    sealed = "exit 0 or 3, sealed, holds, no parser breaks"
    yield Row("Prometheus: numbers", "NaN, overflow, order, ...", sealed,
              hostile_prometheus(NUMBERS))  # fmt: skip
    yield Row("Prometheus: labels", "huge, markup, SQL, no UTF-8, ...", sealed,
              hostile_prometheus(LABELS))  # fmt: skip
    yield Row("Prometheus: shapes", "depth, keys twice, other types, ...", sealed,
              hostile_prometheus(SHAPES), quick=True)  # fmt: skip
    yield Row("Prometheus: rules", "expressions made to break a parser or last for ever", sealed,
              hostile_rules)  # fmt: skip
    yield Row("Prometheus: a million series", "one sample each", f"{sealed}, under 6 GiB",
              a_million_series)  # fmt: skip
    yield Row("node: replies", "every method and the log search", sealed, hostile_node)
    yield Row("report of hostile evidence", "labels, lines, file names, title, notes; Chromium",
              "no script, request, dialog or complaint; policy kept; tables there",
              hostile_report)  # fmt: skip
    yield Row("SQL over a case", "files, extensions, settings, changes", "refused in words",
              sql_over_a_case, quick=True)  # fmt: skip
    yield Row("CSV and formulas", "cells that begin with =", "inert", csv)
    yield Row("parameters files", "tags, aliases, ids, names, times",
              "exit 1 in words, nothing asked, nothing written", hostile_parameters)  # fmt: skip
    yield Row("parcels", "climbing names, links, bombs", "exit 1 in words, nothing written",
              hostile_parcels)  # fmt: skip
    yield Row("terminal codes", "in errors, file names and replies", "printed as escapes",
              terminal_codes)  # fmt: skip
    yield Row("secrets: every place", "http_config, environment, passphrases; run with its report",
              "in no file and no output", planted_secrets(interrupted=False))  # fmt: skip
    yield Row("secrets: interrupted", "the same, with Ctrl-C in the middle",
              "in no file and no output", planted_secrets(interrupted=True))  # fmt: skip
    yield Row("secrets: bad http_config", "files that are wrong in every way",
              "refused, never quoted", bad_configs)  # fmt: skip
    for target in TARGETS:
        yield Row(f"fuzz: {target}", "Hypothesis, 1 GiB of memory, 10 s an example",
                  "no error but ours, no hang", fuzzed(target, 1500))  # fmt: skip
