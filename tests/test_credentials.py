"""What a promtool file or the environment lets a session say, and to nobody else."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
import yaml
from http_fake import Handler, fake

from tbforensics.archive import Archive
from tbforensics.credentials import Credentials, read_credentials
from tbforensics.errors import ParametersError
from tbforensics.model import SourceConfig
from tbforensics.wire import Client, Manners

CANARY = "canary-7f3ä"
HASTY = Manners(retries=0, backoff_s=0, requests_per_s=1000)


def file_of(folder: Path, config: object) -> Path:
    path = folder / "http.yml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
    return path


def sent_with(credentials: Credentials, folder: Path) -> dict[str, str]:
    """The headers that a server sees."""
    with fake(lambda to, n: to.reply("ok")) as server:
        client = Client(SourceConfig("m", "any", server.url), Archive(folder), credentials, HASTY)
        assert client.ask(query="q", role="r").error == ""
        return server.seen[0].headers


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize("twin", [False, True])
def test_basic_auth_in_the_file_or_in_files_beside_it(twin, tmp_path):
    (tmp_path / "user.txt").write_text("me\n")
    (tmp_path / "password.txt").write_text(CANARY + "\n")
    plain = {"username": "me", "password": CANARY}
    files = {"username_file": "user.txt", "password_file": "password.txt"}
    credentials = read_credentials("m", file_of(tmp_path, {"basic_auth": files if twin else plain}))
    assert sent_with(credentials, tmp_path)["Authorization"] == basic("me", CANARY)
    assert credentials.secrets == (CANARY,)


@pytest.mark.parametrize("twin", [False, True])
def test_authorization_in_the_file_or_in_a_file_beside_it(twin, tmp_path):
    (tmp_path / "token").write_text("tok-1\n")
    given = {"credentials_file": "token"} if twin else {"credentials": "tok-1"}
    credentials = read_credentials("m", file_of(tmp_path, {"authorization": given}))
    assert sent_with(credentials, tmp_path)["Authorization"] == "Bearer tok-1"
    typed = {"authorization": {"type": "Token", **given}}
    credentials = read_credentials("m", file_of(tmp_path, typed))
    assert sent_with(credentials, tmp_path)["Authorization"] == "Token tok-1"


def test_headers_plain_secret_and_from_files(tmp_path):
    (tmp_path / "key").write_text("from-file")
    headers = {
        "X-Scope-OrgID": {"values": ["tenant"]},
        "X-Key": {"secrets": ["one"], "files": ["key"]},
    }
    credentials = read_credentials("m", file_of(tmp_path, {"http_headers": headers}))
    sent = sent_with(credentials, tmp_path)
    assert (sent["X-Scope-OrgID"], sent["X-Key"]) == ("tenant", "one, from-file")
    assert credentials.secrets == ("one", "from-file")


def test_the_environment_names_the_source(tmp_path):
    token = {"TBFORENSICS_MAIN_EU_BEARER_TOKEN": "t", "TBFORENSICS_OTHER_BEARER_TOKEN": "o"}
    sent = sent_with(read_credentials("main-eu", None, token), tmp_path)
    assert sent["Authorization"] == "Bearer t"
    login = {"TBFORENSICS_M_USERNAME": "me", "TBFORENSICS_M_PASSWORD": CANARY}
    sent = sent_with(read_credentials("m", None, login), tmp_path / "b")
    assert sent["Authorization"] == basic("me", CANARY)
    assert read_credentials("m", None, {}).auth is None


# --- OAuth 2.0 ---------------------------------------------------------------------------


def oauth(folder: Path, token_url: str) -> Credentials:
    (folder / "client-secret").write_text(CANARY)
    config = {
        "client_id": "kit",
        "client_secret_file": "client-secret",
        "token_url": token_url,
        "scopes": ["read", "more"],
        "endpoint_params": {"audience": "metrics"},
    }
    return read_credentials("m", file_of(folder, {"oauth2": config}))


def test_oauth2_fetches_one_token_and_keeps_it(tmp_path):
    def issue(to: Handler, before: int) -> None:
        to.reply(json.dumps({"access_token": "issued", "expires_in": 3600}))

    with fake(issue) as issuer:
        credentials = oauth(tmp_path, f"{issuer.url}/token")
        assert sent_with(credentials, tmp_path / "a")["Authorization"] == "Bearer issued"
        assert sent_with(credentials, tmp_path / "b")["Authorization"] == "Bearer issued"
    (asked,) = issuer.seen
    assert asked.headers["Authorization"] == basic("kit", CANARY)
    assert asked.body == b"grant_type=client_credentials&audience=metrics&scope=read+more"


def test_a_token_about_to_expire_is_renewed(tmp_path):
    def issue(to: Handler, before: int) -> None:
        to.reply(json.dumps({"access_token": f"issued-{before}", "expires_in": 20}))

    with fake(issue) as issuer:
        credentials = oauth(tmp_path, issuer.url)
        assert sent_with(credentials, tmp_path / "a")["Authorization"] == "Bearer issued-0"
        assert sent_with(credentials, tmp_path / "b")["Authorization"] == "Bearer issued-1"


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, "{}", "HTTP 401"),
        (302, "", "HTTP 302"),
        (200, "<html>", "something else"),
        (200, "[]", "something else"),
        (200, '{"token": "x"}', "something else"),
        (200, '{"access_token": "x", "expires_in": null}', "something else"),
    ],
)
def test_a_token_endpoint_that_fails_is_a_capture_with_an_error(status, body, words, tmp_path):
    with fake(lambda to, n: to.reply(body, status)) as issuer, fake(lambda to, n: None) as server:
        credentials = oauth(tmp_path, f"{issuer.url}/?secret={CANARY}")
        client = Client(SourceConfig("m", "any", server.url), Archive(tmp_path), credentials, HASTY)
        capture = client.ask(query="q", role="r")
    assert words in capture.error
    assert CANARY not in repr(capture)
    assert server.seen == []


def test_a_token_endpoint_that_is_not_there_is_a_capture_with_an_error(tmp_path):
    with fake(lambda to, n: None) as issuer:
        pass
    client = Client(
        SourceConfig("m", "any", issuer.url), Archive(tmp_path), oauth(tmp_path, issuer.url), HASTY
    )
    assert "no token" in client.ask(query="q", role="r").error


# --- files that cannot be used -----------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"basic_auth": {"username": "u", "pasword": CANARY}}, "basic_auth.pasword: Extra inputs"),
        ({"basic_auth": {"password": [CANARY]}}, "basic_auth.password: Input should be"),
        (
            {"basic_auth": {"username": "u"}, "authorization": {"credentials": CANARY}},
            "at most one of",
        ),
        ({"tls_config": {"server_name": CANARY}}, "server_name is not supported"),
        ({"no_proxy": CANARY}, "no_proxy is not supported"),
        ({"authorization": {"credentials": f"{CANARY}\n{CANARY}"}}, "control character"),
        ({"http_headers": {"X-A": {"values": [f"{CANARY}\r\nX-B: 1"]}}}, "control character"),
        ({"basic_auth": {"password_file": "not-there"}}, "not-there"),
        ({"authorization": {"credentials_file": "binary"}}, "not text"),
        (f"password: {CANARY}\n  bad: [", "is not YAML"),
        (f"- {CANARY}", "cannot be used"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_quoting_it(config, words, tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe" + CANARY.encode())
    with pytest.raises(ParametersError) as refusal:
        read_credentials("m", file_of(tmp_path, config))
    assert words in str(refusal.value)
    assert CANARY not in str(refusal.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ParametersError, match="cannot be read: No such file"):
        read_credentials("m", tmp_path / "none.yml")


def test_an_empty_file_is_no_credentials(tmp_path):
    assert read_credentials("m", file_of(tmp_path, "")) == Credentials()


def test_a_repr_shows_no_secret(tmp_path):
    config = {
        "basic_auth": {"username": "u", "password": CANARY},
        "proxy_url": f"http://u:{CANARY}@127.0.0.1:1",
    }
    credentials = read_credentials("m", file_of(tmp_path, config))
    assert CANARY in credentials.secrets
    assert CANARY not in repr(credentials)
    client = Client(
        SourceConfig("m", "any", "http://127.0.0.1:9/"), Archive(tmp_path), credentials, HASTY
    )
    assert CANARY not in repr(client.ask(query="q", role="r"))
