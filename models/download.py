"""Fetching a weights file over HTTPS: resumed where it stopped, checked by its SHA-256, there only when complete."""

from __future__ import annotations

import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ..errors import UserError
from ..progress import Progress, Silent, counter
from .user_cache import user_cache_folder
from .weights import file_digest, file_sha256

TRIES = 3
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as cut."""
BLOCK = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class WeightsFile:
    """A published weights file: its name on disk, where it lies, and what it must be."""

    name: str
    url: str
    bytes: int
    sha256: str


_Arrived = Callable[[int, int], None]  # gets the bytes that are there and those of the whole file


class _CutError(Exception):
    """The connection ended early; another try may go on from there."""


class _Response(Protocol):
    status: int
    headers: http.client.HTTPMessage

    def read(self, amount: int, /) -> bytes: ...


def weights_folder() -> Path:
    """Return the folder for downloads: ``$DISTIL_CACHE_WEIGHTS``, else ``weights`` in the user's cache folder."""
    folder = os.environ.get("DISTIL_CACHE_WEIGHTS")
    return Path(folder) if folder else user_cache_folder() / "weights"


def download(file: WeightsFile, folder: Path, progress: Progress | None = None, *, pause: float = 1.0) -> Path:
    """Return the path of the file in ``folder``, fetched if it is not there, with the expected size and SHA-256.

    What has arrived lies in ``NAME.part`` and is kept when the connection is cut, so that the next call goes on from
    there. A cut is tried again three times in all, after ``pause`` seconds and then twice as long. Raises `UserError`
    when the file cannot be had, there is no room for it, or it is not the expected one. One process at a time may
    fetch into a folder. progress : gets the stage ``download NAME``, in bytes, once some arrive.
    """
    target = folder / file.name
    if target.exists():
        _check(file, target, file_sha256(target), "Delete it and run the command again.")
        return target
    _refuse_insecure(file.url)
    part = folder / f"{file.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_room(file, folder, _size(part))
        _fetch_with_retries(file, part, counter(progress or Silent(), f"download {file.name}"), pause)
        _check_part(file, part)
        part.replace(target)
    except OSError as error:
        raise UserError(f"{folder}: {file.name} cannot be written there ({error.strerror or error}).") from error
    return target


def _fetch_with_retries(file: WeightsFile, part: Path, arrived: _Arrived, pause: float) -> None:
    for attempt in range(TRIES):
        try:
            _fetch(file, part, arrived)
            return
        except _CutError as cut:
            if attempt == TRIES - 1:
                have = f"{_size(part):,} of {file.bytes:,} bytes are there"
                raise UserError(
                    f"{file.url}: the download failed {TRIES} times ({cut}); {have}. Run the command again to go on."
                ) from cut
        time.sleep(pause * 2**attempt)


def _fetch(file: WeightsFile, part: Path, arrived: _Arrived) -> None:
    """Bring ``part`` to its full size with one request, or raise `_CutError`."""
    have = _size(part)
    if have > file.bytes:
        part.unlink()
        have = 0
    if have == file.bytes:
        return
    headers = {"User-Agent": "distil-cache", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        with _OPENER.open(urllib.request.Request(file.url, headers=headers), timeout=TIMEOUT) as response:
            start = _start_of_body(file, response, have)
            with part.open("r+b" if start else "wb") as out:
                out.seek(start)
                _copy(file, response, out, start, arrived)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there is not a beginning of what the server has
            part.unlink(missing_ok=True)
            raise _CutError("the server cannot go on where the download stopped") from error
        if error.code == 429 or error.code >= 500:
            raise _CutError(f"the server answered {error.code}") from error
        raise UserError(
            f"{file.url}: the server answered {error.code} {error.reason}. Fetch {file.name} another way."
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _CutError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    if _size(part) < file.bytes:
        raise _CutError("the server closed the connection")


def _start_of_body(file: WeightsFile, response: _Response, have: int) -> int:
    """Return the offset in the file at which the response's body begins; a server that ignores ranges begins at 0."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise UserError(
                f"{file.url}: the server sent another part than asked for. "
                f"Delete {file.name}.part and run the command again."
            )
        start, total = have, match[2]
    else:
        start, total = 0, response.headers.get("Content-Length", "*")
    if total != "*" and int(total) != file.bytes:
        raise UserError(
            f"{file.url}: the server offers {int(total):,} bytes, expected {file.bytes:,}: it is another file."
        )
    return start


def _copy(file: WeightsFile, response: _Response, out: IO[bytes], done: int, arrived: _Arrived) -> None:
    while block := response.read(BLOCK):
        done += len(block)
        if done > file.bytes:
            out.truncate(0)
            raise UserError(
                f"{file.url}: the server sends more than the expected {file.bytes:,} bytes: it is another file."
            )
        out.write(block)
        arrived(done, file.bytes)
    out.flush()
    os.fsync(out.fileno())


def _check_part(file: WeightsFile, part: Path) -> None:
    try:
        _check(file, part, file_digest(part), "It was removed; run the command again.")
    except UserError:
        part.unlink()
        raise


def _check(file: WeightsFile, path: Path, sha256: str, remedy: str) -> None:
    if sha256 != file.sha256:
        found = f"SHA-256 is {sha256[:8]}…, expected {file.sha256[:8]}…"
        raise UserError(f"{path}: {found}: the download is damaged. {remedy}")


def _check_room(file: WeightsFile, folder: Path, have: int) -> None:
    needed = file.bytes - have
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {file.name} needs {needed:,} more bytes, {free:,} are free. "
            "Make room, or set DISTIL_CACHE_WEIGHTS to a folder on another disk."
        )


def _refuse_insecure(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise UserError(f"{url}: weights are fetched over https only.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Follow a redirect only to an address that may be fetched from."""
        _refuse_insecure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_SecureRedirects)
