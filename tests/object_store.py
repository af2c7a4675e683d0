"""An S3 server of memory on a free loopback port, and the environment that leads to a bucket."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import boto3
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
