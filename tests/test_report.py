"""A failed run can be read; a page runs no code but ours and is the same bytes twice."""

from __future__ import annotations

import base64
import gzip
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from browser import Page, chromium
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from tbforensics import charts, report
from tbforensics.errors import ReportError
from tbforensics.model import Verdict, Window
from tbforensics.report_page.bundle import vega_bundle

ROOT = Path(__file__).parent.parent
START = datetime(2026, 3, 10, 10, tzinfo=UTC)
WINDOW = Window(START, START + timedelta(hours=1))
PAYLOAD = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
BREAKOUT = f"</script>{PAYLOAD}"


def header(**changed: object) -> report.Header:
    known = {
        "title": "Settlement stall",
        "incident_id": "stall-1",
        "kind": "settlement_stall",
        "window": WINDOW,
        "baseline": Window(START - timedelta(hours=2), START),
        "verdict": Verdict.CONFIRMED,
        "reasons": ("no settlement landed for 300 s",),
        "manifest_sha256": "ab" * 32,
        "findings_sha256": "cd" * 32,
        "tool_version": "0.1.0",
        "rendered_at": START,
    }
    return report.Header(**{**known, **changed})


def cell(*outputs: object, source: str = "show()", ran: bool = True) -> nbformat.NotebookNode:
    return new_code_cell(source, outputs=list(outputs), execution_count=1 if ran else None)


def data(**by_kind: object) -> nbformat.NotebookNode:
    return new_output("display_data", data=by_kind)


def html(text: str) -> nbformat.NotebookNode:
    return data(**{"text/html": text})


def chart_cell(chart: object) -> nbformat.NotebookNode:
    charts.enable()
    return cell(new_output("display_data", data=chart._repr_mimebundle_()))


def samples(n: int, **names: float) -> pd.DataFrame:
    rng = np.random.default_rng(n)
    steps = {name: rng.normal(size=n).cumsum() * scale for name, scale in names.items()}
    return pd.DataFrame(steps, index=pd.date_range(START, periods=n, freq="1s"))


# --- running a notebook ------------------------------------------------------------------


def notebook_file(folder: Path, *sources: str, parameters: str = "n = 1") -> Path:
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(source) for source in sources]
    path = folder / "story.ipynb"
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return path


def run(tmp_path: Path, *sources: str, **options: object) -> tuple[str, nbformat.NotebookNode]:
    path = notebook_file(tmp_path, *sources)
    failure = report.execute(path, tmp_path / "report.ipynb", {"n": 5}, cwd=ROOT, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.ipynb", "story.ipynb"]
    return failure, report.read_notebook(tmp_path / "report.ipynb")


def text_of(notebook: nbformat.NotebookNode) -> str:
    return nbformat.writes(notebook)


def test_a_notebook_runs_with_its_parameters_and_keeps_nothing_of_the_machine(tmp_path, capfd):
    failure, saved = run(
        tmp_path,
        "import os, sys, warnings; print('n is', n, os.getcwd())",
        "warnings.warn('slow'); print(sys.prefix, file=sys.stderr)",
    )
    text = text_of(saved)
    assert failure == ""
    assert "n is 5 ." in text
    for secret in (str(ROOT), str(tmp_path), str(Path.home()), "start_time", "environment"):
        assert secret not in text
    assert capfd.readouterr().err == ""
    again, second = run(tmp_path, *[c.source for c in saved.cells[2:]])
    assert again == ""
    assert [c.get("outputs") for c in second.cells] == [c.get("outputs") for c in saved.cells]


def test_a_failing_cell_leaves_a_notebook_that_says_so(tmp_path):
    failure, saved = run(tmp_path, "print('before')", "raise ValueError('bad \x1b[31mred')", "1")
    assert failure == "cell 4 stopped with ValueError: bad red"
    assert "before" in text_of(saved)
    assert failure in saved.cells[0].source and saved.cells[0].cell_type == "markdown"
    assert saved.cells[-1].metadata.papermill.status == "not run"
    page = report.render(saved, header(failure=failure, verdict=None))
    assert "This report is incomplete." in page and failure in page
    assert "Cell 5 did not run." in page
    assert "No verdict" in page
    assert page.count("bad red") >= 2 and "\x1b" not in page


def test_a_dead_kernel_leaves_a_notebook_that_says_so(tmp_path):
    failure, saved = run(tmp_path, "print('last words', flush=True)", "import os; os._exit(9)", "1")
    assert failure == "the kernel died in cell 4: it was killed, or ran out of memory"
    assert "last words" in text_of(saved) and failure in saved.cells[0].source
    facts = [c.metadata.papermill.get("status") for c in saved.cells if c.cell_type == "code"]
    assert facts == ["completed", "completed", "completed", "failed", "not run"]
    assert "This report is incomplete." in report.render(saved, header())


def test_a_cell_that_never_ends_is_stopped_and_named(tmp_path):
    failure, saved = run(tmp_path, "import time; time.sleep(60)", timeout_s=1)
    assert failure == "cell 3 did not finish within 1 s"
    assert failure in saved.cells[0].source


def test_a_missing_kernel_is_a_failure_in_words(tmp_path):
    failure, saved = run(tmp_path, "1", kernel_name="no-such-kernel")
    assert failure == "there is no kernel named 'no-such-kernel' here"
    assert failure in saved.cells[0].source


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"x=open('owned','w'); y": 1}, "does not declare"),
        ({"m": 1}, "does not declare 'm'"),
        ({"n": float("nan")}, "not plain JSON"),
        ({"n": {1, 2}}, "not plain JSON"),
    ],
)
def test_only_declared_names_and_plain_values_are_injected(tmp_path, parameters, problem):
    path = notebook_file(tmp_path, "1", parameters="n: int = 1\na, b = 2, 3")
    with pytest.raises(ReportError, match=re.escape(problem)) as refused:
        report.execute(path, tmp_path / "report.ipynb", parameters, cwd=ROOT)
    assert "declared parameters: a, b, n" in str(refused.value)
    assert not (tmp_path / "report.ipynb").exists()


def test_what_is_no_notebook_is_refused_with_a_next_step(tmp_path):
    (tmp_path / "broken.ipynb").write_text("{")
    for name in ("broken.ipynb", "missing.ipynb"):
        with pytest.raises(ReportError) as refused:
            report.read_notebook(tmp_path / name)
        assert refused.value.next_step


def test_scrub_leaves_paths_that_are_evidence(tmp_path):
    stream = new_output("stream", name="stdout", text=f"{Path.home()}/.bee/keys missing\n")
    error = new_output("error", ename="E", evalue="", traceback=[f"File {ROOT}/a.py in b"])
    saved = report.scrub(new_notebook(cells=[cell(stream, error)]), roots={str(ROOT): "."})
    assert saved.cells[0].outputs[0].text == f"{Path.home()}/.bee/keys missing\n"
    assert saved.cells[0].outputs[1].traceback == ["File ./a.py in b"]


# --- the page ----------------------------------------------------------------------------


def test_the_same_notebook_and_header_give_the_same_bytes():
    story = [new_markdown_cell("# One\n\n## Two"), chart_cell(demo_chart())]
    once, again = (report.render(new_notebook(cells=story), header()) for _ in range(2))
    assert once == again
    later = report.render(new_notebook(cells=story), header(rendered_at=START + timedelta(days=1)))
    assert later.replace("2026-03-11T10:00:00Z", "2026-03-10T10:00:00Z") == once


def test_the_header_says_what_an_auditor_asks_first():
    page = report.render(new_notebook(), header())
    for part in ("Settlement stall", "stall-1", "Confirmed", "no settlement landed for 300 s",
                 str(WINDOW), "ab" * 32, "cd" * 32, "tbforensics 0.1.0",
                 "tbforensics verify incidents/stall-1"):  # fmt: skip
        assert part in page


def test_contents_lead_to_headings_that_exist_and_no_id_stands_twice():
    story = [
        new_markdown_cell("# One\n\n## Two & <three>\n\n## Two & <three>"),
        cell(html('<div id="finding-a">x</div><div id="finding-a">y</div><p id="section-1-one">')),
        cell(html('<a href="#finding-a">to it</a> <a href="#finding-gone">nowhere</a>')),
    ]
    page = report.render(new_notebook(cells=story), header())
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    links = re.findall(r'href="([^"]+)"', page)
    assert len(links) == 5 and {link.removeprefix("#") for link in links} <= set(ids)


def test_half_of_a_surrogate_pair_does_not_stop_a_report():
    half = json.loads('"\\ud800"')
    story = [new_markdown_cell(f"# a{half}b"), cell(html(f"<p>a{half}b</p>"), source=f"'{half}'")]
    page = report.render(new_notebook(cells=story), header(title=f"a{half}b"))
    assert page.encode().count(b"a\\ud800b") >= 4


def test_code_is_there_but_hidden():
    story = [cell(source="secret_sum = 1"), cell(html("<p>shown</p>"), source="secret_sum + 1")]
    page = report.render(new_notebook(cells=story), header())
    (details,) = re.findall(r'<details class="code">.*?</details>', page, re.DOTALL)
    assert "How this was computed (cells 1 to 2)" in details
    assert "secret_sum = 1" in details and page.count("secret_sum + 1") == 1


def test_a_page_without_charts_carries_no_script_at_all():
    page = report.render(new_notebook(cells=[cell(html("<b>x</b>"))]), header())
    assert "<script" not in page and "script-src &#39;none&#39;" in page
    assert len(page) < 25_000


def test_an_output_of_unknown_kind_is_named_and_not_shown():
    output = data(**{"application/javascript": "document.title='owned'"})
    page = report.render(new_notebook(cells=[cell(output)]), header())
    assert "application/javascript" in page and "owned" not in page


def test_a_failure_that_the_header_does_not_know_is_said_all_the_same():
    error = new_output("error", ename="ValueError", evalue="oops", traceback=["Traceback: oops"])
    story = [cell(error), cell(ran=False, source="later()")]
    page = report.render(new_notebook(cells=story), header())
    assert "cell 1 stopped with ValueError: oops; 1 of 2 cells did not run" in page


def test_forty_thousand_hostile_strings_are_quick():
    rows = "".join(f"<tr><td>{BREAKOUT}<b><i><u><a></td></tr>" for _ in range(40_000))
    before = datetime.now(UTC)
    page = report.render(new_notebook(cells=[cell(html(f"<table>{rows}</table>"))]), header())
    assert datetime.now(UTC) - before < timedelta(seconds=10)
    assert "onerror" not in page


def test_a_report_file_appears_whole_or_not_at_all(tmp_path):
    nbformat.write(new_notebook(cells=[cell(html("<p>x</p>"))]), tmp_path / "report.ipynb")
    report.write_report(tmp_path / "report.ipynb", tmp_path / "report.html", header())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.html", "report.ipynb"]
    assert (tmp_path / "report.html").read_text().endswith("</html>\n")
    with pytest.raises(ReportError, match="cannot be written"):
        report.write_report(tmp_path / "report.ipynb", tmp_path / "no" / "report.html", header())


def test_the_scripts_are_built_once_and_a_broken_copy_is_built_again(tmp_path):
    bundle = vega_bundle(tmp_path)
    (kept,) = tmp_path.iterdir()
    assert vega_bundle(tmp_path) == bundle and "</script" not in bundle
    kept.write_text(kept.read_text()[:-10])
    assert vega_bundle(tmp_path) == bundle
    assert kept.read_text().endswith(bundle)


def test_a_cache_that_cannot_be_written_is_no_obstacle(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert "vegaEmbed" in vega_bundle(tmp_path / "file" / "folder")


# --- in a browser, with the network off --------------------------------------------------


def demo_chart() -> object:
    """A chart whose title, labels and unit try to leave the JSON that they are in."""
    wide = samples(300, **{BREAKOUT: 1.0, "calm": 2.0})
    return charts.line(
        wide, unit=BREAKOUT, title=BREAKOUT, window=WINDOW, marks=[(START, BREAKOUT)]
    )


def raw_chart(**spec: object) -> nbformat.NotebookNode:
    """A chart that did not come from our renderer."""
    chart = {"spec": {"mark": "point", **spec}, "data": {}, "alt": PAYLOAD}
    return cell(new_output("display_data", data={charts.CHART_MIME: chart}))


def hostile_story() -> nbformat.NotebookNode:
    """Every way in that we know of."""
    evil = "https://evil.example/"
    styler = pd.DataFrame({PAYLOAD: [PAYLOAD]}, index=[PAYLOAD]).style.set_caption(PAYLOAD)
    outputs = [
        html(PAYLOAD),
        html(f"<table><tr><td>{PAYLOAD}</td></tr></table>"),
        html(styler.to_html(uuid="u")),
        html(pd.DataFrame({"a": [PAYLOAD]}).to_html(escape=False)),
        html(f'<meta http-equiv="refresh" content="0;url={evil}"><base href="{evil}">'),
        html(f'<iframe src="{evil}" srcdoc="{PAYLOAD}"></iframe><object data="{evil}"></object>'),
        html(
            f'<svg onload="document.title=1"><use href="{evil}"/></svg><math><mi//xlink:href="x">'
        ),
        html(f'<form action="{evil}"><input autofocus onfocus="document.title=1"></form>'),
        html(f'<style>@import "{evil}"; body {{ background: url({evil}) }}</style><p>styled</p>'),
        html(f'<p style="background:url({evil})">x</p><img src="{evil}"><link href="{evil}">'),
        html("<a href=\"javascript:document.title='owned'\" id=verify>a</a><a href=//evil>b</a>"),
        html('<p id="vg-tooltip-element" class="failure verdict">spoof</p><p id=vegaEmbed>clobber'),
        html("<noscript><p title=\"</noscript><img src=x onerror=document.title='owned'>\">"),
        html(f"<!--[if]>{PAYLOAD}<![endif]--><template>{PAYLOAD}</template><xmp>{PAYLOAD}</xmp>"),
        data(**{"application/javascript": "document.title='owned'"}),
        data(**{"text/vnd.mermaid": f"graph TD; A[{PAYLOAD}]"}),
        data(**{"image/svg+xml": "<svg onload=\"document.title='owned'\"></svg>"}),
        data(**{"text/markdown": f"{PAYLOAD}\n\n[x](javascript:alert(1)) ![y]({evil})"}),
        data(**{"text/latex": f"${PAYLOAD}$", "text/plain": PAYLOAD}),
        data(**{"image/png": f'x" onerror="document.title=1" y="{PAYLOAD}', "text/plain": "p"}),
        data(**{"application/vnd.jupyter.widget-view+json": {"model_id": "x"}}),
        new_output("stream", name="stdout", text=f"\x1b[31mred\x1b]8;;{evil}\x07link\x1b]8;;\x07"),
        new_output("stream", name="stdout", text=f"{PAYLOAD} \u202egnp.exe\u2066 a\x00b"),
        new_output("stream", name="stdout", text="x" * 1_000_000),
        new_output("error", ename=PAYLOAD, evalue=PAYLOAD, traceback=[f"\x1b[1m{PAYLOAD}\x1b[0m"]),
    ]
    prose = [
        f"# {PAYLOAD}\n\n{PAYLOAD}\n\n| a |\n|---|\n| {PAYLOAD} |",
        f"[a](javascript:document.title=1) ![b]({evil}) <{evil}> {evil} [c][d]\n\n[d]: {evil}",
        f"```html\n{PAYLOAD}\n```\n\n<details open ontoggle=\"document.title='owned'\">x</details>",
    ]
    live = [
        chart_cell(demo_chart()),
        raw_chart(data={"url": evil}),
        raw_chart(
            data={"values": [{"x": 1, "u": evil}]},
            mark={"type": "image", "width": 50, "height": 50},
            encoding={"url": {"field": "u"}, "href": {"field": "u"}, "tooltip": {"value": PAYLOAD}},
        ),
        raw_chart(
            data={"values": [{"x": 1}]},
            usermeta={"embedOptions": {"ast": False, "loader": {"baseURL": evil}, "actions": True}},
            transform=[{"calculate": "constructor.constructor('document.title=1')()", "as": "y"}],
        ),
    ]
    story = [new_markdown_cell(text) for text in prose]
    story += [cell(output, source=f"'{BREAKOUT}'") for output in outputs]
    return new_notebook(cells=[*story, *live])


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium() as page:
        yield page


def opened(browser: Page, folder: Path, story: nbformat.NotebookNode, **changed: object) -> str:
    """Open the rendered story; returns the page as the browser has it once its charts are drawn."""
    page = report.render(story, header(**changed))
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    browser.forget()
    browser.open(path)
    if "<figure" in page:
        browser.wait("document.documentElement.dataset.charts !== undefined")
    return str(browser.run("document.documentElement.outerHTML"))


def test_the_browser_would_notice(browser, tmp_path):
    """The other tests prove nothing unless the same payloads do harm in a page without defences."""
    path = tmp_path / "naive.html"
    path.write_text(f"<title>calm</title><img src='https://evil.example/x'>{PAYLOAD}")
    browser.forget()
    browser.open(path)
    assert browser.run("document.title") == "owned"
    assert asked_elsewhere(browser) == ["https://evil.example/x"]
    assert browser.complaints


def asked_elsewhere(browser: Page) -> list[str]:
    return [url for url in browser.requests if not url.startswith(("data:", "file:"))]


def test_nothing_of_a_hostile_notebook_runs_loads_or_leads_away(browser, tmp_path):
    dom = opened(browser, tmp_path, hostile_story())
    browser.move(600, 400)
    browser.run("new Promise((done) => setTimeout(done, 300))")
    assert browser.run("document.title") == "Settlement stall"
    assert asked_elsewhere(browser) == []
    assert browser.dialogs == []
    assert [url for url in browser.navigations if "report.html" not in url] == []
    assert browser.run("document.querySelectorAll('script:not([type])').length") == 2
    bad = "iframe, object, embed, meta[http-equiv=refresh], base, link, svg, [style*=url]"
    bad += ", form:not(.vega-bindings)"  # vega's own is empty
    found = f"[...document.querySelectorAll('{bad}')].map((e) => e.outerHTML.slice(0, 200))"
    assert browser.run(found) == []
    handlers = "[...document.querySelectorAll('*')].flatMap((e) => e.getAttributeNames())"
    assert browser.run(f"{handlers}.filter((n) => n.startsWith('on'))") == []
    links = "[...document.querySelectorAll('[href]')].map((e) => e.getAttribute('href'))"
    assert all(link.startswith("#") for link in browser.run(links))
    assert browser.run("document.querySelectorAll('.failure, .verdict').length") == 2
    assert not {"\u202e", "\u2066", "\x1b"} & set(dom)
    assert len(dom) < 1_500_000


def test_hostile_charts_cannot_load_and_ours_is_drawn(browser, tmp_path):
    opened(browser, tmp_path, hostile_story())
    assert browser.run("!!document.querySelector('figure.chart canvas')")
    refused = ("this page loads nothing", "Loading failed")
    assert [c for c in browser.complaints if not any(word in c for word in refused)] == []


def test_a_calm_page_has_no_complaint_and_draws_all_its_charts_small(browser, tmp_path):
    sizes = (5_000, 10_000, 20_000, 35_000, 50_000)
    story = [
        chart_cell(charts.line(samples(n, a=1.0, b=2.0, c=3.0), unit="s", title=f"{n:,}"))
        for n in sizes
    ]
    opened(browser, tmp_path, new_notebook(cells=story))
    assert browser.run("document.documentElement.dataset.charts") == "5 of 5"
    assert browser.run("document.querySelectorAll('figure.drawn canvas').length") == 5
    assert browser.complaints == [] and asked_elsewhere(browser) == []
    assert (tmp_path / "report.html").stat().st_size < 3_000_000


def test_the_pointer_gets_a_tooltip_in_utc(browser, tmp_path):
    wide = pd.DataFrame({"a": [1.0] * 60}, index=pd.date_range(START, periods=60, freq="60s"))
    browser.send("Emulation.setTimezoneOverride", timezoneId="America/New_York")
    opened(
        browser, tmp_path, new_notebook(cells=[chart_cell(charts.line(wide, unit="s", title="t"))])
    )
    browser.run("document.querySelector('canvas').scrollIntoView({block: 'center'})")
    box = browser.run("(({x, y, width, height}) => ({x, y, width, height}))"
                      "(document.querySelector('canvas').getBoundingClientRect())")  # fmt: skip
    for step in range(3):
        browser.move(box["x"] + box["width"] / 2 + step, box["y"] + box["height"] / 2)
    browser.wait("!!document.querySelector('#vg-tooltip-element.visible')")
    tip = browser.run("document.querySelector('#vg-tooltip-element').textContent")
    assert re.search(r"2026-03-10 10:\d\d:00 UTC", tip) and "series" in tip


def test_without_script_and_on_paper_the_picture_stands_for_the_chart(tmp_path):
    story = new_notebook(cells=[chart_cell(demo_chart())])
    with chromium(javascript=False) as page:
        (tmp_path / "report.html").write_text(report.render(story, header()), encoding="utf-8")
        page.open(tmp_path / "report.html")
        page.screenshot(tmp_path / "shot.png")
        root = page.send("DOM.getDocument", depth=1)["root"]["nodeId"]
        image = page.send("DOM.querySelector", nodeId=root, selector="figure.chart img")["nodeId"]
        width = page.send("DOM.getBoxModel", nodeId=image)["model"]["width"]
        assert width > 400


def test_on_paper_the_picture_replaces_the_canvas(browser, tmp_path):
    opened(browser, tmp_path, new_notebook(cells=[chart_cell(demo_chart())]))
    shown = "getComputedStyle(document.querySelector('figure.chart {}')).display"
    assert browser.run(shown.format("img")) == "none"
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert browser.run(shown.format("img")) == "block"
    assert browser.run(shown.format(".live")) == "none"
    browser.send("Emulation.setEmulatedMedia", media="")
    browser.print(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")


def test_a_phone_scrolls_tables_and_not_the_page(browser, tmp_path):
    wide = pd.DataFrame({f"column {i}": ["x" * 40] for i in range(30)})
    story = [cell(html(wide.to_html())), chart_cell(demo_chart())]
    browser.look(width=390, height=800)
    opened(browser, tmp_path, new_notebook(cells=story))
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.look()


@pytest.mark.parametrize("room", ["report", "charts"])
def test_nobody_waits_for_a_grammar_that_nobody_uses(room):
    code = (
        f"import sys, tbforensics.{room}; print('jsonschema' in sys.modules, 'lark' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "True False\n"


def test_the_blob_of_a_chart_is_the_data_of_the_notebook():
    story = chart_cell(demo_chart())
    page = report.render(new_notebook(cells=[story]), header())
    (blob,) = re.findall(r'<script type="application/json">([A-Za-z0-9+/=]+)</script>', page)
    live = json.loads(gzip.decompress(base64.b64decode(blob)))
    assert live["data"] == story.outputs[0].data[charts.CHART_MIME]["data"]
