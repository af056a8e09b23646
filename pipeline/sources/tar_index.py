"""Where the members of a tar lie, read from its headers alone: nothing is extracted.

The tar may come from a stranger. It must be uncompressed and whole; names must stay inside it and be unique; anything
but plain files and folders (links, devices, sparse files) is refused, and no header can ask for more than a little
memory. Plain ustar names, GNU long names and pax paths are understood: what tar, Python and webdataset write.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from ...errors import UserError
from ...storage import AnyPath
from .file import printable

_BLOCK = 512
_MAX_EXTENSION = 1 << 16
"""Longest header extension (a long name, pax records) that is read."""

_PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=")


class TarEntry(NamedTuple):
    """A plain file in a tar: name, where its bytes lie, and the bytes themselves if they were asked for."""

    name: str
    offset: int
    length: int
    data: bytes | None = None


class TarIndex(NamedTuple):
    """The plain files of a tar, in its order, and the tar's size and modification time when they were listed."""

    entries: list[TarEntry]
    bytes: int
    mtime_ns: int


def read_tar_index(path: AnyPath, wanted: Callable[[str, int], bool] = lambda name, length: False) -> TarIndex:
    """List a tar's plain files, with the bytes of those whose name and length are ``wanted``.

    Of an object store ranges of a mebibyte are read, one after the other. Raises UserError that says what is wrong with the
    tar, or that it cannot be read.
    """
    try:
        status = path.stat()
        with path.open("rb") as file:
            entries = list(_entries(path, file, status.st_size, wanted))
        after = path.stat()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if (status.st_size, status.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(f"{path}: changed while it was listed. Run the command again when nobody writes it.")
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            raise UserError(f"{path}: has two members called {printable(entry.name)}. Write the tar again without one.")
        seen.add(entry.name)
    return TarIndex(entries, status.st_size, status.st_mtime_ns)


def _entries(path: AnyPath, file: BinaryIO, size: int, wanted: Callable[[str, int], bool]) -> Iterator[TarEntry]:
    """Walk over the headers up to the end marker."""
    position = 0
    extension: dict[str, str] = {}
    while True:
        file.seek(position)
        block = file.read(_BLOCK)
        if len(block) == _BLOCK and not any(block):
            return
        info = _header(path, block, position)
        start = position + _BLOCK
        length = _length(path, info, extension)
        if start + length > size:
            raise UserError(f"{path}: ends in the middle of {printable(info.name)}: it is cut off. Fetch it again.")
        position = start + -(-length // _BLOCK) * _BLOCK
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
            if length > _MAX_EXTENSION:
                raise UserError(f"{path}: has a name or a pax header of {length:,} bytes, so it is no usual tar.")
            extension |= _extension(path, info.type, file.read(length))
            continue
        if info.type == tarfile.XGLTYPE:
            continue
        name = _safe_name(path, extension.get("path", info.name))
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and name:
            yield TarEntry(name, start, length, file.read(length) if wanted(name, length) else None)
        elif info.type != tarfile.DIRTYPE:
            raise UserError(
                f"{path}: {printable(name)!r} is a link, a device or nameless, and only plain files are read."
            )
        extension = {}


def _header(path: AnyPath, block: bytes, position: int) -> tarfile.TarInfo:
    """Parse a header block; the checksum in it is checked."""
    if len(block) < _BLOCK:
        raise UserError(f"{path}: has no end marker: it is cut off, or somebody still writes it.")
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        hint = " If it is compressed, uncompress it." if position == 0 else ""
        raise UserError(f"{path}: is no tar, or damaged at byte {position:,} ({error}).{hint}") from error


def _length(path: AnyPath, info: tarfile.TarInfo, extension: dict[str, str]) -> int:
    """Return a member's bytes: those of the header, or of the pax record before it."""
    text = extension.get("size", str(info.size))
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise UserError(f"{path}: {printable(info.name)} has the impossible size {text[:40]!r}, so the tar is damaged.")
    return int(text)


def _extension(path: AnyPath, kind: bytes, data: bytes) -> dict[str, str]:
    """Return what a header extension says of the next member: its ``path``, perhaps its ``size``."""
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
            raise UserError(f"{path}: holds a sparse file, and only plain files are read.")
        found[name] = value.decode("utf-8", "surrogateescape")
        data = data[length:]
    return {name: found[name] for name in ("path", "size") if name in found}


def _safe_name(path: AnyPath, name: str) -> str:
    """Return a member's name without ``./``; one that leads out of the tar is refused."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise UserError(f"{path}: the member name {printable(name)!r} leads out of the tar, so it is not read.")
    return "/".join(parts)
