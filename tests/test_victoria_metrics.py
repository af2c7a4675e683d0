"""VictoriaMetrics speaks Prometheus' API: what was imported is what we hold, and what it lacks is
on record.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import victoria_server
from test_prometheus import ASKED, HISTORY, RATE, bits, client_of, fetched, rows_of

from tbforensics.model import Query
from tbforensics.sources.prometheus import SOURCE, Options

pytestmark = pytest.mark.skipif(not victoria_server.installed(), reason="no victoria-metrics here")

# It keeps values as decimals, so most doubles come back as a neighbour; whole numbers do not.
KEPT = {
    name: {
        labels: [(ms, float(int(value))) for ms, value in samples]
        for labels, samples in series.items()
    }
    for name, series in HISTORY.items()
    if name != "odd"
}
QUERIES = [Query(name, "prometheus", name) for name in KEPT]


def imported() -> dict[str, dict[str, list[tuple[int, int]]]]:
    """What of it is asked for, as `rows_of` gives it."""
    found: dict[str, dict[str, list[tuple[int, int]]]] = {}
    for name, series in KEPT.items():
        for labels, samples in series.items():
            inside = [(ms, bits(value)) for ms, value in samples if ASKED[0] <= ms < ASKED[1]]
            if inside:
                found.setdefault(name, {})[",".join(sorted(labels.split(",")))] = inside
    return found


@pytest.fixture(scope="module")
def victoria(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("victoria")
    with victoria_server.serve(folder, KEPT) as url:
        yield url


@pytest.mark.parametrize("slice_hours", [24, 33 / 60, 10 / 60])
def test_what_was_imported_is_held_to_the_millisecond(
    slice_hours: float, victoria: str, tmp_path: Path
) -> None:
    """It leaves the first end of a range out, as Prometheus 3 does."""
    client = client_of(victoria, tmp_path)
    captures = fetched(client, QUERIES, options=Options(slice_hours=slice_hours))
    assert all(capture.usable for capture in captures if capture.role == "samples")
    assert rows_of(captures, client.archive) == imported()


def test_what_it_lacks_is_on_record_and_no_failure_of_the_samples(
    victoria: str, tmp_path: Path
) -> None:
    client = client_of(victoria, tmp_path)
    captures = fetched(client, [*QUERIES, RATE])
    lacking = {c.query: c.error for c in captures if not c.usable}
    assert {*lacking} == {"flags", "remote_read"}
    assert all("unsupported path requested" in error for error in lacking.values())
    (flags,) = [capture for capture in captures if capture.query == "flags"]
    with client.archive.open(flags) as body:
        ((_, rows),) = SOURCE.parse(flags, body)
    assert rows.to_pylist()[0]["state"] == "unsupported"
    ways = {str(c.request["url"]).rpartition("/")[2] for c in captures if c.role == "samples"}
    assert ways == {"query", "query_range"}
    assert rows_of(captures, client.archive)["rate"]
