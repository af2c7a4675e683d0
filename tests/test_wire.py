"""How every source asks: patience, limits, redirects, secrets, and taking up where it stopped."""

from __future__ import annotations

import gzip
import json
import random
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from http_fake import Answer, Handler, fake

from tbforensics.archive import Archive
from tbforensics.credentials import Credentials, read_credentials
from tbforensics.model import Capture, SourceConfig, Window
from tbforensics.wire import Client, Manners, Stopped, without_secrets

HASTY = Manners(
    connect_s=1,
    read_s=0.3,
    whole_reply_s=1,
    retries=2,
    backoff_s=0.01,
    longest_wait_s=0.2,
    ban_s=0.05,
    requests_per_s=1000,
)
CANARY = "canary-7f3a"


def client_of(url: str, folder: Path, manners: Manners = HASTY, **more: object) -> Client:
    folder.mkdir(exist_ok=True)
    return Client(SourceConfig("main", "any", url), Archive(folder), manners=manners, **more)


def ask(answer: Answer, folder: Path, manners: Manners = HASTY) -> tuple[Capture, int]:
    """One question to a fake: its capture, and how often the fake was asked."""
    with fake(answer) as server:
        capture = client_of(server.url, folder, manners).ask(query="q", role="r", path="api")
        return capture, len(server.seen)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "raw").glob("*"))


# --- what is kept ------------------------------------------------------------------------


def test_a_reply_is_kept_byte_for_byte_under_its_hash(tmp_path):
    capture, _ = ask(lambda to, n: to.reply(b"\x00any\xffbytes\n"), tmp_path)
    assert (capture.status, capture.bytes, capture.error, capture.notes) == (200, 11, "", ())
    assert Archive(tmp_path).read(capture) == b"\x00any\xffbytes\n"
    assert Archive(tmp_path).recorded() == [capture]


def test_no_compression_is_asked_for_and_what_comes_compressed_is_kept_plain(tmp_path):
    def answer(to: Handler, before: int) -> None:
        assert to.headers["Accept-Encoding"] == "identity"
        to.reply(gzip.compress(b"plain"), Content_Encoding="gzip")

    capture, _ = ask(answer, tmp_path)
    assert Archive(tmp_path).read(capture) == b"plain"


def test_a_refusal_is_kept_too_and_is_not_usable(tmp_path):
    capture, asked = ask(lambda to, n: to.reply("why not", 403), tmp_path)
    assert (capture.status, capture.error, capture.usable) == (403, "HTTP 403 Forbidden", False)
    assert Archive(tmp_path).read(capture) == b"why not"
    assert asked == 1


def test_the_servers_own_words_join_the_error_and_the_notes(tmp_path):
    with fake(lambda to, n: to.reply("because", 422 if n == 0 else 200)) as server:
        client = client_of(server.url, tmp_path)

        def explain(body: bytes) -> tuple[str, tuple[str, ...]]:
            return body.decode(), ("beside",)

        refused = client.ask(query="a", role="r", notes=("mine",), explain=explain)
        broken = client.ask(query="b", role="r", explain=explain)
    assert refused.error == "HTTP 422 Unprocessable Entity: because"
    assert refused.notes == ("mine", "beside")
    assert (broken.status, broken.error, broken.usable) == (200, "because", False)


@pytest.mark.parametrize("length", [0, 5, 32 << 20, (32 << 20) + 1])
def test_a_reply_is_explained_whole_however_long_it_is(length, tmp_path):
    with fake(lambda to, n: to.reply(bytes(length))) as server:
        seen = []
        client_of(server.url, tmp_path, Manners()).ask(
            query="q", role="r", explain=lambda body: (seen.append(body) or "", ())
        )
    assert [len(body) for body in seen] == [length]


def test_what_was_cut_short_is_not_explained_with_what_came_after(tmp_path):
    with fake(lambda to, n: to.reply("whole") if n else cut(to, n)) as server:
        seen = []
        client_of(server.url, tmp_path).ask(
            query="q", role="r", explain=lambda body: (seen.append(body) or "", ())
        )
    assert seen == [b"whole"]


def test_bytes_are_sent_as_they_are_and_told_in_words(tmp_path):
    with fake(lambda to, n: to.reply("ok", Content_Type="x/y; z=1")) as server:
        capture = client_of(server.url, tmp_path).ask(
            query="q",
            role="r",
            method="POST",
            data=b"\x00\xff",
            told={"asks": "for m"},
            expects="x/y",
        )
    assert (server.seen[0].body, capture.request["asks"], capture.error) == (
        b"\x00\xff",
        "for m",
        "",
    )


@pytest.mark.parametrize(("kind", "shown"), [("text/html", "text/html"), ("", "no type")])
def test_an_answer_of_another_type_is_none(kind, shown, tmp_path):
    with fake(lambda to, n: to.reply("ok", Content_Type=kind)) as server:
        capture = client_of(server.url, tmp_path).ask(query="q", role="r", expects="x/y")
    assert capture.error == f"answers with {shown} and not x/y"
    assert Archive(tmp_path).read(capture) == b"ok"


@pytest.mark.parametrize(("length", "packed"), [(3 << 20, True), (1 << 20, False)])
def test_packed_replies_are_asked_for_once_a_long_one_came_slowly(length, packed, tmp_path):
    def slowly(to: Handler, before: int) -> None:
        to.send_response(200)
        to.send_header("Content-Length", str(length))
        to.end_headers()
        to.wfile.write(bytes(length // 2))
        time.sleep(0.4)
        to.wfile.write(bytes(length - length // 2))

    with fake(slowly) as server:
        client = client_of(server.url, tmp_path, Manners())
        captures = [client.ask(query=str(n), role="r") for n in range(3)]
    assert [seen.headers["Accept-Encoding"] for seen in server.seen] == [
        "identity",
        *(["gzip", "gzip"] if packed else ["identity", "identity"]),
    ]
    said = [note for capture in captures for note in capture.notes]
    assert [note.startswith("the link is slow") for note in said] == [True] * packed


def test_a_form_is_posted_and_is_on_record(tmp_path):
    with fake(lambda to, n: to.reply("ok")) as server:
        capture = client_of(server.url, tmp_path).ask(
            query="q", role="r", path="api", method="POST", form={"query": "a b", "time": 1}
        )
    assert (server.seen[0].method, server.seen[0].body) == ("POST", b"query=a+b&time=1")
    assert capture.request["form"] == {"query": "a b", "time": 1}


# --- patience ----------------------------------------------------------------------------


def test_a_503_is_asked_again_when_it_says_so(tmp_path):
    capture, asked = ask(
        lambda to, n: to.reply("ok") if n else to.reply("", 503, Retry_After="0"), tmp_path
    )
    assert (capture.error, capture.notes, asked) == ("", ("tried again after 503",), 2)


def test_a_wait_that_the_server_asks_for_is_kept_and_bounded(tmp_path):
    began = time.monotonic()
    ask(lambda to, n: to.reply("ok") if n else to.reply("", 503, Retry_After="3600"), tmp_path)
    assert 0 < time.monotonic() - began < 2


def test_a_429_is_waited_out_even_when_it_does_not_say_how_long(tmp_path):
    began = time.monotonic()
    capture, asked = ask(lambda to, n: to.reply("ok" if n else "", 200 if n else 429), tmp_path)
    assert (capture.usable, asked) == (True, 2)
    assert time.monotonic() - began >= HASTY.ban_s


def test_a_server_that_keeps_refusing_is_let_alone(tmp_path):
    capture, asked = ask(lambda to, n: to.reply("down", 503), tmp_path)
    assert (capture.status, capture.error) == (503, "HTTP 503 Service Unavailable")
    assert asked == 1 + HASTY.retries


def test_a_server_that_hangs_is_tried_once_more(tmp_path):
    with fake(lambda to, n: server.over.wait(5)) as server:
        capture = client_of(server.url, tmp_path).ask(query="q", role="r")
        assert capture.error == "no answer within the time allowed"
        assert (capture.status, capture.sha256, len(server.seen)) == (None, None, 2)


def test_nobody_there_is_a_capture_with_an_error(tmp_path):
    with fake(lambda to, n: to.reply("ok")) as server:
        pass
    capture = client_of(server.url, tmp_path).ask(query="q", role="r")
    assert "refused" in capture.error
    assert Archive(tmp_path).recorded() == [capture]


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x00", b"HTTP/1.1 OK\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_what_is_not_http_is_a_capture_with_an_error(garbage, tmp_path):
    def answer(to: Handler, before: int) -> None:
        to.wfile.write(garbage)
        to.close_connection = True

    capture, _ = ask(answer, tmp_path)
    assert capture.error
    assert capture.sha256 is None


# --- bodies that go wrong ----------------------------------------------------------------


def cut(to: Handler, before: int) -> None:
    to.reply(b"half", Content_Length="1000")
    to.close_connection = True


def cut_chunk(to: Handler, before: int) -> None:
    to.send_response(200)
    to.send_header("Transfer-Encoding", "chunked")
    to.end_headers()
    to.wfile.write(b"ff\r\nhalf")
    to.close_connection = True


def damaged_gzip(to: Handler, before: int) -> None:
    to.reply(gzip.compress(b"x" * 1000)[:10] + b"\xff" * 20, Content_Encoding="gzip")


@pytest.mark.parametrize("answer", [cut, cut_chunk, damaged_gzip])
def test_a_body_cut_short_is_asked_for_again_and_then_on_record(answer, tmp_path):
    capture, asked = ask(answer, tmp_path)
    assert capture.error.startswith("the reply was cut short or damaged")
    assert (asked, len(capture.notes)) == (3, 2)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("answer", [cut, cut_chunk, damaged_gzip])
def test_a_body_cut_short_once_costs_a_note(answer, tmp_path):
    capture, _ = ask(lambda to, n: to.reply("whole") if n else answer(to, n), tmp_path)
    assert capture.usable
    assert capture.notes[0].startswith("tried again: the reply was cut short")
    assert Archive(tmp_path).read(capture) == b"whole"


@pytest.mark.parametrize("fast", [0, 1 << 20])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_drips_ends_at_the_deadline(chunked, fast, tmp_path):
    def drip(to: Handler, before: int) -> None:
        to.send_response(200)
        long = ("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(fast + 99))
        to.send_header(*long)
        to.end_headers()
        to.wfile.write(b"%x\r\n" % (fast + 99) if chunked else b"")
        to.wfile.write(bytes(fast))
        for _ in range(99):
            to.wfile.write(b"x")
            time.sleep(0.1)

    began = time.monotonic()
    capture, asked = ask(drip, tmp_path)
    assert (capture.error, asked) == ("ValueError: the reply took longer than 1 s", 1)
    assert time.monotonic() - began < 2
    assert left_in(tmp_path) == []


def test_a_long_body_in_small_pieces_is_kept_as_it_came(tmp_path):
    content = random.Random(1).randbytes(3_000_000)

    def in_pieces(to: Handler, before: int) -> None:
        to.send_response(200)
        to.send_header("Transfer-Encoding", "chunked")
        to.end_headers()
        for at in range(0, len(content), 1999):
            piece = content[at : at + 1999]
            to.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        to.wfile.write(b"0\r\n\r\n")

    capture, _ = ask(in_pieces, tmp_path, Manners())
    assert Archive(tmp_path).read(capture) == content


def test_a_stop_does_not_wait_for_the_rest_of_a_long_body(tmp_path):
    def hangs(to: Handler, before: int) -> None:
        to.send_response(200)
        to.send_header("Content-Length", str(2 << 20))
        to.end_headers()
        to.wfile.write(bytes(1 << 20))
        server.over.wait(20)

    with fake(hangs) as server:
        client = client_of(server.url, tmp_path, Manners())
        threading.Timer(0.3, client.stop).start()
        began = time.monotonic()
        with pytest.raises(Stopped):
            client.ask(query="q", role="r")
        assert time.monotonic() - began < 10
    assert left_in(tmp_path) == []


def test_a_body_without_end_stops_at_the_limit(tmp_path):
    def endless(to: Handler, before: int) -> None:
        to.send_response(200)
        to.send_header("Content-Length", str(10 << 30))
        to.end_headers()
        while True:
            to.wfile.write(bytes(1 << 16))

    capture, asked = ask(endless, tmp_path, Manners(longest_body_bytes=1 << 20))
    assert (capture.error, asked) == ("ValueError: the reply is longer than 1048576 bytes", 1)
    assert left_in(tmp_path) == []


def test_a_small_reply_that_unpacks_into_a_huge_one_stops_at_the_limit(tmp_path):
    bomb = gzip.compress(bytes(64 << 20))
    capture, _ = ask(
        lambda to, n: to.reply(bomb, Content_Encoding="gzip"),
        tmp_path,
        Manners(longest_body_bytes=1 << 20),
    )
    assert "longer than 1048576 bytes" in capture.error


# --- redirects and secrets ---------------------------------------------------------------


def test_a_redirect_is_not_followed_and_takes_no_credential_along(tmp_path):
    with (
        fake(lambda to, n: to.reply("mine")) as elsewhere,
        fake(lambda to, n: to.reply("", 302, Location=f"{elsewhere.url}/?token={CANARY}")) as here,
    ):
        capture = client_of(
            here.url,
            tmp_path,
            credentials=read_credentials("m", None, {"TBFORENSICS_M_BEARER_TOKEN": CANARY}),
        ).ask(query="q", role="r")
    assert here.seen[0].headers["Authorization"] == f"Bearer {CANARY}"
    assert elsewhere.seen == []
    assert capture.status == 302
    assert f"redirects to {elsewhere.url}/?token=***;" in capture.error


def test_a_redirect_to_nonsense_is_a_capture_with_an_error(tmp_path):
    capture, _ = ask(lambda to, n: to.reply("", 302, Location="http://["), tmp_path)
    assert "redirects to (not an address)" in capture.error


def test_no_secret_reaches_a_capture_an_error_a_repr_or_the_journal(tmp_path):
    config = tmp_path / "http.yml"
    config.write_text(
        json.dumps(
            {
                "basic_auth": {"username": "me", "password": CANARY},
                "http_headers": {"X-Key": {"secrets": [f"{CANARY}-header"]}},
            }
        )
    )
    credentials = read_credentials("main", config)

    def echo(to: Handler, before: int) -> None:
        to.reply(f"you sent {to.headers['X-Key']} and {CANARY}", 500 if before < 9 else 400)

    def explain(body: bytes) -> tuple[str, tuple[str, ...]]:
        return body.decode(), (body.decode(),)

    with fake(echo) as server:
        url = (
            server.url.replace("http://", f"http://me:{CANARY}-url@") + f"/?api_key={CANARY}-query"
        )
        client = Client(SourceConfig("main", "any", url), Archive(tmp_path), credentials, HASTY)
        captures = [
            client.ask(
                query="a", role="r", params={"passphrase": CANARY, "x": "1"}, explain=explain
            ),
            client.ask(query="b", role="r", form={"token": CANARY}, method="POST", explain=explain),
        ]
    captures.append(client.ask(query="c", role="r", params={"password": CANARY}))
    assert all(capture.error for capture in captures)
    journal = (tmp_path / "captures.jsonl").read_text()
    assert len(journal.splitlines()) == 3
    for text in (repr(captures), journal, repr(credentials), repr(client), repr(client.session)):
        assert CANARY not in text


def test_urls_lose_user_info_and_secret_parameters():
    assert (
        without_secrets("https://u:p@h:9/a?token=x&Password=y&q=1#f")
        == "https://h:9/a?token=***&Password=***&q=1#f"
    )


# --- an interrupted collection -----------------------------------------------------------


def test_what_an_interrupted_collection_had_answered_is_not_asked_again(tmp_path):
    window = Window(datetime(2026, 3, 10, tzinfo=UTC), datetime(2026, 3, 11, tzinfo=UTC))

    def questions(client: Client) -> list[Capture]:
        return [
            client.ask(query="q", role="r", path="a", params={"step": 15, "x": 1.5}, window=window),
            client.ask(query="q", role="r", path="b", form={"q": "x"}, method="POST"),
            client.ask(query="q", role="r", path="c"),
        ]

    with fake(lambda to, n: to.reply(to.path, 500 if to.path == "/c" else 200)) as server:
        first = questions(client_of(server.url, tmp_path))
        asked = len(server.seen)
        second = questions(client_of(server.url, tmp_path))
        again = [seen.path for seen in server.seen[asked:]]
    assert second[:2] == first[:2]
    assert set(again) == {"/c"}  # it had failed


def test_an_answer_whose_body_was_lost_is_asked_for_again(tmp_path):
    with fake(lambda to, n: to.reply("x")) as server:
        capture = client_of(server.url, tmp_path).ask(query="q", role="r")
        Archive(tmp_path).path_of(str(capture.sha256)).write_bytes(b"damaged")
        again = client_of(server.url, tmp_path).ask(query="q", role="r")
        assert len(server.seen) == 2
    assert Archive(tmp_path).read(again) == b"x"


def test_questions_keep_to_the_rate(tmp_path):
    with fake(lambda to, n: to.reply("x")) as server:
        client = client_of(server.url, tmp_path, Manners(requests_per_s=50))
        began = time.monotonic()
        for n in range(6):
            client.ask(query=f"q{n}", role="r")
        assert time.monotonic() - began >= 5 / 50


def test_a_client_without_credentials_sends_none(tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with fake(lambda to, n: to.reply("x")) as server:
        Client(SourceConfig("m", "any", server.url), Archive(tmp_path), Credentials()).ask(
            query="q", role="r"
        )
        assert "Authorization" not in server.seen[0].headers
