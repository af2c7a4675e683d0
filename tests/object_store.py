"""An S3 server of memory on a free loopback port, the environment that leads to a bucket, and a
door before it that can be shut."""

from __future__ import annotations

import http.client
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import boto3
import s3fs
from http_fake import Handler, fake
from moto.server import ThreadedMotoServer

BUCKET = "evidence"
KEYS = {
    "AWS_ACCESS_KEY_ID": "canary-access-key-77d1",
    "AWS_SECRET_ACCESS_KEY": "canary-secret-key-0a3f",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@contextmanager
def serve() -> Iterator[str]:
    """The URL of an empty folder of a bucket; the environment names the server until the end."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with patch.dict(os.environ, {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}):
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield f"s3://{BUCKET}/cases"
    finally:
        server.stop()


@dataclass
class Door:
    """Lets `left` requests through, then shuts: each is answered with `status`."""

    left: float = float("inf")
    status: int = 403


@contextmanager
def door() -> Iterator[Door]:
    """The environment leads through it until the end."""
    server, made = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"), Door()

    def answer(request: Handler, before: int) -> None:
        made.left -= 1
        if made.left < 0:
            request.reply("", made.status)
            return
        asked = way.seen[before]
        headers = {name: value for name, value in asked.headers.items() if name != "Expect"}
        to = http.client.HTTPConnection(server)
        to.request(asked.method, asked.path, asked.body, headers)
        said = to.getresponse()
        own = ("connection", "date", "server", "transfer-encoding")
        kept = {k.replace("-", "_"): v for k, v in said.getheaders() if k.lower() not in own}
        request.reply(said.read(), said.status, **kept)
        to.close()

    with fake(answer) as way, leading_to(way.url):
        yield made


@contextmanager
def leading_to(url: str) -> Iterator[None]:
    """The environment names another server until the end, and nobody asks it twice."""
    try:
        with patch.dict(os.environ, {"AWS_ENDPOINT_URL": url, "AWS_MAX_ATTEMPTS": "1"}):
            s3fs.S3FileSystem.clear_instance_cache()
            yield
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
