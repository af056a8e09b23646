"""Downloads of weights files over HTTPS: resumable, checked by SHA-256, in place only when complete."""

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
"""Seconds without a byte after which a connection counts as lost."""
BLOCK = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class WeightsFile:
    """A published weights file: name on disk, URL, size in bytes and SHA-256."""

    name: str
    url: str
    bytes: int
    sha256: str


_Report = Callable[[int, int], None]  # receives the bytes so far and those of the whole file


class _CutError(Exception):
    """The connection ended early; another attempt may continue from there."""


class _Response(Protocol):
    status: int
    headers: http.client.HTTPMessage

    def read(self, amount: int, /) -> bytes: ...


def weights_folder() -> Path:
    """Return the folder for downloads: ``$DISTIL_CACHE_WEIGHTS``, by default ``weights`` in the user's cache folder."""
    folder = os.environ.get("DISTIL_CACHE_WEIGHTS")
    return Path(folder) if folder else user_cache_folder() / "weights"


def download(file: WeightsFile, folder: Path, progress: Progress | None = None, *, pause: float = 1.0) -> Path:
    """Download a file unless it is there already, and check its size and SHA-256.

    The partial file is ``NAME.part``. It is kept when the connection is lost, so the next call continues from there. A
    lost connection is retried, three attempts in all. Only one process at a time may download into a folder.

    Parameters
    ----------
    file
        The expected file.
    folder
        Where to store it.
    progress
        Receives the stage ``download NAME`` in bytes, once data arrive.
    pause
        Seconds before the second attempt; doubled before each further one.

    Returns
    -------
    Path
        The complete file.

    Raises
    ------
    UserError
        The file cannot be obtained, does not fit on the disk, or is not the expected one.
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
        _request_with_retries(file, part, counter(progress or Silent(), f"download {file.name}"), pause)
        _check_part(file, part)
        part.replace(target)
    except OSError as error:
        raise UserError(f"{folder}: {file.name} cannot be written ({error.strerror or error}).") from error
    return target


def _request_with_retries(file: WeightsFile, part: Path, report: _Report, pause: float) -> None:
    for attempt in range(TRIES):
        try:
            _request(file, part, report)
            return
        except _CutError as cut:
            if attempt == TRIES - 1:
                have = f"{_size(part):,} of {file.bytes:,} bytes are complete"
                raise UserError(
                    f"{file.url}: the download failed {TRIES} times ({cut}); {have}. Run the command again to continue."
                ) from cut
        time.sleep(pause * 2**attempt)


def _request(file: WeightsFile, part: Path, report: _Report) -> None:
    """Complete ``part`` with one request, or raise `_CutError`."""
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
                _copy(file, response, out, start, report)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the partial file is not a prefix of the server's file
            part.unlink(missing_ok=True)
            raise _CutError("the server cannot resume the download") from error
        if error.code == 429 or error.code >= 500:
            raise _CutError(f"the server answered {error.code}") from error
        raise UserError(
            f"{file.url}: the server answered {error.code} {error.reason}. Download {file.name} another way."
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _CutError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    if _size(part) < file.bytes:
        raise _CutError("the server closed the connection")


def _start_of_body(file: WeightsFile, response: _Response, have: int) -> int:
    """Return the file offset at which the response's body begins; 0 if the server ignores ranges."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise UserError(
                f"{file.url}: the server sent a different range than requested. "
                f"Delete {file.name}.part and run the command again."
            )
        start, total = have, match[2]
    else:
        start, total = 0, response.headers.get("Content-Length", "*")
    if total != "*" and int(total) != file.bytes:
        raise UserError(
            f"{file.url}: the server offers {int(total):,} bytes, expected {file.bytes:,}: it is a different file."
        )
    return start


def _copy(file: WeightsFile, response: _Response, out: IO[bytes], done: int, report: _Report) -> None:
    while block := response.read(BLOCK):
        done += len(block)
        if done > file.bytes:
            out.truncate(0)
            raise UserError(
                f"{file.url}: the server sends more than the expected {file.bytes:,} bytes: it is a different file."
            )
        out.write(block)
        report(done, file.bytes)
    out.flush()
    os.fsync(out.fileno())


def _check_part(file: WeightsFile, part: Path) -> None:
    try:
        _check(file, part, file_digest(part), "It was deleted; run the command again.")
    except UserError:
        part.unlink()
        raise


def _check(file: WeightsFile, path: Path, sha256: str, remedy: str) -> None:
    if sha256 != file.sha256:
        digests = f"SHA-256 is {sha256[:8]}…, expected {file.sha256[:8]}…"
        raise UserError(f"{path}: {digests}: the download is damaged. {remedy}")


def _check_room(file: WeightsFile, folder: Path, have: int) -> None:
    needed = file.bytes - have
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {file.name} needs {needed:,} more bytes, {free:,} are free. "
            "Free some space, or set DISTIL_CACHE_WEIGHTS to a folder on another disk."
        )


def _refuse_insecure(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise UserError(f"{url}: weights are downloaded over https only.")


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
        """Follow a redirect only to an allowed address."""
        _refuse_insecure(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_SecureRedirects)
