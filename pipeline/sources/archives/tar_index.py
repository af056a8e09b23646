"""List the members of a tar from its headers alone, without extracting anything.

The tar is untrusted. It must be uncompressed and complete; several tars one behind the other in a file are read as one.
Names must be unique and stay inside the tar. Links, devices and sparse files are rejected, and the memory for a header is
bounded. Plain ustar names, GNU long names and pax paths are supported, which is what tar, Python and webdataset write.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from ....errors import UserError
from ....storage import AnyPath
from ....storage.regular import open_regular, regular_status
from ..file import printable

_BLOCK = 512
_READ = 1 << 20
"""Bytes behind an end marker that are read at a time; a multiple of a block."""
_MAX_ZEROS = 1 << 26
"""Most bytes that pad a tar: records have some kilobytes, and a file of nothing but zeros takes no room on a disk."""
_MAX_EXTENSION = 1 << 16
"""Largest header extension (a long name, pax records) that is read, in bytes."""

_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=")


class TarEntry(NamedTuple):
    """A plain file in a tar: name, offset and length of its bytes, and the bytes if they were requested."""

    name: str
    offset: int
    length: int
    data: bytes | None = None


class TarIndex(NamedTuple):
    """The plain files of a tar, in file order, and the tar's size and modification time when they were listed."""

    entries: list[TarEntry]
    bytes: int
    mtime_ns: int


def read_tar_index(path: AnyPath, wanted: Callable[[str, int], bool] = lambda name, length: False) -> TarIndex:
    """List the plain files of a tar.

    From an object store, ranges of 1 MiB are read one after another.

    Parameters
    ----------
    path
        The tar.
    wanted
        Given name and length of a file, returns whether to include its bytes.

    Raises
    ------
    UserError
        If the tar cannot be read, is damaged or compressed, or has members that are not accepted.
    """
    try:
        status = regular_status(path)
        with open_regular(path) as file:
            entries = list(_entries(path, file, status.st_size, wanted))
        after = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if (status.st_size, status.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(
            f"{path}: changed while it was listed. Run the command again when it is no longer being written."
        )
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise UserError(
                f"{path}: has two members called {printable(entry.name)}. Write the tar again with unique names."
            )
        seen.add(entry.name)
    return TarIndex(entries, status.st_size, status.st_mtime_ns)


def _entries(path: AnyPath, file: BinaryIO, size: int, wanted: Callable[[str, int], bool]) -> Iterator[TarEntry]:
    """Yield the plain files, also those of tars that were written one behind the other."""
    position = 0
    ended = False
    extension: dict[str, str] = {}
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        if len(block) == _BLOCK and not any(block):
            following = _behind_zeros(path, file, position + _BLOCK)
            if following is None:
                return
            position, ended = following, True
            continue
        info = _header(path, block, position, ended)
        ended = False
        start = position + _BLOCK
        length = _length(path, info, extension)
        if start + length > size:
            raise UserError(
                f"{path}: ends in the middle of {printable(info.name)}: it is truncated. Download it again."
            )
        position = start + -(-length // _BLOCK) * _BLOCK
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            if length > _MAX_EXTENSION:
                raise UserError(
                    f"{path}: has a name or a pax header of {length:,} bytes, which is not usual for a tar."
                )
            extension |= _extension(path, info.type, file.read(length))
            continue
        if info.type == tarfile.XGLTYPE:
            continue
        name = _safe_name(path, extension.get("path", info.name))
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and name:
            yield TarEntry(name, start, length, file.read(length) if wanted(name, length) else None)
        elif info.type != tarfile.DIRTYPE:
            raise UserError(f"{path}: {printable(name)!r} is a link, a device or nameless; only plain files are read.")
        extension = {}


def _behind_zeros(path: AnyPath, file: BinaryIO, position: int) -> int | None:
    """Return the position of the next block that is not zero; None if there is none, so that the tar ends here."""
    file.seek(position)
    stop = position + _MAX_ZEROS
    while data := file.read(_READ):
        if position >= stop:
            raise UserError(
                f"{path}: has more than {_MAX_ZEROS:,} zeros behind its end, which no tar has. Write it again."
            )
        if data.count(0) < len(data):
            first = len(data) - len(data.lstrip(b"\0"))
            return position + first // _BLOCK * _BLOCK
        position += len(data)
    return None


def _header(path: AnyPath, block: bytes, position: int, ended: bool) -> tarfile.TarInfo:
    """Parse a header block and verify its checksum; ``ended`` says that it is behind an end marker."""
    if len(block) < _BLOCK and not ended:
        raise UserError(f"{path}: has no end marker: it is truncated or still being written.")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        if ended:
            raise UserError(
                f"{path}: holds data behind its end, at byte {position:,}, which are no further tar. Write it again."
            ) from error
        hint = " If it is compressed, uncompress it." if position == 0 else ""
        raise UserError(f"{path}: is not a tar, or damaged at byte {position:,} ({error}).{hint}") from error


def _length(path: AnyPath, info: tarfile.TarInfo, extension: dict[str, str]) -> int:
    """Return a member's length in bytes, from the pax record before it or from its header."""
    text = extension.get("size", str(info.size))
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UserError(f"{path}: {printable(info.name)} has the impossible size {text[:40]!r}, so the tar is damaged.")
    return int(text)


def _extension(path: AnyPath, kind: bytes, data: bytes) -> dict[str, str]:
    """Return the ``path`` and ``size`` that a header extension gives for the next member."""
    if kind == tarfile.GNUTYPE_LONGNAME:
        return {"path": data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")}
    found = {}
    while data:
        match = _PAX_RECORD.match(data)
        length = int(match[1]) if match else 0
        if match is None or not match.end() < length <= len(data):
            raise UserError(f"{path}: has a pax header that cannot be read, so the tar is damaged.")
        name, value = match[2].decode("utf-8", "replace"), data[match.end() : length - 1]
        if name.startswith("GNU.sparse"):
            raise UserError(f"{path}: holds a sparse file; only plain files are read.")
        found[name] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return {name: found[name] for name in ("path", "size") if name in found}


def _safe_name(path: AnyPath, name: str) -> str:
    """Return a member's name without ``./``; raise UserError for one that leads out of the tar."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise UserError(f"{path}: the member name {printable(name)!r} leads out of the tar, so it is not read.")
    return "/".join(parts)
