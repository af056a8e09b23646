"""Tars for tests: well-formed ones as webdataset writes them, and raw headers for those that are crafted."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:  # noqa: A002
    """Write a tar of plain files; names may repeat."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def sample(key: str, image: bytes, extension: str = "png", **said: Any) -> list[tuple[str, bytes]]:
    """Return the members of one sample: the image and what is said about it."""
    return [(f"{key}.{extension}", image), (f"{key}.json", json.dumps(said).encode())]


def odd_member(name: str, kind: bytes, **fields: Any) -> tarfile.TarInfo:
    """Return the header of a link, device or other special member."""
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def write_headers(path: Path, headers: Iterable[tarfile.TarInfo], format: int = tarfile.PAX_FORMAT) -> Path:  # noqa: A002
    """Write a tar of headers alone, whatever sizes they claim, with an end marker."""
    blocks = [info.tobuf(format) for info in headers]
    path.write_bytes(b"".join(blocks) + bytes(1024))
    return path


def pax(name: str, size: int, records: Mapping[str, str]) -> tarfile.TarInfo:
    """Return a member's header with these pax records before it."""
    info = tarfile.TarInfo(name)
    info.size = size
    info.pax_headers = dict(records)
    return info
