"""Weights at an address: a file of the Hub or a URL, from local servers."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from distil_cache.errors import UsageError, UserError
from distil_cache.models import remote_weights
from distil_cache.models.backbones import build_backbone, load_teacher
from distil_cache.models.diffusion.checkpoints import OFFICIAL, find_adm, locate_adm
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.models.download import WeightsFile, download
from distil_cache.models.remote_weights import fetch_weights
from recorded_progress import Recorded
from small_models import TINY_FLAGS

CONTENT = bytes(range(256)) * 9_000  # three blocks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TOKEN = "hf_a_secret_token"


class Server(ThreadingHTTPServer):
    """Serves ``content`` at every path, or sends clients on to ``elsewhere``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.elsewhere = ""
        self.needs_token = False
        self.stated = ""  # the SHA-256 that the Hub states
        self.etag = '"v1"'
        self.tells_length = True
        self.cut = 0  # bytes after which the next response ends
        self.asked: list[tuple[str, str | None]] = []  # path, and token

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay quiet when a client hangs up."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server, token = self.server, self.headers.get("Authorization")
        server.asked.append((self.path, token))
        if server.needs_token and token != f"Bearer {TOKEN}":
            self.send_response(401)
            self.end_headers()
            return
        stated = {"X-Linked-Etag": f'"{server.stated}"'} if server.stated else {}
        if server.elsewhere and "moved" not in self.path:
            self._answer(302, {"Location": server.elsewhere, **stated}, b"")
            return
        requested = self.headers.get("Range", "") if self.headers.get("If-Range", server.etag) == server.etag else ""
        start = int(requested.removeprefix("bytes=").removesuffix("-")) if requested else 0
        whole = len(server.content)
        ranged = {"Content-Range": f"bytes {start}-{whole - 1}/{whole}"} if start else {}
        length = {"Content-Length": str(whole - start)} if server.tells_length else {}
        cut, server.cut = server.cut or whole, 0
        headers = {"ETag": server.etag, **ranged, **length, **stated}
        self._answer(206 if start else 200, headers, server.content[start : start + cut])

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("DISTIL_CACHE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "weights"


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with running() as one:
        monkeypatch.setenv("HF_ENDPOINT", one.url)
        yield one


def test_a_file_of_the_hub_is_fetched_once_and_kept_by_its_name(server: Server, folder: Path) -> None:
    for _ in range(2):
        path = fetch_weights("hf:owner/repo/models/w 1.pt")
        assert path == folder / "hf" / "owner" / "repo" / "models" / "w 1.pt"
        assert path.read_bytes() == CONTENT
    assert server.asked == [("/owner/repo/resolve/main/models/w%201.pt", None)]


def test_a_revision_has_a_place_of_its_own(server: Server, folder: Path) -> None:
    assert fetch_weights("hf:owner/repo@v1.0/w.pt") == folder / "hf" / "owner" / "repo@v1.0" / "w.pt"
    assert server.asked == [("/owner/repo/resolve/v1.0/w.pt", None)]


def test_an_unchecked_download_is_said_with_its_digest(server: Server) -> None:
    progress = Recorded()
    fetch_weights("hf:owner/repo/w.pt", progress=progress)
    assert progress.said[0].startswith("Downloading w.pt ")
    assert progress.said[1:] == [
        f"hf:owner/repo/w.pt: no SHA-256 was given. That of the download is {SHA256}; pass it with --sha256."
    ]
    assert progress.totals == {"download w.pt": len(CONTENT)}
    fetch_weights("hf:owner/repo/other.pt", [SHA256], checked := Recorded())
    assert [sentence.split()[0] for sentence in checked.said] == ["Downloading"]


def test_the_digest_that_the_hub_states_is_checked(server: Server, folder: Path) -> None:
    server.stated = SHA256
    fetch_weights("hf:owner/repo/w.pt")
    server.stated = "0" * 64
    with pytest.raises(UserError, match=rf"SHA-256 is {SHA256[:8]}…, expected 00000000…"):
        fetch_weights("hf:owner/repo/other.pt")
    assert [path.name for path in (folder / "hf" / "owner" / "repo").iterdir()] == ["w.pt"]


def test_a_wrong_sha256_is_refused_fresh_and_kept(server: Server, folder: Path) -> None:
    for name in ("hf:owner/repo/w.pt", f"{server.url}/w.pt"):
        with pytest.raises(UserError, match=rf"SHA-256 is {SHA256[:8]}…, expected ffffffff…"):
            fetch_weights(name, ["f" * 64])
        fetch_weights(name, [SHA256.upper()])
        with pytest.raises(UserError, match="Delete it and run the command again"):
            fetch_weights(name, ["f" * 64])


def test_the_token_reaches_the_hub_only(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running() as storage:
        server.elsewhere, server.needs_token = f"{storage.url}/moved?signature=x", True
        assert fetch_weights("hf:owner/repo/w.pt", [SHA256]).read_bytes() == CONTENT
        assert server.asked == [("/owner/repo/resolve/main/w.pt", f"Bearer {TOKEN}")]
        assert storage.asked == [("/moved?signature=x", None)]


def test_the_token_is_kept_on_a_redirect_within_the_hub(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.elsewhere, server.needs_token = "/moved", True
    assert fetch_weights("hf:owner/repo/w.pt", [SHA256]).read_bytes() == CONTENT
    assert server.asked[1] == ("/moved", f"Bearer {TOKEN}")


@pytest.mark.parametrize("token", [None, "hf_wrong", "with a\nline"])
def test_a_refusal_speaks_of_the_token_and_never_prints_it(
    server: Server, monkeypatch: pytest.MonkeyPatch, token: str | None
) -> None:
    server.needs_token = True
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError) as error:
        fetch_weights("hf:owner/repo/w.pt")
    assert "HF_TOKEN" in str(error.value) or "token was not accepted" in str(error.value)
    assert token is None or token not in str(error.value)


@pytest.mark.parametrize(
    "name", ["hf:", "hf:repo/w.pt", "hf:owner/repo/", "hf:../repo/w.pt", "hf:a/b/../../w.pt", "hf:a//b/c"]
)
def test_names_that_are_none_are_refused(name: str, folder: Path) -> None:
    with pytest.raises(UsageError, match="hf:OWNER/REPO/FILE"):
        fetch_weights(name)
    assert not folder.exists()


def test_a_url_needs_its_sha256(folder: Path) -> None:
    with pytest.raises(UserError, match=r"https://example\.invalid/w\.pt: weights from a URL.*--sha256") as error:
        fetch_weights("https://example.invalid/w.pt?signature=secret")
    assert "secret" not in str(error.value)
    with pytest.raises(UsageError, match="--sha256 abc: is not a SHA-256"):
        fetch_weights("https://example.invalid/w.pt", ["abc"])


@pytest.mark.parametrize("url", ["https://user:secret@example.invalid/w.pt", "https:///w.pt"])
def test_a_url_with_a_password_or_without_a_host_is_refused(url: str, folder: Path) -> None:
    with pytest.raises(UsageError, match="give a URL with a host") as error:
        fetch_weights(url, [SHA256])
    assert "secret" not in str(error.value)


def test_urls_of_one_name_do_not_collide(server: Server) -> None:
    one, other = (fetch_weights(f"{server.url}/{part}/w.pt?download=true", [SHA256]) for part in "ab")
    assert (one.name, other.name) == ("w.pt", "w.pt")
    assert one != other


def test_a_file_that_changes_between_two_attempts_is_begun_again(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = WeightsFile("w.pt", f"{server.url}/w.pt")
    server.cut = 1000
    copy = server.content

    def change(seconds: float) -> None:
        server.content, server.etag = copy[::-1], '"v2"'

    monkeypatch.setattr("distil_cache.models.download.time.sleep", change)
    assert download(file, folder, pause=0).read_bytes() == copy[::-1]


def test_an_old_part_of_an_unchecked_file_is_not_continued(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "w.pt.part").write_bytes(b"of another file")
    assert download(WeightsFile("w.pt", f"{server.url}/w.pt"), folder).read_bytes() == CONTENT


def test_a_file_of_unknown_length_needs_a_sha256(server: Server, folder: Path) -> None:
    server.tells_length = False
    with pytest.raises(UserError, match="does not say how long the file is"):
        download(WeightsFile("w.pt", f"{server.url}/w.pt"), folder)
    path = download(WeightsFile("w.pt", f"{server.url}/w.pt", sha256=SHA256), folder)
    assert path.read_bytes() == CONTENT


def test_an_adm_and_a_teacher_are_loaded_from_the_hub(server: Server, tmp_path: Path) -> None:
    config = AdmConfig.from_flags(TINY_FLAGS)
    torch.save({"model_ema": Adm(config).state_dict()}, tmp_path / "adm.pt")
    server.content = (tmp_path / "adm.pt").read_bytes()
    (tmp_path / "flags.json").write_text(json.dumps(TINY_FLAGS))
    assert find_adm("hf:owner/repo/adm.pt#ema", tmp_path / "flags.json").config == config
    torch.save(build_backbone("small").state_dict(), tmp_path / "small.pt")
    server.content = (tmp_path / "small.pt").read_bytes()
    sha256 = hashlib.sha256(server.content).hexdigest()
    by_hub = load_teacher("small", "hf:owner/repo/small.pt")
    by_url = load_teacher("small", f"{server.url}/small.pt", sha256=["0" * 64, sha256])
    assert by_hub.digest == by_url.digest == load_teacher("small", tmp_path / "small.pt").digest


def test_an_official_model_without_a_published_digest_says_so(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = OFFICIAL["lsun-bedroom"]
    file = WeightsFile(one.file.name, f"{server.url}/lsun_bedroom.pt")
    monkeypatch.setitem(OFFICIAL, "lsun-bedroom", type(one)(file, one.config))
    progress = Recorded()
    assert locate_adm("lsun-bedroom", progress) == folder / "lsun_bedroom.pt"
    assert progress.said[0].startswith("Downloading lsun_bedroom.pt ")
    assert f"That of the download is {SHA256}" in progress.said[1]
    assert "None is published for this model." in progress.said[1]
    (folder / "lsun_bedroom.pt").unlink()
    with pytest.raises(UserError, match="expected ffffffff…"):
        locate_adm("lsun-bedroom", progress, ["f" * 64])


def test_the_hub_is_asked_over_https_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://example.invalid")
    with pytest.raises(UserError, match="over https only"):
        fetch_weights("hf:owner/repo/w.pt")
    assert remote_weights.HUB.startswith("https://")
