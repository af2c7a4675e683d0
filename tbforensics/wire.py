"""How every source asks over HTTP: politely, with patience, and with the reply kept first.

One `requests` session per source: timeouts, retries with backoff and jitter, `Retry-After`
honoured, a ceiling on the rate, no redirects. A reply is archived and hashed while it streams
in; only then may anybody parse it. What fails is a capture too, with the reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from json import dumps
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit, urlunsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.exceptions import (
    ConnectTimeoutError,
    DecodeError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)
from urllib3.util import Retry

from tbforensics.archive import Archive
from tbforensics.credentials import Credentials
from tbforensics.incoming import Incoming
from tbforensics.incoming import Stopped as Stopped
from tbforensics.model import Capture, Json, SourceConfig, Window
from tbforensics.replay import replay_session as replay_session

MASK = "***"
_SECRET_PARAMS = {"passphrase", "password", "token", "access_token", "api_key", "apikey", "secret"}
_RETRIED = (408, 429, 500, 502, 503, 504)
_MOST_CUTS = 2  # how often a body that was cut short is asked for again
_HELD_BYTES = 32 << 20  # of a reply, in memory until it is explained; a longer one is read back
_SLOW_BYTES_PER_S = 12e6  # below, packing a reply costs the server less time than sending it plain
_TELLING_BYTES = 2 << 20  # of a reply, before its speed is that of the link

# What a reply says about itself: why it cannot be used ("" when it can), and notes.
Explain = Callable[[bytes], tuple[str, tuple[str, ...]]]


@dataclass(frozen=True)
class Manners:
    """How patient and how polite a session is. Times in seconds.

    ban_s: how long to wait after a 429 that does not say; a node that bans an address for a
           minute bans it again when asked sooner.
    """

    connect_s: float = 5.0
    read_s: float = 60.0
    whole_reply_s: float = 600.0
    retries: int = 4
    backoff_s: float = 0.5
    longest_wait_s: float = 90.0
    ban_s: float = 5.0
    requests_per_s: float = 10.0
    longest_body_bytes: int = 2 << 30


class _Patience(Retry):
    """urllib3's Retry, which does not wait by itself on a 429 without `Retry-After`."""

    ban_s: float = 0.0

    def new(self, **changes: Any) -> _Patience:
        fresh = super().new(**changes)
        fresh.ban_s = self.ban_s
        return fresh

    def get_retry_after(self, response: Any) -> float | None:
        asked = super().get_retry_after(response)
        return self.ban_s if asked is None and response.status == 429 else asked


class _Adapter(HTTPAdapter):
    """Adds a timeout to every request, a ceiling on their rate, and an SSL context."""

    def __init__(self, manners: Manners, credentials: Credentials) -> None:
        self._manners, self._context = manners, credentials.ssl_context
        self._lock, self._next = threading.Lock(), 0.0
        patience = _Patience(
            total=manners.retries,
            redirect=0,
            read=min(1, manners.retries),  # what hung once mostly hangs again, and waiting is long
            status_forcelist=_RETRIED,
            allowed_methods=None,  # everything that a source asks only reads
            backoff_factor=manners.backoff_s,
            backoff_max=manners.longest_wait_s,
            backoff_jitter=manners.backoff_s,
            retry_after_max=int(manners.longest_wait_s),
            raise_on_status=False,
        )
        patience.ban_s = manners.ban_s
        super().__init__(max_retries=patience)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        if self._context is not None:
            kwargs["ssl_context"] = self._context
        super().init_poolmanager(*args, **kwargs)

    def send(self, request: Any, *args: Any, **kwargs: Any) -> requests.Response:
        with self._lock:
            now = time.monotonic()
            wait_s, self._next = self._next - now, max(self._next, now) + 1 / self._rate
        if wait_s > 0:
            time.sleep(wait_s)
        if kwargs.get("timeout") is None:
            kwargs["timeout"] = (self._manners.connect_s, self._manners.read_s)
        return super().send(request, *args, **kwargs)

    @property
    def _rate(self) -> float:
        return self._manners.requests_per_s


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: even to leave a redirect alone, `requests` would read its body, however long."""


def open_session(credentials: Credentials, manners: Manners = Manners()) -> requests.Session:
    """A session that any code may use in place of `requests.Session()`."""
    session = _Session()
    session.trust_env = credentials.trust_environment  # else .netrc and proxies slip in
    session.auth = credentials.auth
    session.verify = credentials.verify
    session.cert = credentials.client_certificate
    session.proxies = dict(credentials.proxies)
    # gzip costs the server far more time than it saves on any link that is not slow.
    session.headers.update({"Accept-Encoding": "identity", "User-Agent": "tbforensics"})
    session.headers.update(credentials.headers)
    adapter = _Adapter(manners, credentials)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


class Client:
    """One configured source, ready to be asked. Its captures go to one archive.

    A question that an interrupted collection already had answered is not asked again. Several
    threads may ask at once.

    stopped:   set by `stop`; clients that are asked for one source may share it.
    elsewhere: puts a question, given as the words of `ask`, from another machine; its reply is in
               the archive when that returns. Questions that hold a secret are put from here.
    """

    def __init__(
        self,
        source: SourceConfig,
        archive: Archive,
        credentials: Credentials = Credentials(),
        manners: Manners = Manners(),
        clock: Any = lambda: datetime.now(UTC),
        stopped: threading.Event | None = None,
    ) -> None:
        self.elsewhere: Callable[[dict[str, Any]], Capture] | None = None
        self.source, self.archive, self.manners = source, archive, manners
        self.stopped = stopped or threading.Event()
        self._incoming: set[Incoming] = set()
        self.session = open_session(credentials, manners)
        self._secrets = (*credentials.secrets, *_secrets_in(source.url or ""))
        self._clock = clock
        self._known = {
            _key(capture): capture
            for capture in archive.recorded()
            if capture.source == source.name and capture.usable
        }

    def ask(
        self,
        *,
        query: str,
        role: str,
        path: str = "",
        method: str = "GET",
        params: Mapping[str, Json] | None = None,
        form: Mapping[str, Json] | None = None,
        json: Json = None,
        data: bytes | None = None,
        told: Mapping[str, Json] | None = None,
        headers: Mapping[str, str] | None = None,
        window: Window | None = None,
        accept_status: tuple[int, ...] = (200,),
        expects: str = "",
        notes: tuple[str, ...] = (),
        explain: Explain | None = None,
    ) -> Capture:
        """Ask once and keep the reply. Never raises for what a server does: see `error`.

        A reply with another status than expected is kept as well, and is not usable.

        form:    sent as the body of a POST, for a question too long for a URL.
        data:    a body that is no text. told: what it asks, in words that are put on record.
        expects: how the type of the answer begins; another type is no answer.
        explain: reads the kept body for the server's own words about it: an error inside a 200,
                 or why it refused.

        Errors: Stopped; a whole answer that comes while it is stopped is still kept.
        """
        words = {name: value for name, value in locals().items() if name != "self"}
        if self.stopped.is_set():
            raise Stopped
        url = (
            f"{(self.source.url or '').rstrip('/')}/{path.lstrip('/')}"
            if path
            else str(self.source.url)
        )
        request: dict[str, Json] = {"method": method, "url": without_secrets(url), **(told or {})}
        for name, values in (("params", params), ("form", form)):
            if values:
                request[name] = {
                    k: MASK if k.lower() in _SECRET_PARAMS else v for k, v in values.items()
                }
        if json is not None:
            request["json"] = json
        asked = Capture(self.source.name, query, role, request, self.now(), window, notes=notes)
        if known := self._answered(asked):
            return known
        secrets = _secrets_in(str(self.source.url))
        for values in (params, form):
            secrets += [str(v) for k, v in (values or {}).items() if k.lower() in _SECRET_PARAMS]
        if self.elsewhere and not secrets:
            return self.archive.record(self.elsewhere(words))
        secrets += self._secrets
        sent = {
            "params": {k: str(v) for k, v in params.items()} if params else None,
            "data": {k: str(v) for k, v in form.items()} if form else data,
            "json": json,
            "headers": dict(headers or {}),
        }
        capture, body = self._patiently(asked, method, url, sent, accept_status)
        if self.stopped.is_set() and capture.sha256 is None:
            raise Stopped
        if body and capture.usable and not body.content_type.startswith(expects):
            kind = body.content_type[:100] or "no type"
            capture = replace(capture, error=f"answers with {kind} and not {expects}")
        if explain and capture.sha256:
            whole = body.whole if body else None
            why, said = explain(self.archive.read(capture) if whole is None else whole)
            error = f"{capture.error}: {why}" if capture.error and why else capture.error or why
            capture = replace(capture, error=error, notes=(*capture.notes, *said))
        capture = replace(
            capture,
            error=_clean(capture.error, secrets),
            notes=tuple(_clean(note, secrets) for note in capture.notes),
        )
        return self.archive.record(capture)

    def stop(self) -> None:
        """Ask nothing more; give up what is still coming in."""
        self.stopped.set()
        for body in tuple(self._incoming):
            body.cut()

    def now(self) -> datetime:
        """The clock that dates every capture, in whole milliseconds as they are written down."""
        moment: datetime = self._clock()
        return moment.replace(microsecond=moment.microsecond // 1000 * 1000)

    def keep_file(
        self,
        chunks: Iterable[bytes],
        *,
        query: str,
        role: str,
        request: Mapping[str, Json],
        window: Window | None = None,
        notes: tuple[str, ...] = (),
    ) -> Capture:
        """Keep what was read from a file, as if it were a reply."""
        asked = Capture(self.source.name, query, role, request, self.now(), window, notes=notes)
        if known := self._answered(asked):
            return known
        try:
            sha256, length = self.archive.keep(chunks)
            capture = replace(asked, sha256=sha256, bytes=length)
        except OSError as error:
            capture = replace(asked, error=_in_words(error))
        return self.archive.record(capture)

    def fail(self, *, query: str, role: str, request: Mapping[str, Json], error: str) -> Capture:
        """Record that something could not even be asked."""
        asked = Capture(self.source.name, query, role, request, self.now(), error=error)
        return self.archive.record(asked)

    def body(self, capture: Capture) -> bytes:
        return self.archive.read(capture)

    def _answered(self, asked: Capture) -> Capture | None:
        known = self._known.get(_key(asked))
        if known and known.sha256 and self.archive.holds(known.sha256):
            return known
        return None

    def _patiently(
        self,
        asked: Capture,
        method: str,
        url: str,
        sent: Mapping[str, Any],
        accept_status: tuple[int, ...],
    ) -> tuple[Capture, Incoming | None]:
        """The session retries until a reply begins; a body that is cut short is asked for here."""
        cuts = 0
        while True:
            try:
                with self.session.request(
                    method, url, stream=True, allow_redirects=False, **sent
                ) as reply:
                    return self._keep(asked, reply, accept_status)
            except (ProtocolError, DecodeError) as error:
                # Only reading a body lets these through; `requests` wraps what comes before.
                reason = f"the reply was cut short or damaged: {_in_words(error)}"
                if cuts == _MOST_CUTS:
                    return replace(asked, error=reason), None
                cuts += 1
                asked = replace(asked, notes=(*asked.notes, f"tried again: {reason}"))
                time.sleep(self.manners.backoff_s * cuts)
            except (requests.RequestException, HTTPError, OSError, ValueError) as error:
                return replace(asked, error=_in_words(error)), None

    def _keep(
        self, asked: Capture, reply: requests.Response, accept_status: tuple[int, ...]
    ) -> tuple[Capture, Incoming]:
        notes = tuple(
            f"tried again after {past.status or _in_words(past.error)}"
            for past in getattr(getattr(reply.raw, "retries", None), "history", ())
        )
        body = Incoming(
            reply,
            longest_bytes=self.manners.longest_body_bytes,
            longest_s=self.manners.whole_reply_s,
            held_bytes=_HELD_BYTES,
            stopped=self.stopped,
        )
        self._incoming.add(body)
        try:
            sha256, length = self.archive.keep(body.pieces())
        finally:
            self._incoming.discard(body)
        notes = (*notes, *self._pack(body))
        error = ""
        if reply.is_redirect:
            error = (
                f"redirects to {without_secrets(reply.headers['Location'])}; redirects are not "
                "followed, so name the final address in the parameters file"
            )
        elif reply.status_code not in accept_status:
            error = f"HTTP {reply.status_code} {reply.reason or ''}".strip()
        capture = replace(
            asked,
            status=reply.status_code,
            sha256=sha256,
            bytes=length,
            error=error,
            notes=(*asked.notes, *notes),
        )
        return capture, body

    def _pack(self, body: Incoming) -> tuple[str, ...]:
        """Ask for packed replies from here on, where a long one came slowly and plain."""
        slow = body.length < body.waited_s * _SLOW_BYTES_PER_S
        known = self.session.headers["Accept-Encoding"] == "gzip"
        if body.length < _TELLING_BYTES or not slow or body.packed or known:
            return ()
        self.session.headers["Accept-Encoding"] = "gzip"
        pace = body.length / body.waited_s / 1e6
        return (f"the link is slow ({pace:.1f} MB/s): packed replies from here on",)


def without_secrets(url: str) -> str:
    """The URL with user info and the values of secret parameters masked."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(not an address)"
    host = parts.netloc.rpartition("@")[2]
    pairs = [pair.partition("=") for pair in parts.query.split("&") if pair]
    query = "&".join(
        f"{name}={MASK if name.lower() in _SECRET_PARAMS else value}" if equals else name
        for name, equals, value in pairs
    )
    return urlunsplit((parts.scheme, host, parts.path, query, parts.fragment))


def _secrets_in(url: str) -> list[str]:
    """What `without_secrets` masks: errors of libraries quote URLs."""
    parts = urlsplit(url)
    named = [value for name, value in parse_qsl(parts.query) if name.lower() in _SECRET_PARAMS]
    return [secret for secret in (parts.password, *named) if secret]


def _key(capture: Capture) -> str:
    window = str(capture.window) if capture.window else ""
    request = dumps(dict(capture.request), sort_keys=True)  # the journal keeps no order of keys
    return repr((capture.query, capture.role, request, window))


def _in_words(error: Any) -> str:
    """The innermost reason; requests and urllib3 wrap it in layers of their own."""
    tls = "TLS failed: " if isinstance(error, requests.exceptions.SSLError) else ""
    reason = error
    while True:
        wrapped = (getattr(reason, "reason", None), reason.__cause__, *reason.args[:1])
        inner = next((w for w in wrapped if isinstance(w, BaseException)), None)
        if isinstance(reason, ConnectTimeoutError) and not isinstance(reason, NewConnectionError):
            return "no connection within the time allowed"
        if isinstance(reason, ReadTimeoutError):
            return "no answer within the time allowed"
        if inner is None or inner is reason:
            return f"{tls}{type(reason).__name__}: {reason}"[:300]
        reason = inner


def _clean(text: str, secrets: Iterable[str]) -> str:
    for secret in secrets:
        for spelling in {secret, quote(secret), quote(secret, safe="")}:
            text = text.replace(spelling, MASK)
    return text
