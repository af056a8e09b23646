"""Downloads of weights files over HTTPS: resumable, checked by SHA-256, in place only when complete.

A file whose SHA-256 is not known is downloaded in one go, since two halves could be of different files; the caller says
that nothing was checked. A token is sent only to the host for which it is meant, not to where that host redirects.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from ..errors import UserError
from ..progress import Progress, Silent, counter
from .addresses import SHA256
from .user_cache import user_cache_folder
from .weights import file_digest, file_sha256

TRIES = 3
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as lost."""
BLOCK = 1 << 20
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class WeightsFile:
    """A weights file to download.

    Attributes
    ----------
    name
        Name on disk.
    url
        Where it is.
    bytes
        Size; None if it is not known in advance.
    sha256
        SHA-256; None if it is not known.
    also
        Further SHA-256s that are accepted.
    token
        Bearer token for the host of ``url``; never shown.
    """

    name: str
    url: str
    bytes: int | None = None
    sha256: str | None = None
    also: tuple[str, ...] = ()
    token: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The URL without its query, which may hold a signature."""
        return self.url.partition("?")[0]

    @property
    def digests(self) -> tuple[str, ...]:
        """All SHA-256s that are accepted; empty if none is known."""
        return self.also if self.sha256 is None else (self.sha256, *self.also)


class AbsentWeightsError(UserError):
    """A file would have to be downloaded, and :func:`no_downloads` forbids it."""


_forbidden: ContextVar[bool] = ContextVar("_forbidden", default=False)


@contextmanager
def no_downloads() -> Iterator[None]:
    """Let every download in the block raise `AbsentWeightsError`."""
    token = _forbidden.set(True)
    try:
        yield
    finally:
        _forbidden.reset(token)


def announcement(file: WeightsFile, folder: Path) -> str:
    """Say what is to be downloaded, how large it is, from where and to where, and how to do without."""
    size = "of a size that its server tells" if file.bytes is None else f"{file.bytes / 1e6:,.0f} MB"
    return (
        f"{file.name} ({size}) from {file.shown} to {folder}. To place it by hand, download it elsewhere and put it at "
        f"{folder / file.name}. --profile small needs no download."
    )


_Report = Callable[[int, int], None]  # receives the bytes so far and those of the whole file


@dataclass
class _Transfer:
    """A download in progress, over all its attempts.

    Attributes
    ----------
    file, part
        What is downloaded, and the partial file.
    total
        Bytes of the whole file, as far as known.
    version
        The server's ETag, so that an attempt continues the same content.
    stated
        SHA-256 that the server states, as the Hugging Face Hub does for large files.
    """

    file: WeightsFile
    part: Path
    report: _Report
    total: int | None
    version: str | None = None
    stated: str | None = None


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
        Receives what is downloaded, from where and to where, and the stage ``download NAME`` in bytes, once data arrive.
        Without it, stderr gets the former: a download of gigabytes is never silent.
    pause
        Seconds before the second attempt; doubled before each further one.

    Returns
    -------
    Path
        The complete file.

    Raises
    ------
    UserError
        The file cannot be obtained, does not fit on the disk, is not the expected one, or may not be downloaded.
    """
    target = folder / file.name
    if target.exists():
        if file.digests:
            _check(file.digests, target, file_sha256(target), "Delete it and run the command again.")
        return target
    _refuse_insecure(file.url)
    if _forbidden.get():
        raise AbsentWeightsError(f"Weights that are not here yet: {announcement(file, folder)}")
    sentence = f"Downloading {announcement(file, folder)}"
    progress.say(sentence) if progress is not None else print(sentence, file=sys.stderr)
    part = folder / f"{file.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.digests:
            part.unlink(missing_ok=True)
        if file.bytes is not None:
            _check_room(file, folder, file.bytes - _size(part))
        report = counter(progress or Silent(), f"download {file.name}")
        transfer = _Transfer(file, part, report, file.bytes)
        _request_with_retries(transfer, pause)
        _check_part(transfer)
        part.replace(target)
    except OSError as error:
        raise UserError(f"{folder}: {file.name} cannot be written ({error.strerror or error}).") from error
    return target


def _request_with_retries(transfer: _Transfer, pause: float) -> None:
    for attempt in range(TRIES):
        try:
            _request(transfer)
            return
        except _CutError as cut:
            if attempt == TRIES - 1:
                whole = "" if transfer.total is None else f" of {transfer.total:,}"
                have = f"{_size(transfer.part):,}{whole} bytes are complete"
                target = transfer.part.with_name(transfer.file.name)
                again = "to continue" if transfer.file.digests else "to try again"
                raise UserError(
                    f"{transfer.file.shown}: the download failed {TRIES} times ({cut}); {have}. "
                    f"Run the command again {again}, or download the file elsewhere and put it at {target}."
                ) from cut
        time.sleep(pause * 2**attempt)


def _request(transfer: _Transfer) -> None:
    """Complete the partial file with one request, or raise `_CutError`."""
    file, part = transfer.file, transfer.part
    have = _size(part)
    if transfer.total is not None and have > transfer.total:
        part.unlink()
        have = 0
    if have == transfer.total:
        return
    redirects = _SecureRedirects(file)
    try:
        with _open(transfer, redirects, have) as response:
            _note_version(transfer, [*redirects.passed, response.headers])
            start = _start_of_body(transfer, response, have)
            with part.open("r+b" if start else "wb") as out:
                out.seek(start)
                _copy(transfer, response, out, start)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the partial file is not a prefix of the server's file
            part.unlink(missing_ok=True)
            raise _CutError("the server cannot resume the download") from error
        if error.code == 429 or error.code >= 500:
            raise _CutError(f"the server answered {error.code}") from error
        raise UserError(_refused(file, error)) from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _CutError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    if transfer.total is not None and _size(part) < transfer.total:
        raise _CutError("the server closed the connection")


def _open(transfer: _Transfer, redirects: _SecureRedirects, have: int) -> http.client.HTTPResponse:
    headers = {"User-Agent": "distil-cache"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if transfer.version:
            headers["If-Range"] = transfer.version
    request = urllib.request.Request(transfer.file.url, headers=headers)
    redirects.authorise(request)
    found: http.client.HTTPResponse = urllib.request.build_opener(redirects).open(request, timeout=TIMEOUT)
    return found


def _note_version(transfer: _Transfer, answers: list[http.client.HTTPMessage]) -> None:
    """Keep what the answers say about the version of the file: a strong ETag, and the SHA-256 that the Hub states."""
    etag = answers[-1].get("ETag", "")
    transfer.version = etag if etag.startswith('"') else None
    for headers in answers:
        stated = headers.get("X-Linked-Etag", "").strip('"')
        if SHA256.fullmatch(stated):
            transfer.stated = stated


def _refused(file: WeightsFile, error: urllib.error.HTTPError) -> str:
    where = f"{file.shown}: the server answered {error.code} {error.reason}."
    if error.code in (401, 403):
        token = "The token was not accepted" if file.token else "A private or gated file needs a token in HF_TOKEN"
        return f"{where} {token}. Or download {file.name} another way."
    return f"{where} Check the name, or download {file.name} another way."


def _start_of_body(transfer: _Transfer, response: _Response, have: int) -> int:
    """Return the file offset at which the response's body begins; 0 if the server ignores ranges."""
    file = transfer.file
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise UserError(
                f"{file.shown}: the server sent a different range than requested. "
                f"Delete {file.name}.part and run the command again."
            )
        start, total = have, match[2]
    else:
        start, total = 0, response.headers.get("Content-Length", "*")
    if total == "*":
        if transfer.total is None and not file.digests:
            raise UserError(f"{file.shown}: the server does not say how long the file is. Pass its SHA-256.")
        return start
    if transfer.total is not None and int(total) != transfer.total:
        raise UserError(
            f"{file.shown}: the server offers {int(total):,} bytes, expected {transfer.total:,}: it is a different file."
        )
    if transfer.total is None:
        transfer.total = int(total)
        _check_room(file, transfer.part.parent, transfer.total - start)
    return start


def _copy(transfer: _Transfer, response: _Response, out: IO[bytes], done: int) -> None:
    total = transfer.total
    while block := response.read(BLOCK):
        done += len(block)
        if total is not None and done > total:
            out.truncate(0)
            raise UserError(
                f"{transfer.file.shown}: the server sends more than the expected {total:,} bytes: it is a different file."
            )
        out.write(block)
        transfer.report(done, done if total is None else total)
    out.truncate()
    out.flush()
    os.fsync(out.fileno())


def _check_part(transfer: _Transfer) -> None:
    digests = transfer.file.digests or ((transfer.stated,) if transfer.stated else ())
    if not digests:
        return
    try:
        _check(digests, transfer.part, file_digest(transfer.part), "It was deleted; run the command again.")
    except UserError:
        transfer.part.unlink()
        raise


def _check(digests: tuple[str, ...], path: Path, sha256: str, remedy: str) -> None:
    if sha256 not in digests:
        expected = " or ".join(f"{digest[:8]}…" for digest in digests)
        raise UserError(
            f"{path}: SHA-256 is {sha256[:8]}…, expected {expected}: the download is damaged or another file. {remedy}"
        )


def _check_room(file: WeightsFile, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {file.name} needs {needed:,} more bytes, {free:,} are free. "
            "Free some space, or set DISTIL_CACHE_WEIGHTS to a folder on another disk."
        )


def _refuse_insecure(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise UserError(f"{url.partition('?')[0]}: weights are downloaded over https only.")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _host(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed addresses only, and sends the token to the file's own host only.

    Attributes
    ----------
    passed
        Headers of the answers that redirected.
    """

    def __init__(self, file: WeightsFile) -> None:
        self._file = file
        self.passed: list[http.client.HTTPMessage] = []

    def authorise(self, request: urllib.request.Request) -> None:
        """Add the token to a request to the file's own host; it is not copied when the request is redirected."""
        if self._file.token and _host(request.full_url) == _host(self._file.url):
            request.add_unredirected_header("Authorization", f"Bearer {self._file.token}")

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
        self.passed.append(headers)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            self.authorise(request)
        return request
