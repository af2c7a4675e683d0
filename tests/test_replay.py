"""A sealed case answers what was asked, however it is spelled, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tbforensics.archive import Archive
from tbforensics.errors import EvidenceError
from tbforensics.model import Capture
from tbforensics.wire import replay_session

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
URL = "http://prometheus.invalid/prefix/api/v1/query"


@pytest.fixture
def archive(tmp_path):
    return Archive(tmp_path)


def capture_of(archive: Archive, body: bytes, **more) -> Capture:
    sha256, length = archive.keep([body])
    request = {"method": "GET", "url": URL, **more.pop("request", {})}
    given = {"status": 200, "sha256": sha256, "bytes": length, **more}
    return Capture("main", "q", "samples", request, NOON, **given)


def test_a_question_may_be_spelled_in_any_way(archive):
    asked = {"query": 'm{a="ü b"}', "time": str(NOON.timestamp()), "step": "60"}
    session = replay_session([capture_of(archive, b"1", request={"params": asked})], archive)
    for time in (NOON.timestamp(), "2026-03-10T12:00:00Z", "2026-03-10T13:00:00+01:00"):
        for step in (60, "60.0", timedelta(minutes=1).total_seconds()):
            same = {"step": step, "time": time, "query": 'm{a="ü b"}'}
            assert session.get(URL, params=same).content == b"1"
            assert session.post(URL, data=same).content == b"1"


def test_what_was_posted_can_be_read_back_by_get(archive):
    session = replay_session([capture_of(archive, b"1", request={"form": {"query": "m"}})], archive)
    assert session.get(URL, params={"query": "m"}).json() == 1


@pytest.mark.parametrize("params", [{}, {"query": "n"}, {"query": "m", "time": "1"}])
def test_another_question_is_an_error_that_lists_the_nearest(params, archive):
    captures = [
        capture_of(archive, b"1", request={"params": {"query": name}})
        for name in ("m", *(f"other_{n}" for n in range(40)))
    ]
    with pytest.raises(EvidenceError) as refusal:
        replay_session(captures, archive).get(URL, params=params)
    assert "/prefix/api/v1/query query=m" in refusal.value.problems
    assert len(refusal.value.problems) == 21
    assert refusal.value.problems[-1] == "and 21 more"


def test_an_answer_is_preferred_to_an_earlier_or_later_refusal(archive):
    refused = capture_of(archive, b"no", status=503, error="HTTP 503")
    answered = capture_of(archive, b"yes")
    for captures in ([refused, answered], [answered, refused]):
        assert replay_session(captures, archive).get(URL).content == b"yes"
    reply = replay_session([refused], archive).get(URL)
    assert (reply.status_code, reply.content) == (503, b"no")


def test_a_question_that_was_a_json_body_is_not_mistaken_for_another(archive):
    session = replay_session([capture_of(archive, b"1", request={"json": {"id": 1}})], archive)
    with pytest.raises(EvidenceError):
        session.get(URL)
