"""A proxy on loopback between an S3 client and its server that injects the faults of a network and of a busy store.

What it does to which request is said by rules (method, key pattern, how often) or drawn at random from a seed. It speaks
plain HTTP/1.1 and hands the Host header on as it came, because S3's signatures cover it. The server behind it sees whole
requests only.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

from patience import PATIENCE

Kind = Literal[
    "500",  # InternalError; not carried out
    "503",  # SlowDown; not carried out
    "409",  # ConditionalRequestConflict: another conditional put is under way; not carried out
    "403",  # AccessDenied; not carried out
    "reset",  # the connection is reset before the server saw the request
    "lost",  # carried out, then the connection is reset in place of the answer
    "cut",  # carried out, the answer's body ends in the middle (lost where it has no body)
    "stall",  # carried out, the answer's body stops in the middle and nothing follows
    "slow",  # carried out, the answer comes when the client has given up
    "hold",  # neither carried out nor answered
    "unconditional",  # carried out without its condition, as servers do that know none
]
KINDS: tuple[Kind, ...] = get_args(Kind)
PASSING: tuple[Kind, ...] = ("500", "503", "reset", "lost", "cut")  # what costs a client no waiting

_ANSWERS = {
    "500": (500, "InternalError", "We encountered an internal error. Please try again."),
    "503": (503, "SlowDown", "Please reduce your request rate."),
    "409": (409, "ConditionalRequestConflict", "A conflicting operation occurred during the processing of a request."),
    "403": (403, "AccessDenied", "Access Denied"),
}
_NOT_HANDED_ON = {"connection", "expect", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Rule:
    """Inject ``kind`` into the matching requests number ``skip`` + 1 to ``skip`` + ``times``.

    method, target : patterns of the method and of ``/BUCKET/KEY`` (unquoted; of a listing: its prefix).
    conditional : only puts that must not replace anything.
    """

    kind: Kind
    method: str = "*"
    target: str = "*"
    conditional: bool = False
    skip: int = 0
    times: int = 1
    seen: int = 0

    def takes(self, request: Request) -> bool:
        if not (fnmatchcase(request.method, self.method) and fnmatchcase(request.target, self.target)):
            return False
        if self.conditional and not request.conditional:
            return False
        self.seen += 1
        return self.skip < self.seen <= self.skip + self.times


@dataclass
class Chance:
    """Inject faults drawn at random into a share of the requests, never more than ``in_a_row`` into the same request.

    With a share of 1 every request fails this often before it succeeds.
    """

    seed: int
    share: float
    kinds: Sequence[Kind] = PASSING
    in_a_row: int = 2
    _rng: random.Random = field(init=False)
    _row: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def draw(self, request: Request) -> Kind | None:
        same = (request.method, request.target, request.range)
        kind = self._rng.choice(self.kinds)
        if self._rng.random() >= self.share or self._row[same] >= self.in_a_row:
            del self._row[same]
            return None
        self._row[same] += 1
        return kind


@dataclass(frozen=True)
class Request:
    """What a client asked. ``target`` : ``/BUCKET/KEY``, of a listing ``/BUCKET?PREFIX``."""

    method: str
    target: str
    conditional: bool
    range: str = ""

    @classmethod
    def of(cls, method: str, path: str, headers: Any) -> Request:
        parts = urlsplit(path)
        target = unquote(parts.path)
        for item in parts.query.split("&"):
            if item.startswith("prefix="):
                target = f"{target.rstrip('/')}?{unquote(item[len('prefix=') :].replace('+', ' '))}"
        return cls(method, target, headers.get("If-None-Match") == "*", headers.get("Range", ""))


class FaultyProxy:
    """The proxy in front of one server. ``requests`` : all that was asked, in order; ``injected`` : how often which fault."""

    def __init__(self, server: str) -> None:
        self.server = server
        self.requests: list[Request] = []
        self.injected: Counter[str] = Counter()
        self.rules: list[Rule] = []
        self.chance: Chance | None = None
        self.calmed = threading.Event()
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.proxy = self
        self.address = f"http://127.0.0.1:{self._http.server_port}"

    def inject(self, kind: Kind, method: str = "*", target: str = "*", **how: Any) -> Rule:
        """Add a rule; returns it."""
        rule = Rule(kind, method, target, **how)
        with self._lock:
            self.rules.append(rule)
        return rule

    def calm(self) -> None:
        """Inject nothing from here on, and forget what was asked and injected."""
        with self._lock:
            self.calmed.set()
            self.calmed = threading.Event()
            self.rules, self.chance = [], None
            self.requests.clear()
            self.injected.clear()

    def asked(self, method: str = "*", target: str = "*") -> int:
        """How many requests of this kind came."""
        with self._lock:
            return sum(fnmatchcase(r.method, method) and fnmatchcase(r.target, target) for r in self.requests)

    def decide(self, request: Request) -> Kind | None:
        with self._lock:
            self.requests.append(request)
            # Every rule counts what it sees, also when another one acts.
            kinds = [rule.kind for rule in self.rules if rule.takes(request)]
            kind = kinds[0] if kinds else self.chance.draw(request) if self.chance else None
            if kind:
                self.injected[kind] += 1
            return kind

    def serve(self) -> None:
        self._http.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        self.calm()
        self._http.shutdown()
        self._http.server_close()


@contextmanager
def faulty_proxy(server: str) -> Iterator[FaultyProxy]:
    """Run a proxy in a thread of this process, in front of the server with this address."""
    proxy = FaultyProxy(server)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    proxy: FaultyProxy

    def shutdown_request(self, request: Any) -> None:
        # Without the polite farewell first, so that a connection that lingers for nothing is reset.
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what some of these faults are for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        proxy = self.server.proxy
        calmed = proxy.calmed
        kind = proxy.decide(Request.of(self.command, self.path, self.headers))
        if kind in _ANSWERS:
            self._refuse(*_ANSWERS[kind])
        elif kind in ("reset", "hold"):
            if kind == "hold":
                calmed.wait(30)
            self._reset()
        else:
            if kind == "unconditional":
                del self.headers["If-None-Match"]
            status, headers, data = self._forwarded(body)
            if kind == "slow":
                calmed.wait(30)
                self._reset()
            elif kind == "lost" or (kind in ("cut", "stall") and not data):
                self._reset()
            elif kind in ("cut", "stall"):
                self._send(status, headers, data, len(data) // 2)
                self.close_connection = True
                if kind == "stall":
                    calmed.wait(30)
            else:
                self._send(status, headers, data, len(data))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer  # noqa: N815 - named by the standard library

    def _forwarded(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """Hand a request on. A client hears from time to time that it is being served, so only a fault tries its patience."""
        with ThreadPoolExecutor(1) as beside:
            answer = beside.submit(self._forward, body)
            while not wait([answer], timeout=0.1).done:
                self.send_response_only(HTTPStatus.CONTINUE)
                self.end_headers()
        return answer.result()

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        target = urlsplit(self.server.proxy.server)
        connection = HTTPConnection(target.hostname or "", target.port, timeout=PATIENCE)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _NOT_HANDED_ON:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: Sequence[tuple[str, str]], data: bytes, part: int) -> None:
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in _NOT_HANDED_ON:
                self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(data[:part])

    def _refuse(self, status: int, code: str, message: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>0</RequestId></Error>"
        data = b"" if self.command == "HEAD" else f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
        self._send(status, [("Content-Type", "application/xml")], data, len(data))

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        """Nothing is written to the terminal."""
