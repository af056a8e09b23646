"""Downloads from a local HTTP server that fails in the ways of real servers."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from distil_cache.errors import UserError
from distil_cache.models.download import WeightsFile, download, weights_folder
from recorded_progress import Recorded

CONTENT = bytes(range(256)) * 12_000  # three blocks


class Server(ThreadingHTTPServer):
    """Serves ``content`` at every path; the attributes say how it fails."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.cuts: list[int] = []  # bytes after which the next responses end
        self.statuses: list[int] = []  # of the next responses, instead of the content
        self.honours_ranges = True
        self.redirect = ""
        self.ranges: list[str | None] = []  # requested by clients

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay quiet when a client hangs up."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, requested = self.server, self.headers.get("Range")
        server.ranges.append(requested)
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested and server.honours_ranges else 0
        if server.redirect or server.statuses:
            self.send_response(302 if server.redirect else server.statuses.pop(0))
            self.send_header("Location", server.redirect)
            self.end_headers()
            return
        if start >= len(server.content):
            self.send_response(416)
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def file(server: Server) -> WeightsFile:
    url = f"http://127.0.0.1:{server.server_port}/w.pt"
    return WeightsFile("w.pt", url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


def test_a_file_is_fetched_with_progress_and_only_once(server: Server, file: WeightsFile, tmp_path: Path) -> None:
    progress = Recorded()
    for _ in range(2):
        path = download(file, tmp_path / "new" / "folder", progress)
        assert path.read_bytes() == CONTENT
    assert server.ranges == [None]
    assert (progress.totals, progress.done) == ({"download w.pt": len(CONTENT)}, {"download w.pt": len(CONTENT)})
    assert [found.name for found in path.parent.iterdir()] == ["w.pt"]


def test_a_cut_connection_is_resumed_where_it_stopped(server: Server, file: WeightsFile, tmp_path: Path) -> None:
    server.cuts = [1000, 500]
    assert download(file, tmp_path, pause=0).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=1500-"]


def test_after_three_cuts_the_part_is_kept_and_the_next_call_goes_on(
    server: Server, file: WeightsFile, tmp_path: Path
) -> None:
    server.cuts = [1000, 500, 500]
    with pytest.raises(
        UserError,
        match=r"failed 3 times .*2,000 of 3,072,000 bytes are complete\. Run the command again to continue, or .* put it at .*/w\.pt\.",
    ):
        download(file, tmp_path, pause=0)
    assert not (tmp_path / "w.pt").exists()
    assert download(file, tmp_path).read_bytes() == CONTENT
    assert server.ranges[3] == "bytes=2000-"


def test_a_server_that_ignores_ranges_sends_everything_again(server: Server, file: WeightsFile, tmp_path: Path) -> None:
    server.honours_ranges = False
    server.cuts = [1000]
    progress = Recorded()
    assert download(file, tmp_path, progress, pause=0).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-"]
    assert progress.done["download w.pt"] == len(CONTENT)


def test_a_server_that_fails_for_a_moment_is_asked_again(server: Server, file: WeightsFile, tmp_path: Path) -> None:
    server.statuses = [503, 429]
    assert download(file, tmp_path, pause=0).read_bytes() == CONTENT


def test_a_file_that_the_server_does_not_have_is_not_asked_for_again(
    server: Server, file: WeightsFile, tmp_path: Path
) -> None:
    server.statuses = [404]
    with pytest.raises(UserError, match="the server answered 404"):
        download(file, tmp_path, pause=0)
    assert len(server.ranges) == 1


def test_a_server_that_is_not_there_gives_a_sentence(file: WeightsFile, tmp_path: Path) -> None:
    gone = dataclasses.replace(file, url="http://127.0.0.1:9/w.pt")
    with pytest.raises(UserError, match="failed 3 times"):
        download(gone, tmp_path, pause=0)


def test_wrong_bytes_are_removed_and_named_by_both_hashes(server: Server, file: WeightsFile, tmp_path: Path) -> None:
    server.content = CONTENT[::-1]
    wrong, right = hashlib.sha256(server.content).hexdigest()[:8], file.sha256[:8]
    with pytest.raises(UserError, match=f"SHA-256 is {wrong}…, expected {right}…: the download is damaged"):
        download(file, tmp_path)
    assert list(tmp_path.glob("w.pt*")) == []


def test_a_file_of_another_size_is_refused_before_it_is_fetched(
    server: Server, file: WeightsFile, tmp_path: Path
) -> None:
    server.content = CONTENT[:-1]
    with pytest.raises(UserError, match=r"offers 3,071,999 bytes, expected 3,072,000"):
        download(file, tmp_path)


@pytest.mark.parametrize("extra", [0, 5])
def test_a_part_that_is_complete_or_too_long_is_dealt_with(
    server: Server, file: WeightsFile, tmp_path: Path, extra: int
) -> None:
    (tmp_path / "w.pt.part").write_bytes(CONTENT + bytes(extra))
    assert download(file, tmp_path).read_bytes() == CONTENT
    assert server.ranges == ([None] if extra else [])


def test_a_part_that_the_server_cannot_continue_is_begun_again(
    server: Server, file: WeightsFile, tmp_path: Path
) -> None:
    (tmp_path / "w.pt.part").write_bytes(b"old")
    server.statuses = [416]
    assert download(file, tmp_path, pause=0).read_bytes() == CONTENT
    assert server.ranges == ["bytes=3-", None]


def test_a_damaged_file_in_its_place_is_refused_and_kept(file: WeightsFile, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"w\.pt: SHA-256 is .*Delete it and run the command again"):
        download(file, tmp_path)
    assert (tmp_path / "w.pt").read_bytes() == b"damaged"


def test_too_little_room_is_noticed_before_the_first_byte(server: Server, file: WeightsFile, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs 1,000,000,000,000,000,000 more bytes, .* are free"):
        download(dataclasses.replace(file, bytes=10**18), tmp_path)
    assert server.ranges == []


def test_a_folder_that_cannot_be_made_gives_a_sentence(file: WeightsFile, tmp_path: Path) -> None:
    (tmp_path / "a file").write_bytes(b"")
    with pytest.raises(UserError, match=r"w\.pt cannot be written"):
        download(file, tmp_path / "a file" / "folder")


@pytest.mark.parametrize("url", ["http://example.invalid/w.pt", "file:///etc/hostname", "ftp://127.0.0.1/w.pt"])
def test_only_https_is_fetched_directly_or_by_redirect(
    server: Server, file: WeightsFile, tmp_path: Path, url: str
) -> None:
    with pytest.raises(UserError, match="over https only"):
        download(dataclasses.replace(file, url=url), tmp_path)
    server.redirect = url
    with pytest.raises(UserError):
        download(file, tmp_path, pause=0)
    assert not (tmp_path / "w.pt").exists()


def test_the_folder_for_downloads_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("DISTIL_CACHE_WEIGHTS", raising=False)
    assert weights_folder() == tmp_path / "distil-cache" / "weights"
    monkeypatch.setenv("DISTIL_CACHE_WEIGHTS", str(tmp_path / "big disk"))
    assert weights_folder() == tmp_path / "big disk"
