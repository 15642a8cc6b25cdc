"""The S3 of the tests: moto's server, which speaks the real protocol."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from moto.server import ThreadedMotoServer


@contextmanager
def s3_server(address: str = "127.0.0.1") -> Iterator[dict[str, str]]:
    """Run a server; gives the environment in which everything finds it, and nothing else."""
    server = ThreadedMotoServer(address, port=0)
    server.start()
    # A client that leaves early is no news; its traceback would get into the output of whatever runs here.
    server._server.handle_error = lambda *_: None  # type: ignore[union-attr,method-assign]
    host, port = server.get_host_and_port()
    try:
        yield {
            "AWS_ENDPOINT_URL_S3": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "an-id",
            "AWS_SECRET_ACCESS_KEY": "a-s3cret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_CONFIG_FILE": os.devnull,
        }
    finally:
        server.stop()
