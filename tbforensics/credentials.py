"""Secrets and TLS for one source, from a promtool `--http.config.file` or the environment.

Source: Prometheus documentation, "promtool: HTTP configuration file" (basic_auth |
authorization | oauth2, tls_config, proxy_url, http_headers; each secret with a `_file` twin).

Environment, for a source named `main` (upper-cased, other characters become `_`):
`TBFORENSICS_MAIN_BEARER_TOKEN`, or `TBFORENSICS_MAIN_USERNAME` and `TBFORENSICS_MAIN_PASSWORD`.
Nothing here is ever written to a case.
"""

from __future__ import annotations

import os
import re
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import requests
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from requests.auth import AuthBase, HTTPBasicAuth

from tbforensics import plainyaml
from tbforensics.errors import ParametersError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class _BasicAuth(_Strict):
    username: str = ""
    username_file: str | None = None
    password: str | None = None
    password_file: str | None = None


class _Authorization(_Strict):
    type: str = "Bearer"
    credentials: str | None = None
    credentials_file: str | None = None


class _Tls(_Strict):
    ca: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False
    min_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] | None = None
    max_version: Literal["TLS10", "TLS11", "TLS12", "TLS13"] | None = None


class _OAuth2(_Strict):
    client_id: str
    client_secret: str | None = None
    client_secret_file: str | None = None
    token_url: str
    scopes: list[str] = []
    endpoint_params: dict[str, str] = {}
    tls_config: _Tls = _Tls()


class _Header(_Strict):
    values: list[str] = []
    secrets: list[str] = []
    files: list[str] = []


class _File(_Strict):
    basic_auth: _BasicAuth | None = None
    authorization: _Authorization | None = None
    oauth2: _OAuth2 | None = None
    tls_config: _Tls = _Tls()
    http_headers: dict[str, _Header] = {}
    proxy_url: str | None = None
    no_proxy: str | None = None
    proxy_from_environment: bool = False
    proxy_connect_header: dict[str, list[str]] = {}
    follow_redirects: Annotated[bool, Field(description="never followed by this tool")] = True
    enable_http2: Annotated[bool, Field(description="this tool speaks HTTP/1.1")] = True

    @model_validator(mode="after")
    def _one_way_in(self) -> _File:
        given = [n for n in ("basic_auth", "authorization", "oauth2") if getattr(self, n)]
        if len(given) > 1:
            raise ValueError(f"at most one of basic_auth, authorization, oauth2; found {given}")
        if self.tls_config.server_name:
            raise ValueError("tls_config.server_name is not supported; use a name that resolves")
        try:
            urlsplit(self.proxy_url or "")
        except ValueError:
            raise ValueError("proxy_url is no address") from None
        for name in ("no_proxy", "proxy_connect_header"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} is not supported; without it the run would not do as told"
                )
        return self


@dataclass(frozen=True)
class Credentials:
    """What a session needs to be let in. `repr` shows no secret.

    secrets: every secret text, so that errors and notes can be cleared of them.
    """

    auth: AuthBase | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    verify: bool | str = True
    client_certificate: tuple[str, str] | None = None
    ssl_context: ssl.SSLContext | None = field(default=None, repr=False)
    proxies: Mapping[str, str] = field(default_factory=dict, repr=False)
    trust_environment: bool = False
    secrets: tuple[str, ...] = field(default=(), repr=False)


class _Bearer(AuthBase):
    def __init__(self, scheme: str, token: str) -> None:
        self.value = f"{scheme} {token}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self.value
        return request


class _ClientCredentials(AuthBase):
    """OAuth 2.0 client credentials grant (RFC 6749, section 4.4). The token stays in memory."""

    def __init__(self, config: _OAuth2, secret: str, verify: bool | str) -> None:
        self._config, self._secret, self._verify = config, secret, verify
        self._token, self._good_until = "", 0.0
        self._lock = threading.Lock()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        with self._lock:
            if time.monotonic() >= self._good_until:
                self._renew()
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _renew(self) -> None:
        """Errors: ValueError that names neither the token nor the secret."""
        form = {"grant_type": "client_credentials", **self._config.endpoint_params}
        if self._config.scopes:
            form["scope"] = " ".join(self._config.scopes)
        with requests.Session() as session:
            session.trust_env = False
            try:
                reply = session.post(
                    self._config.token_url,
                    data=form,
                    auth=_basic(self._config.client_id, self._secret),
                    timeout=30,
                    verify=self._verify,
                    allow_redirects=False,
                )
            except requests.RequestException as error:
                # Its own message would quote the URL, and `requests` would try it again and again.
                raise ValueError(f"no token: {type(error).__name__} at oauth2.token_url") from None
        if reply.status_code != 200:
            raise ValueError(f"no token: oauth2.token_url answers HTTP {reply.status_code}")
        try:
            token = reply.json()
            text, lasts_s = str(token["access_token"]), float(token.get("expires_in", 300))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError("no token: oauth2.token_url answers with something else") from None
        # Renew a little early: a token that expires on the way is a failed question.
        self._token, self._good_until = text, time.monotonic() + max(0.0, lasts_s - 30)


def _one_line(value: str) -> str:
    """Errors: ParametersError. Later, the value would be refused with a message that quotes it."""
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
        raise ParametersError(
            "a credential or header holds a line break or another control character",
            next_step="correct the http_config, or the file or variable that holds it",
        )
    return value


def _basic(user: str, password: str) -> HTTPBasicAuth:
    """`requests` would write text as Latin-1; RFC 7617 and Prometheus mean UTF-8."""
    return HTTPBasicAuth(user.encode(), password.encode())


def read_credentials(
    source: str, path: Path | None, environment: Mapping[str, str] | None = None
) -> Credentials:
    """The credentials of one source.

    Errors: ParametersError naming every problem of the file; it never quotes a value from it.
    """
    environment = os.environ if environment is None else environment
    if path is not None:
        return _from_file(source, path)
    prefix = "TBFORENSICS_" + re.sub(r"[^A-Z0-9]", "_", source.upper())
    token = environment.get(f"{prefix}_BEARER_TOKEN")
    user, password = environment.get(f"{prefix}_USERNAME"), environment.get(f"{prefix}_PASSWORD")
    if token:
        _one_line(token)
        return Credentials(auth=_Bearer("Bearer", token), secrets=(token,))
    if user and password:
        return Credentials(auth=_basic(user, password), secrets=(password,))
    return Credentials()


def _from_file(source: str, path: Path) -> Credentials:
    where = f"the http_config of source {source!r} ({path.name})"
    try:
        config = _File.model_validate(plainyaml.read(path.read_text(encoding="utf-8")) or {})
    except OSError as error:
        raise ParametersError(
            f"{where} cannot be read: {error.strerror}",
            next_step="correct sources.<name>.http_config, or its permissions",
        ) from None
    except (plainyaml.NotPlain, UnicodeDecodeError):
        # The parser's own message quotes the line, which may be a secret.
        raise ParametersError(f"{where} is not YAML", next_step="correct the file") from None
    except ValidationError as error:
        raise ParametersError(
            f"{where} cannot be used:",
            problems=[f"{_dotted(p['loc'])}: {p['msg']}" for p in error.errors()],
            next_step="see promtool's documentation of --http.config.file",
        ) from None
    try:
        return _credentials(config, path.parent)
    except ssl.SSLError:
        raise ParametersError(
            f"{where} holds a certificate or key that cannot be used",
            next_step="give certificates as PEM, each whole",
        ) from None
    except OSError as error:
        raise ParametersError(
            f"{where} names a file that cannot be read: {error.filename}",
            next_step="correct that path; it is taken relative to the http_config",
        ) from None
    except UnicodeDecodeError:
        raise ParametersError(
            f"{where} names a file that is not text", next_step="correct that file"
        ) from None


def _credentials(config: _File, folder: Path) -> Credentials:
    secrets: list[str] = []

    def secret(text: str | None, file: str | None) -> str:
        value = (folder / file).read_text(encoding="utf-8").strip() if file else text or ""
        if value:
            secrets.append(_one_line(value))
        return value

    verify = _verify(config.tls_config, folder)
    auth: AuthBase | None = None
    if basic := config.basic_auth:
        user = basic.username
        if basic.username_file:
            user = (folder / basic.username_file).read_text(encoding="utf-8").strip()
        auth = _basic(user, secret(basic.password, basic.password_file))
    elif bearer := config.authorization:
        auth = _Bearer(bearer.type, secret(bearer.credentials, bearer.credentials_file))
    elif oauth := config.oauth2:
        auth = _ClientCredentials(
            oauth,
            secret(oauth.client_secret, oauth.client_secret_file),
            _verify(oauth.tls_config, folder),
        )
    headers = {}
    for name, header in config.http_headers.items():
        values = [
            *header.values,
            *(secret(text, None) for text in header.secrets),
            *(secret(None, file) for file in header.files),
        ]
        headers[name] = _one_line(", ".join(values))
    tls = config.tls_config
    certificate = None
    if tls.cert_file and tls.key_file:
        certificate = (str(folder / tls.cert_file), str(folder / tls.key_file))
    proxies = {"http": config.proxy_url, "https": config.proxy_url} if config.proxy_url else {}
    secret(urlsplit(config.proxy_url or "").password, None)
    return Credentials(
        auth=auth,
        headers=headers,
        verify=verify,
        client_certificate=certificate,
        ssl_context=_ssl_context(tls, folder),
        proxies=proxies,
        trust_environment=config.proxy_from_environment,
        secrets=tuple(secrets),
    )


def _verify(tls: _Tls, folder: Path) -> bool | str:
    if tls.insecure_skip_verify:
        return False
    return str(folder / tls.ca_file) if tls.ca_file else True


_TLS_VERSIONS = {
    "TLS10": ssl.TLSVersion.TLSv1,
    "TLS11": ssl.TLSVersion.TLSv1_1,
    "TLS12": ssl.TLSVersion.TLSv1_2,
    "TLS13": ssl.TLSVersion.TLSv1_3,
}


def _ssl_context(tls: _Tls, folder: Path) -> ssl.SSLContext | None:
    """Needed only for what `verify` and `cert` of requests cannot say."""
    if not (tls.ca or tls.min_version or tls.max_version):
        return None
    context = ssl.create_default_context(
        cafile=str(folder / tls.ca_file) if tls.ca_file else None, cadata=tls.ca
    )
    if tls.min_version:
        context.minimum_version = _TLS_VERSIONS[tls.min_version]
    if tls.max_version:
        context.maximum_version = _TLS_VERSIONS[tls.max_version]
    if tls.insecure_skip_verify:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _dotted(loc: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in loc) or "(top)"
