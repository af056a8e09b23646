"""A server that speaks as much of the Hub's protocol as reading a data set needs, over a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = {"id": "c" * 40, "title": "Upload", "date": "2026-01-02T03:04:05.000Z"}


class HubHandler(BaseHTTPRequestHandler):
    """Answers for one data set, OWNER/NAME, whose files lie in ``folder``."""

    folder: ClassVar[Path]
    asked: ClassVar[list[str]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        type(self).asked.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if match := re.fullmatch(r"/api/datasets/OWNER/NAME/tree/main/?(.*)", path):
            return self._tree(match[1], parse_qs(url.query))
        if re.fullmatch(r"/api/datasets/OWNER/NAME(/revision/main)?", path):
            return self._json({"id": "OWNER/NAME", "sha": "c" * 40, "private": False, "tags": [], "siblings": []})
        if match := re.fullmatch(r"/datasets/OWNER/NAME/resolve/main/(.+)", path):
            return self._file(match[1])
        return self._absent("RepoNotFound")

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        type(self).asked.append(f"POST {url.path}")
        if url.path != "/api/datasets/OWNER/NAME/paths-info/main":
            return self._absent("RepoNotFound")
        asked = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body)["paths"]
        return self._json([self._entry(self.folder / path) for path in asked if (self.folder / path).exists()])

    def _tree(self, below: str, query: dict[str, list[str]]) -> None:
        top = self.folder / below
        if not top.is_dir():
            return self._absent("EntryNotFound")
        found = top.rglob("*") if query.get("recursive", ["false"])[0].lower() == "true" else top.iterdir()
        return self._json([self._entry(path) for path in sorted(found)])

    def _entry(self, path: Path) -> dict[str, Any]:
        kind = "directory" if path.is_dir() else "file"
        size = 0 if path.is_dir() else path.stat().st_size
        name = path.relative_to(self.folder).as_posix()
        return {"type": kind, "oid": "0" * 40, "size": size, "path": name, "lastCommit": COMMIT}

    def _file(self, name: str) -> None:
        path = self.folder / name
        if not path.is_file():
            return self._absent("EntryNotFound")
        data = path.read_bytes()
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return self._send(200, data, "application/octet-stream")
        start, stop = int(wanted[1]), int(wanted[2] or len(data) - 1)
        return self._send(206, data[start : stop + 1], "application/octet-stream")

    def _absent(self, code: str) -> None:
        self._send(404, b"{}", "application/json", {"X-Error-Code": code})

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def hub_of(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as the data set OWNER/NAME; gives the endpoint, and the list of requests as it grows."""
    asked: list[str] = []
    handler = type("Handler", (HubHandler,), {"folder": folder, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
