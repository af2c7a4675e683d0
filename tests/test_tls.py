"""Certificates, both ways, as a promtool file says."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
import yaml
from http_fake import fake

from tbforensics.archive import Archive
from tbforensics.credentials import read_credentials
from tbforensics.model import Capture, SourceConfig
from tbforensics.wire import Client, Manners

pytestmark = pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl to make keys with")
CLIENT = {"cert_file": "client.pem", "key_file": "client.key"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """A folder with an authority, and a server and a client that it vouches for."""
    folder = tmp_path_factory.mktemp("keys")

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    usage = "keyUsage=critical,keyCertSign"
    openssl(
        *("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"),
        *("-subj", "/CN=authority", "-addext", usage),
    )
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n")
    for name in ("server", "client"):
        openssl(
            "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
        )
        openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", "-days", "2"),
            *("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"),
        )
    return folder


def asked(keys: Path, folder: Path, tls: dict[str, object], **server: object) -> Capture:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(keys / "server.pem", keys / "server.key")
    if server.get("wants_certificate"):
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(keys / "ca.pem")
    if server.get("old"):
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    config = keys / f"{folder.name}.yml"
    config.write_text(yaml.safe_dump({"tls_config": tls}))
    with fake(lambda to, n: to.reply("ok"), context) as there:
        source = SourceConfig("m", "any", there.url)
        client = Client(source, Archive(folder), read_credentials("m", config), Manners(retries=0))
        return client.ask(query="q", role="r")


@pytest.mark.parametrize(
    ("tls", "server"),
    [
        ({"ca_file": "ca.pem"}, {}),
        ({"ca_file": "ca.pem", **CLIENT}, {"wants_certificate": True}),
        ({"ca_file": "ca.pem", "min_version": "TLS12", **CLIENT}, {"wants_certificate": True}),
        ({"ca_file": "ca.pem", "max_version": "TLS12"}, {"old": True}),
    ],
)
def test_who_is_vouched_for_is_let_in(tls, server, keys, tmp_path):
    assert asked(keys, tmp_path, tls, **server).error == ""


def test_an_authority_may_stand_in_the_file(keys, tmp_path):
    assert asked(keys, tmp_path, {"ca": (keys / "ca.pem").read_text()}).error == ""


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
@pytest.mark.parametrize("more", [{}, {"min_version": "TLS12"}])
def test_not_checking_is_possible_where_it_is_asked_for(more, keys, tmp_path):
    assert asked(keys, tmp_path, {"insecure_skip_verify": True, **more}).error == ""


@pytest.mark.parametrize(
    ("tls", "server", "words"),
    [
        ({}, {}, "CERTIFICATE_VERIFY_FAILED"),
        ({"ca_file": "ca.pem"}, {"wants_certificate": True}, ""),  # its alert may get lost
        ({"ca_file": "ca.pem", "min_version": "TLS13"}, {"old": True}, "PROTOCOL_VERSION"),
    ],
)
def test_who_is_not_vouched_for_is_a_capture_with_an_error(tls, server, words, keys, tmp_path):
    capture = asked(keys, tmp_path, tls, **server)
    assert capture.error
    assert capture.sha256 is None
    if words:
        assert capture.error.startswith("TLS failed: ")
        assert words in capture.error.upper()
