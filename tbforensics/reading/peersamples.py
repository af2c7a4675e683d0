"""What a metrics aggregator keeps of each peer: samples of counters, some of which add up.

Two posts for a peer within one second become one sample with *every number added*, times and
scores too. Such a sample is flagged, and nothing may be differenced with it or across it: what
the counters were just before and just after it is not known to belong to one count. The posts
themselves, where the aggregator archived them, are as the nodes sent them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, TypeGuard

from tbforensics import theblock
from tbforensics.model import Json
from tbforensics.reading.logrows import LineError, parse, time_ms

DEEPEST = 32  # levels; a sample has four, and every reader after us may recurse
_DAY_S = 86_400
_COUNTERS = ("requests", "bytes_sent", "sends", "handshake_success", "tls_errors")
_BY_REASON = ("handshake_fail", "drops")


class Sample(NamedTuple):
    """One record. `ts_ms` is unix milliseconds; `value` what `_value` describes."""

    place: int
    ts_ms: int | None
    value: dict[str, Json]


def samples_of(text: bytes, peer: str) -> list[Sample | LineError]:
    """The body of `/peer/<id>`, or an entry of an export: `[[seconds, {...}], ...]`.

    A sample that cannot be read is an error in its place. Errors: LineError when it is no array.
    """
    return [_sampled(item, peer, place) for place, item in enumerate(_array(text))]


def posts_of(line: bytes, place: int = 0) -> list[Sample | LineError]:
    """A line of a metrics archive: `[{"peer_id", "metrics"}, ...]`, one post as it was accepted.

    place: of its first element, where only a part of the line is given.

    The aggregator notes no time of arrival; the time is the node's own `last_updated`, and none
    where the post has none. Errors: as above.
    """
    return [_posted(item, at) for at, item in enumerate(_array(line), place)]


def _array(text: bytes) -> list[Json]:
    found = parse(text)
    if not isinstance(found, list):
        raise LineError("it is no array")
    return found


def _sampled(item: Json, peer: str, place: int) -> Sample | LineError:
    try:
        if not isinstance(item, list) or len(item) != 2 or not isinstance(item[1], dict):
            raise LineError(f"its element {place} is not [seconds, {{...}}]")
        if isinstance(item[0], str) or (ts_ms := time_ms(item[0])) is None:
            raise LineError(f"its element {place} has no time that can be read")
        return Sample(place, ts_ms, _value(item[1], peer, ts_ms // 1000))
    except LineError as error:
        return error


def _posted(item: Json, place: int) -> Sample | LineError:
    try:
        if not isinstance(item, dict) or not isinstance(item.get("metrics"), dict):
            raise LineError(f"its element {place} is not {{peer_id, metrics}}")
        metrics, updated = item["metrics"], item["metrics"].get("last_updated")
        ts_ms = time_ms(updated) if _is_number(updated) and updated > 0 else None
        value = _value(metrics, str(item.get("peer_id", "")), None)
        return Sample(place, ts_ms, value)
    except LineError as error:
        return error


def _value(metrics: dict[str, Json], peer: str, second: int | None) -> dict[str, Json]:
    """One sample as it is kept.

    peer:     hex where it is a known spelling of a peer id, else as it came.
    what:     "stats" for a peer's counters, "rotation" for a new key, "other".
    sample:   the object itself; counters by reason in one spelling, a score in place of how it
              came about.
    new_key:  of a rotation, in hex.
    summed:   true where two posts were added up, false where not, null where nothing tells.
    why:      the signs of it.
    """
    if too_deep(metrics):
        raise LineError("it is nested too deep")
    what, sample = "other", metrics
    if any(isinstance(metrics.get(name), dict) for name in _BY_REASON):
        what = "stats"
        try:
            sample, _ = theblock.normalise("net.peer_stats", metrics)
        except TypeError:
            raise LineError("counts by reason that are no numbers") from None
    value: dict[str, Json] = {
        "peer": theblock.peer_hex(peer) or peer,
        "what": what,
        "sample": sample,
    }
    if isinstance(new_key := metrics.get("key_rotation"), str):
        value.update(what="rotation", new_key=theblock.peer_hex(new_key) or new_key)
    signs, tells = _signs(metrics, second) if second is not None else ([], True)
    return {**value, "summed": bool(signs) if tells else None, "why": signs}


def _signs(metrics: Mapping[str, Json], second: int) -> tuple[list[str], bool]:
    """Signs that two posts were added up, and whether their absence would say that none were."""
    signs = []
    updated = metrics.get("last_updated")
    tells = _is_number(updated) and updated > 0
    if _is_number(updated) and updated > second + _DAY_S:
        signs.append("last_updated lies more than a day after the sample")
    score = metrics.get("reputation")
    if isinstance(score, dict):
        score = score.get("score")
    if _is_number(score) and score > 1:
        signs.append("the reputation score is above 1")
    return signs, tells or bool(signs)


def _is_number(value: Json) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def too_deep(value: Json) -> bool:
    """More levels than anything of a node or an aggregator has."""
    inner = [value]
    for _ in range(DEEPEST):
        held = [item for item in inner if isinstance(item, dict | list)]
        if not held:
            return False
        inner = [v for item in held for v in (item.values() if isinstance(item, dict) else item)]
    return True


def text_of(value: dict[str, Json]) -> str:
    """The value as JSON that UTF-8 can hold."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return text.encode("utf-8", "replace").decode("utf-8")


# --- arithmetic ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Rise:
    """How much one counter of a peer rose between two samples that follow each other.

    since, until: unix milliseconds of the two. A push that fails is never repeated, so a long
                  way between them is time that nobody saw, and not time without change.
    began_again:  the later one is smaller: the node restarted and counts from zero.
    """

    peer: str
    counter: str
    since: int
    until: int
    rise: float
    began_again: bool = False


def rises(samples: Iterable[tuple[int, Mapping[str, Json]]]) -> Iterator[Rise]:
    """Rises of every counter, from (milliseconds, value of a record) in any order.

    Only samples that are known not to be summed are differenced, and only where no summed one
    stands between them. The same sample from two replies counts once.
    """
    by_peer: dict[str, dict[int, Mapping[str, Json]]] = {}
    for ts_ms, value in samples:
        if value["what"] == "stats":
            by_peer.setdefault(str(value["peer"]), {}).setdefault(ts_ms, value)
    for peer, known in sorted(by_peer.items()):
        for (since, earlier), (until, later) in pairwise(sorted(known.items(), key=_by_time)):
            if earlier["summed"] is not False or later["summed"] is not False:
                continue
            before, after = _counters(earlier["sample"]), _counters(later["sample"])
            for counter, count in after.items():
                if counter in _COUNTERS and counter not in before:
                    continue
                start = before.get(counter, 0)  # a reason that never occurred is not listed
                again = count < start
                rise = count if again else count - start
                yield Rise(peer, counter, since, until, rise, again)


def _by_time(item: tuple[int, Mapping[str, Json]]) -> int:
    return item[0]


def _counters(sample: Mapping[str, Json]) -> dict[str, float]:
    found = {name: sample.get(name) for name in _COUNTERS}
    for family in _BY_REASON:
        if isinstance(counts := sample.get(family), dict):
            found.update({f"{family}.{reason}": count for reason, count in counts.items()})
    return {name: count for name, count in found.items() if _is_number(count)}
