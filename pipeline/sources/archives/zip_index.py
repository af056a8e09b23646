"""List the members of a zip from its central directory, and read one of them.

The zip is untrusted. Only its central directory is read to list it. Members must be stored or deflated, and plain: what
is encrypted, compressed otherwise, or a link is named with its reason. Sizes are compared before anything is inflated,
and no member inflates to more than it declares.
"""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from typing import NamedTuple

from ....errors import UserError
from ....images.file import MAX_BYTES, ImageRejected
from ....storage import AnyPath
from ....storage.regular import open_regular, regular_status
from ..file import ZipMember

SUFFIX = ".zip"

_OWN_HEADER = struct.Struct("<4s5H3I2H")
"""Signature, version, flags, method, time, date, CRC, compressed size, size, length of the name and of the extra."""
_METHODS = {9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ", 98: "PPMd"}
"""Methods of compression that are named but not read."""
_USUAL_EXTRA = 64
"""Bytes that an own header may have beyond the name without a second read: a time, owner, and long sizes."""
_MAX_RATIO = 1100
"""No deflated data inflate to more than 1,032 times their size."""
_SUSPICIOUS_BYTES = 256 * 2**20
_SUSPICIOUS_RATIO = 100
"""A member that declares more than both is a bomb rather than an image."""


class ZipEntry(NamedTuple):
    """A member of a zip: its name, and where it is, or else why it cannot be read, as the end of a sentence."""

    name: str
    member: ZipMember | None
    reason: str = ""


def read_zip_index(path: AnyPath, archive: str) -> list[ZipEntry]:
    """List the files in a zip, in the order of its central directory.

    Parameters
    ----------
    path
        The zip.
    archive
        Its path for :class:`..file.ZipMember`.

    Raises
    ------
    UserError
        If it cannot be read, or is no zip.
    """
    try:
        status = regular_status(path)
        with open_regular(path) as file, zipfile.ZipFile(file) as opened:
            infos = opened.infolist()
        after = path.stat()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as error:
        raise UserError(f"{path}: cannot be read as a zip ({error}). Download or write it again.") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}).") from error
    if (status.st_size, status.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(
            f"{path}: changed while it was listed. Run the command again when it is no longer being written."
        )
    seen: set[str] = set()
    entries = []
    for info in infos:
        name = _name(info)
        if not name or info.is_dir() or info.filename.endswith("\\"):
            continue
        reason = "has the name of another member" if name in seen else _unread(info)
        seen.add(name)
        member = ZipMember(
            archive,
            status.st_size,
            status.st_mtime_ns,
            info.header_offset,
            len(info.orig_filename.encode("utf-8", "surrogateescape")),
            info.compress_size,
            info.file_size,
            info.compress_type,
            info.CRC,
        )
        entries.append(ZipEntry(name, None if reason else member, reason))
    return entries


def _name(info: zipfile.ZipInfo) -> str:
    """Return a member's name; ``..`` and a leading slash lead nowhere, since nothing is extracted."""
    name = info.filename.replace("\\", "/") if info.create_system == 0 else info.filename
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _unread(info: zipfile.ZipInfo) -> str:
    """Return why a member cannot be read; empty if it can."""
    if info.flag_bits & 0x1:
        return "is encrypted"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "is a link"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        kind = _METHODS.get(info.compress_type, f"method {info.compress_type}")
        return f"is compressed with {kind}; zips are read if their members are stored or deflated"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return "has two sizes"
    ratio = info.file_size / max(info.compress_size, 1)
    if ratio > _MAX_RATIO and info.file_size > _MAX_RATIO:
        return f"declares {info.file_size:,} bytes, more than its {info.compress_size:,} compressed bytes can hold"
    if info.file_size > MAX_BYTES or (info.file_size > _SUSPICIOUS_BYTES and ratio > _SUSPICIOUS_RATIO):
        return f"inflates from {info.compress_size:,} to {info.file_size:,} bytes, which no usual image does"
    return ""


def request_size(member: ZipMember, data: bytes | None) -> int:
    """Return how many bytes from a member's offset on hold it.

    Parameters
    ----------
    member
        The member.
    data
        Its own header; None before that is known.

    Raises
    ------
    ImageRejected
        ``damaged`` if there is no header.
    """
    if data is None:
        return _OWN_HEADER.size + member.name_bytes + _USUAL_EXTRA + member.compressed
    return _start(data) + member.compressed


def inflate(member: ZipMember, data: bytes) -> bytes:
    """Return a member's bytes from its header and data. Raises ImageRejected (``damaged``) if they are not sound."""
    start = _start(data)
    stored = data[start : start + member.compressed]
    if member.method == zipfile.ZIP_DEFLATED:
        try:
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            found = inflater.decompress(stored, member.length + 1)
        except zlib.error as error:
            raise ImageRejected("damaged", f"it cannot be inflated from its zip ({error})") from None
    else:
        found = stored
    if len(found) != member.length or zlib.crc32(found) != member.crc:
        raise ImageRejected("damaged", "its size or checksum in the zip is wrong")
    return found


def _start(data: bytes) -> int:
    """Return where a member's data begin."""
    if len(data) < _OWN_HEADER.size or not data.startswith(b"PK\3\4"):
        raise ImageRejected("damaged", "its header in the zip is damaged")
    name, extra = _OWN_HEADER.unpack_from(data)[-2:]
    return _OWN_HEADER.size + int(name) + int(extra)
