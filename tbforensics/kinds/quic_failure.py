"""QUIC failure: handshakes fail, or packets are lost, far more than before."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from tbforensics.analysis.contributions import Contributions, contributions
from tbforensics.analysis.effects import effect_size
from tbforensics.analysis.logmatch import match_logs
from tbforensics.analysis.spans import Span, incident_span
from tbforensics.frames import summed
from tbforensics.model import Finding, Frames, Json, Kind, Query, Shape, Spell, Window, utc_text
from tbforensics.theblock import peer_base58, peer_hex, without_seeds

_WITNESSES = ("bytes_sent", "handshake_success", "endpoint_reuse", "provider_connects")
_MINUTE_S = 60.0
_MOST_ROWS = 12


@dataclass(frozen=True)
class Thresholds:
    """What makes it an incident, and how near is near.

    A spell counts when its rate is above both numbers of its family.
    """

    handshake_fail_per_min: float = 2.0  # a node with flapping home peers stays below this
    retransmit_per_min: float = 60.0  # one lost packet a second
    times_baseline: float = 3.0
    rotation_near_s: float = 600.0  # an old key stays valid for 300 s; twice that
    log_near_s: float = 30.0  # one step of a usual scrape on either side


def analyse(frames: Frames, thresholds: Thresholds) -> list[Finding]:
    """Who failed, why, since when; and what else moved, was logged and was remembered."""
    failures = without_seeds(frames["handshake_fail"])
    findings = list(_failing(frames, failures, thresholds))
    findings += _retransmitting(frames, thresholds)
    spell = next((f for f in findings if f.decides and f.spell), None)
    if spell is None:
        return findings
    during = spell.window
    if spell.id == "handshake-failures":
        findings += _who_and_why(frames, failures, during)
        findings += _share_of_attempts(frames, failures, during)
        findings += _logged(frames, failures, during, thresholds)
    findings += _beside(frames, during, thresholds)
    findings += _rotations(frames, during.start, thresholds)
    findings += _remembered(frames, during)
    return findings


# --- did it fail ---------------------------------------------------------------------------


def _failing(frames: Frames, failures: pd.DataFrame, thresholds: Thresholds) -> Iterator[Finding]:
    by_peer = _by_peer(failures, "peer")
    yield from _spell(
        frames,
        by_peer,
        id="handshake-failures",
        query="handshake_fail",
        what="QUIC handshakes failed",
        unit="failures/min",
        least_per_min=thresholds.handshake_fail_per_min,
        times=thresholds.times_baseline,
    )


def _retransmitting(frames: Frames, thresholds: Thresholds) -> Iterator[Finding]:
    yield from _spell(
        frames,
        summed(frames["retransmits"], "instance"),
        id="retransmits",
        query="retransmits",
        what="QUIC packets were sent again",
        unit="packets/min",
        least_per_min=thresholds.retransmit_per_min,
        times=thresholds.times_baseline,
    )


def _spell(
    frames: Frames,
    rises: pd.DataFrame,
    *,
    id: str,
    query: str,
    what: str,
    unit: str,
    least_per_min: float,
    times: float,
) -> Iterator[Finding]:
    """The strongest spell of a counter, if it is above its thresholds.

    A rate that is above the absolute threshold in window and baseline alike is no spell, and is
    reported all the same: then the baseline is not calm.
    """
    if rises.empty:
        return
    per_min = _MINUTE_S / frames.step_s
    total = rises.sum(axis=1, min_count=1)
    calm = _between(total, frames.baseline).mean() * per_min
    span = incident_span(rises, "increase", baseline=(frames.baseline.start, frames.baseline.end))
    found = _as_spell(span, frames, total) if span else None
    if found:
        spell, window = found
        rate = _between(total, window).mean() * per_min
        if rate >= max(least_per_min, times * calm):
            effect = effect_size(total, window, frames.baseline, "increase")
            ratio = f"{rate / calm:.3g} times the baseline" if calm else "none in the baseline"
            if unseen := math.isnan(calm):
                ratio = "nobody saw the baseline"
            yield Finding(
                claim=f"{what} {_between(total, window).sum():,.0f} times in "
                f"{window.seconds / 60:.0f} min, {rate:.3g} a minute: {ratio}",
                id=id,
                value=rate,
                unit=unit,
                threshold=least_per_min if unseen else max(least_per_min, times * calm),
                interval=_per_min(effect.difference_interval, calm, per_min),
                window=window,
                spell=spell,
                decides=True,
                cites=(query,),
                caution="without a baseline nobody knows whether it was so before"
                if unseen
                else "",
            )
            return
    everywhere = _between(total, frames.window).mean() * per_min
    if everywhere >= least_per_min and calm >= least_per_min:
        yield Finding(
            claim=f"{what} all the time, {everywhere:.3g} a minute in the window and {calm:.3g} "
            "in the baseline: the baseline was not calm",
            id=f"{id}-all-along",
            value=everywhere,
            unit=unit,
            threshold=least_per_min,
            window=frames.window,
            decides=True,
            cites=(query,),
            caution="onset and magnitude need a baseline from before it began",
        )


def _as_spell(span: Span, frames: Frames, total: pd.Series) -> tuple[Spell, Window] | None:
    def moment(time: object) -> pd.Timestamp:
        return pd.Timestamp(time)

    onset = moment(span.onset)
    recovery = moment(span.recovery) if span.recovery is not None else None
    end = recovery or frames.window.end
    if onset < frames.window.start or end <= onset:
        return None
    # A step's label is its start; what it counted may have happened anywhere in it.
    step = pd.Timedelta(seconds=frames.step_s)
    back = span.recovery_interval
    holes = list(_holes(frames, total))
    began = _over(holes, moment(span.onset_interval[0]), moment(span.onset_interval[1]) + step)
    ended = _over(holes, moment(back[0]) - step, moment(back[1])) if recovery and back else None
    spell = Spell(
        onset=onset,
        onset_earliest=began[0],
        onset_latest=began[1],
        recovery=recovery,
        recovery_earliest=ended[0] if ended else None,
        recovery_latest=ended[1] if ended else None,
    )
    return spell, Window(onset, end)


def _holes(frames: Frames, total: pd.Series) -> Iterator[tuple[pd.Timestamp, pd.Timestamp]]:
    """When nothing was seen, or some target was not: the search for an onset bridges them."""
    step = pd.Timedelta(seconds=frames.step_s)
    unseen = total.isna()
    for _, run in total[unseen].groupby((~unseen).cumsum()[unseen]):
        yield run.index[0], run.index[-1] + step
    for doubt in frames.doubts:
        if doubt.window and doubt.what in ("gap", "scrape failure"):
            yield pd.Timestamp(doubt.window.start), pd.Timestamp(doubt.window.end)


def _over(
    holes: Sequence[tuple[pd.Timestamp, pd.Timestamp]], earliest: pd.Timestamp, latest: pd.Timestamp
) -> tuple[pd.Timestamp, pd.Timestamp]:
    """An interval with the holes that it touches: it may have happened anywhere in them."""
    touched = [hole for hole in holes if hole[0] <= latest and hole[1] >= earliest]
    return min([earliest, *(h[0] for h in touched)]), max([latest, *(h[1] for h in touched)])


# --- who and why ---------------------------------------------------------------------------


def _who_and_why(frames: Frames, failures: pd.DataFrame, during: Window) -> Iterator[Finding]:
    for label, what, table in (
        ("peer", "Peer", _by_peer(failures, "peer")),
        ("reason", "Reason", summed(failures, "reason")),
    ):
        parts = contributions(_between(table, frames.baseline), _between(table, during))
        if parts.changed:
            yield _contributed(frames, parts, label, what, during)


def _contributed(
    frames: Frames, parts: Contributions, label: str, what: str, during: Window
) -> Finding:
    per_min = _MINUTE_S / frames.step_s
    shares = {part.label: part.share for part in parts.parts}
    share = sum(shares[name] for name in parts.explained_by)
    named = ", ".join(_short(str(name)) for name in parts.explained_by)
    claim = f"{what} {named} explains {share:.0%} of the rise"
    if len(parts.explained_by) > 1:
        claim = f"{what}s {named} together explain {share:.0%} of the rise"
    if not parts.explained_by:
        claim = f"No single {label} explains the rise"
    return Finding(
        claim=claim,
        id=f"by-{label}",
        value=share,
        unit="share of the rise",
        window=during,
        cites=("handshake_fail",),
        rows=tuple(
            {
                label: str(part.label) or "(none)",
                **({"base58": _base58(str(part.label))} if label == "peer" else {}),
                "baseline_per_min": part.baseline * per_min,
                "window_per_min": part.window * per_min,
                "change_per_min": part.change * per_min,
                "share": part.share,
                "explains": part.label in parts.explained_by,
            }
            for part in parts.parts[:_MOST_ROWS]
        ),
        caution=""
        if len(parts.parts) <= _MOST_ROWS
        else f"the largest {_MOST_ROWS} of {len(parts.parts)} are shown; the shares add up to 1 "
        "over all of them",
    )


def _share_of_attempts(frames: Frames, failures: pd.DataFrame, during: Window) -> Iterator[Finding]:
    """Only builds that count successes can say what share of attempts failed."""
    successes = without_seeds(frames["handshake_success"])
    if successes.empty:
        return
    shares = []
    for window in (frames.baseline, during):
        failed = _between(failures, window).to_numpy()
        failed_n = float(pd.DataFrame(failed).sum().sum())
        worked_n = float(_between(successes, window).sum().sum())
        shares.append(failed_n / (failed_n + worked_n) if failed_n + worked_n else 0.0)
    yield Finding(
        claim=f"{shares[1]:.1%} of the QUIC handshakes failed, against {shares[0]:.1%} before",
        id="failed-share",
        value=shares[1],
        unit="share of attempts",
        window=during,
        cites=("handshake_fail", "handshake_success"),
    )


# --- what else -----------------------------------------------------------------------------

_BESIDE = (
    ("handshake_fail_all", "handshake failures of any transport"),
    ("peer_handshake_fail", "handshake failures by peer of the overlay"),
    ("peer_tls_errors", "TLS errors by peer"),
    ("tcp_fallbacks", "connections that fell back to TCP"),
    ("disconnects", "QUIC disconnects"),
    ("peer_drops", "messages dropped by peer"),
    ("log_correlation_fails", "log correlations that found nothing"),
)


def _beside(frames: Frames, during: Window, thresholds: Thresholds) -> Iterator[Finding]:
    """Other families in the same spell. One failure may count in several: they are not added."""
    per_min = _MINUTE_S / frames.step_s
    rows: list[dict[str, Json]] = []
    cites = []
    for query, what in _BESIDE:
        table = without_seeds(frames[query])
        if table.empty:
            continue
        total = table.sum(axis=1, min_count=1)
        calm = _between(total, frames.baseline).mean() * per_min
        rate = _between(total, during).mean() * per_min
        cites.append(query)
        rows.append(
            {
                "family": query,
                "what": what,
                "count": float(_between(total, during).sum()),
                "window_per_min": float(rate),
                "baseline_per_min": float(calm),
                "rose": bool(rate > thresholds.times_baseline * calm),
                "leading_peer": _leading_peer(table, during),
            }
        )
    if not rows:
        return
    risen = [row for row in rows if row["rose"]]
    yield Finding(
        claim=f"{len(risen)} of {len(rows)} other families rose in the same spell",
        id="other-families",
        value=float(len(risen)),
        unit="families",
        window=during,
        cites=tuple(cites),
        rows=tuple(rows),
        caution="one failure may be counted in several families, so they are never added up",
    )


def _leading_peer(table: pd.DataFrame, during: Window) -> str | None:
    if "peer_id" not in table.columns.names:
        return None
    counts = _between(_by_peer(table, "peer_id"), during).sum()
    return str(counts.idxmax()) if counts.max() > 0 else None


def _rotations(frames: Frames, onset: object, thresholds: Thresholds) -> Iterator[Finding]:
    """Certificate and key rotations that happened near the onset."""
    near_s = thresholds.rotation_near_s
    began = pd.Timestamp(onset)
    rows: list[dict[str, Json]] = []
    cites = []
    for query, label in (("cert_rotations", "peer"), ("key_rotations", ""), ("peer_rotations", "")):
        table = without_seeds(frames[query])
        if table.empty:
            continue
        cites.append(query)
        by = _by_peer(table, label) if label else summed(table)
        for name in by.columns:
            for step in by.index[by[name] > 0]:
                after_s = (step - began).total_seconds()
                if abs(after_s) <= near_s:
                    rows.append(
                        {
                            "what": query,
                            "peer": str(name) if label else None,
                            "time": utc_text(step),
                            "after_onset_s": after_s,
                            "count": float(by.at[step, name]),
                        }
                    )
    if rows:
        rows.sort(key=lambda row: (abs(row["after_onset_s"]), row["what"], row["peer"] or ""))
        nearest = rows[0]
        side = "before" if nearest["after_onset_s"] <= 0 else "after"
        yield Finding(
            claim=f"A rotation ({nearest['what']}) {abs(nearest['after_onset_s']):.0f} s {side} "
            "the onset",
            id="rotation",
            value=nearest["after_onset_s"],
            unit="s after onset",
            threshold=near_s,
            window=Window(
                began + pd.Timedelta(seconds=nearest["after_onset_s"]),
                began + pd.Timedelta(seconds=nearest["after_onset_s"] + frames.step_s),
            ),
            cites=tuple(cites),
            rows=tuple(rows[:_MOST_ROWS]),
            caution="near in time is not a cause",
        )


# --- logs ----------------------------------------------------------------------------------

_ABOUT_QUIC = re.compile(r"quic|handshake|certificate|fingerprint", re.IGNORECASE)


def _logged(
    frames: Frames, failures: pd.DataFrame, during: Window, thresholds: Thresholds
) -> Iterator[Finding]:
    """Log lines that go with the failures: same peer and near in time, grouped by message."""
    near = pd.Timedelta(seconds=thresholds.log_near_s)
    lines = frames["log_lines"]
    lines = lines[lines["ts"].between(during.start - near, during.end + near, inclusive="left")]
    lines = lines[lines["message"].fillna("").str.contains(_ABOUT_QUIC)].reset_index(drop=True)
    lines = lines.drop_duplicates(["ts", "message", "peer", "correlation_id"])
    counts = _between(_by_peer(failures, "peer"), during)
    found = match_logs(
        counts, lines, key="peer", step_s=frames.step_s, near_s=thresholds.log_near_s
    )
    if not found.matches:
        return
    yield Finding(
        claim=f"{found.share:.0%} of the failures have a QUIC log line of the same peer within "
        f"{thresholds.log_near_s:.0f} s; {len(lines)} lines, {len(found.matches)} messages",
        id="log-lines",
        value=found.share,
        unit="share of failures",
        window=during,
        cites=("handshake_fail", "log_lines"),
        rows=tuple(
            {
                "message": match.template,
                "lines": match.lines,
                "peers": match.keys,
                "share": match.share,
                "correlation": match.correlation if math.isfinite(match.correlation) else None,
                "lead_s": match.lead_s,
                "correlation_ids": list(match.correlation_ids),
                "example": _place(lines.iloc[match.example]),
            }
            for match in found.matches[:_MOST_ROWS]
        ),
        caution="a node writes only 1 in 100 lines above 100 a second, so lines undercount bursts",
    )


def _place(line: pd.Series) -> str:
    return f"{line['file']}:{line['line']}"


# --- what the node remembers ---------------------------------------------------------------


def _remembered(frames: Frames, during: Window) -> Iterator[Finding]:
    """The node's own ring of its last 128 handshake failures, against the metrics."""
    table = frames["handshake_ring"]
    answers = [row for row in table.to_dict("records") if row["state"] == "ok"]
    if not answers:
        return
    ring = [
        entry
        for row in answers
        for entry in _entries(row["value"])
        if isinstance(entry.get("ts"), int) and isinstance(entry.get("peer"), str)
    ]
    inside = [e for e in ring if during.start.timestamp() <= e["ts"] < during.end.timestamp()]
    if not ring:
        return
    peers = pd.Series([e["peer"] for e in inside], dtype=object).value_counts()
    oldest = min(entry["ts"] for entry in ring)
    lost = oldest > during.start.timestamp()
    yield Finding(
        claim=f"The node remembers {len(inside)} handshake failures of this spell"
        + (f", most of them with {_short(str(peers.index[0]))}" if len(peers) else ""),
        id="handshake-ring",
        value=float(len(inside)),
        unit="failures",
        window=during,
        cites=("handshake_ring",),
        rows=tuple({"peer": str(peer), "failures": int(n)} for peer, n in peers.items())[
            :_MOST_ROWS
        ],
        caution="the ring holds 128 entries and its oldest is younger than the onset: earlier ones "
        "are lost"
        if lost
        else "",
    )


def _entries(value: Json) -> list[dict[str, Json]]:
    """What a node sent as its ring; nothing where it has an unknown form."""
    entries = value.get("failures") if isinstance(value, dict) else None
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


# --- small words ---------------------------------------------------------------------------


def _by_peer(table: pd.DataFrame, label: str) -> pd.DataFrame:
    """Columns by peer, as hex where the label is a peer id in either spelling."""
    by = summed(table, label)
    # As an index: pandas would look for the names of a list among the times, and find dates there.
    spelled = pd.Index([peer_hex(str(name)) or str(name) for name in by.columns])
    return by.T.groupby(spelled).sum(min_count=1).T


def _between(table: pd.DataFrame | pd.Series, window: Window) -> pd.DataFrame | pd.Series:
    return table[(table.index >= window.start) & (table.index < window.end)]


def _per_min(
    interval: tuple[float, float], calm: float, per_min: float
) -> tuple[float, float] | None:
    low, high = (calm + bound * per_min for bound in interval)
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else None


def _short(peer: str) -> str:
    return f"{peer[:8]}…" if peer_hex(peer) else peer


def _base58(peer: str) -> str | None:
    return peer_base58(peer) if peer_hex(peer) else None


def _counter(name: str, text: str, unit: str, why: str, **more: Json) -> Query:
    return Query(name, "prometheus", text, unit, Shape.COUNTER, why=why, **more)


def _state(name: str, method: str, why: str) -> Query:
    return Query(name, "jsonrpc", method, shape=Shape.ROWS, why=why)


QUERIES: Sequence[Query] = (
    _counter("handshake_fail", "quic_handshake_fail_total", "failures",
             "failed handshakes by peer and reason", required=True, witnesses=_WITNESSES),
    _counter("retransmits", "quic_retransmit_total", "packets",
             "packets sent again; no labels", required=True, witnesses=_WITNESSES),
    _counter("handshake_success", "quic_handshake_success_total", "handshakes",
             "newer builds only", witnesses=_WITNESSES),
    _counter("bytes_sent", "quic_bytes_sent_total", "bytes", "QUIC is compiled in and counted"),
    _counter("endpoint_reuse", "quic_endpoint_reuse_total", "connections", "as bytes_sent"),
    _counter("provider_connects", "quic_provider_connect_total", "connections", "as bytes_sent"),
    _counter("tcp_fallbacks", "quic_fallback_tcp_total", "connections",
             "what users felt of it", witnesses=_WITNESSES),
    _counter("disconnects", "quic_disconnect_total", "disconnects", "by code",
             witnesses=_WITNESSES),
    _counter("cert_rotations", "quic_cert_rotation_total", "rotations", "a usual cause",
             witnesses=_WITNESSES),
    _counter("key_rotations", "key_rotation_total", "rotations", "a usual cause"),
    _counter("peer_rotations", "peer_key_rotate_total", "rotations", "a usual cause"),
    _counter("handshake_fail_all", "handshake_fail_total", "failures", "any transport"),
    _counter("peer_handshake_fail", "net_peer_handshake_fail_total", "failures",
             "the overlay's own count; peer ids in base58"),
    _counter("peer_tls_errors", "net_peer_tls_error_total", "errors", "by peer"),
    _counter("peer_drops", "peer_drop_total", "messages", "by peer and reason"),
    _counter("log_correlation_fails", "log_correlation_fail_total", "searches",
             "searches of the log store that found nothing"),
    _state("quic_stats", "net.quic_stats", "per peer, true at the moment of asking"),
    _state("handshake_ring", "net.handshake_failures", "the last 128 failures"),
    _state("peer_stats", "net.peer_stats_all", "per peer, only from the node's own machine"),
    Query("log_lines", "logs", "", "lines", Shape.ROWS, why="what the node said"),
)  # fmt: skip

KIND = Kind(
    title="QUIC failure",
    question="Did QUIC handshakes fail or packets get lost, with whom, why and since when?",
    queries=tuple(QUERIES),
    thresholds=Thresholds,
    analyse=analyse,
    onset="handshake-failures",
)
