"""What the page says around the cells: its header, its contents, its sums, its policy."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from tbforensics.model import Json, Verdict, Window, utc_text
from tbforensics.report_page.bundle import page_file, vega_bundle
from tbforensics.report_page.safe import Heading
from tbforensics.report_page.text import VERDICTS, duration, visible

NO_VERDICT = ("–", "No verdict", "The run failed before one could be reached.")


@dataclass(frozen=True)
class Header:
    """What stands above the story. `rendered_at` is the only thing that differs between runs.

    verdict: None when the run failed before there was one.
    failure: what `execute` returned.
    case:    the folder as `tbforensics verify` takes it.
    signature: who signed the case before this page was printed; "" when nobody had.
    """

    title: str
    incident_id: str
    kind: str
    window: Window
    baseline: Window | None
    verdict: Verdict | None
    reasons: tuple[str, ...]
    manifest_sha256: str
    findings_sha256: str
    tool_version: str
    rendered_at: datetime
    failure: str = ""
    case: str = ""
    signature: str = ""


def page_of(
    header: Header, headings: list[Heading], failure: str, *, charts: bool
) -> dict[str, Json]:
    """All that the template prints beside the cells; text but for style and scripts."""
    mark, word, meaning = VERDICTS[header.verdict] if header.verdict else NO_VERDICT
    style = page_file("fragments.css") + "\n" + page_file("page.css")
    bundle, script = (vega_bundle(), page_file("page.js")) if charts else ("", "")
    stamp = utc_text(header.rendered_at)
    case = visible(header.case or f"incidents/{header.incident_id}", limit=200)
    return {
        "policy": policy(style, [bundle, script] if charts else []),
        "style": Markup(style),  # noqa: S704 (our own files, not evidence)
        "bundle": Markup(bundle),  # noqa: S704
        "script": Markup(script),  # noqa: S704
        "title": visible(header.title, limit=200),
        "kind": visible(header.kind.replace("_", " "), limit=80),
        "failure": visible(failure, limit=2000),
        "tone": str(header.verdict or "none"),
        "mark": mark,
        "word": word,
        "meaning": meaning,
        "reasons": [visible(reason) for reason in header.reasons],
        "facts": _facts(header),
        "headings": [heading for heading in headings if heading.level <= 3],
        "sums": [
            ("Manifest SHA-256", visible(header.manifest_sha256 or "none", limit=80)),
            ("Findings SHA-256", visible(header.findings_sha256 or "none", limit=80)),
            ("Signature", visible(header.signature or "none when this was printed", limit=400)),
            ("Check it with", f"tbforensics verify {case}"),
        ],
        "command": f"tbforensics verify {case}",
        "colophon": f"Printed at {stamp}. "
        "This page holds no link to another place and asks nobody for anything.",
    }


def _facts(header: Header) -> list[tuple[str, str]]:
    return [
        ("Incident", visible(header.incident_id, limit=120)),
        ("Window", _span(header.window)),
        ("Baseline", _span(header.baseline) if header.baseline else "none"),
        ("Made by", f"tbforensics {visible(header.tool_version, limit=40)}"),
    ]


def _span(window: Window) -> str:
    return f"{window} ({duration(window.seconds)})"


def policy(style: str, scripts: list[str]) -> str:
    """What the browser may do with this page: our style, our scripts, pictures that it holds."""
    ours = " ".join(_sha256(script) for script in scripts) or "'none'"
    return (
        f"default-src 'none'; script-src {ours}; style-src {_sha256(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _sha256(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
