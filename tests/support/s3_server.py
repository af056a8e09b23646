"""An S3 server on loopback for the tests: moto's, in a process of its own, spoken to over the real protocol.

Run as a program it serves on a free port, prints its address, and ends with its parent or when its standard input does.
moto looks whether a key is there and writes it in two steps, so two conditional puts could both win; here one request is
carried out at a time, which makes them as atomic as S3's. Faults are put in between by ``faulty_proxy``.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from faulty_proxy import FaultyProxy, faulty_proxy

REGION = "us-east-1"
SETTINGS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of an S3 server that lives as long as the test session; skips where s3fs or moto is not installed."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    pytest.importorskip("flask")
    with serving() as address:
        yield address


@pytest.fixture(scope="session")
def _s3_proxy(s3_server: str) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def s3_proxy(_s3_proxy: FaultyProxy) -> Iterator[FaultyProxy]:
    """A proxy before the server that injects faults when it is told to. Who uses it says so with :func:`point_at`."""
    yield _s3_proxy
    _s3_proxy.calm()


@pytest.fixture
def s3_bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://NAME`` of an empty bucket of this test's own; this process and those it starts find the server."""
    name = f"bucket-{os.getpid()}-{next(_numbers)}"
    point_at(s3_server, monkeypatch)
    make_bucket(s3_server, name)
    return f"s3://{name}"


def point_at(address: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Let s3fs find the server at this address, here and in processes that are started from here.

    settings : more of S3FileSystem's arguments, e.g. ``config_kwargs={"read_timeout": 1}``.
    """
    import fsspec

    wanted = {"endpoint_url": address, **settings}
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    # Both say the same: fsspec reads the variable once, when it is imported.
    monkeypatch.setenv("FSSPEC_S3", json.dumps(wanted))
    monkeypatch.setitem(fsspec.config.conf, "s3", wanted)


def make_bucket(address: str, name: str) -> None:
    connection = HTTPConnection(address.removeprefix("http://"))
    connection.request("PUT", f"/{name}")
    assert connection.getresponse().status == 200
    connection.close()


@contextmanager
def serving() -> Iterator[str]:
    """Run the server in a process of its own; yields its address. It ends with the block, or with this process."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve())], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, **SETTINGS},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address.startswith("http://"), f"moto's server did not start (exit code {process.wait(10)})"
        yield address
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def one_at_a_time(app: Callable[..., Iterable[bytes]]) -> Callable[..., list[bytes]]:
    """Wrap a WSGI application so that requests are read side by side, but carried out one after the other."""
    lock = threading.Lock()

    def serve(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        with lock:
            return list(app(environ, start_response))

    return serve


def main() -> None:
    import logging

    from moto.moto_server.werkzeug_app import MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    class Handler(MotoRequestHandler):
        protocol_version = "HTTP/1.1"  # connections are kept, as those to S3 are

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = one_at_a_time(create_backend_app("s3"))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    parent = os.getppid()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    # A killed parent's forked children may hold the other end of the pipe open.
    while os.getppid() == parent and not select.select([sys.stdin], [], [], 1)[0]:
        pass


if __name__ == "__main__":
    main()
