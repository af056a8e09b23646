"""The data of one shard, a file or a small folder of files: written, moved and removed, on a disk or in an object store."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ...storage import AnyPath, RemotePath
from ...storage.atomic import fsync_folder, fsync_tree, make_folder
from .format import Rows, ShardFormat, checksum


class Written(NamedTuple):
    """What a marker says of the data: codec, places of the rows (where the format has them), bytes and checksum."""

    codec: str
    offsets: tuple[int, ...]
    bytes: int
    sha256: str


def write_data(
    data: AnyPath, form: ShardFormat, rows: Rows, keys: Sequence[str], feature: str, chunk_tail: tuple[int, ...]
) -> Written:
    """Write the rows of a shard to the new place ``data``, where they are safe when this returns. OSError if they cannot be.

    For an object store they are written to a temporary folder of this machine first, and sent from there; the checksum
    is of what was to be sent, so that a reader notices if anything else arrived.
    """
    if isinstance(data, RemotePath):
        with tempfile.TemporaryDirectory(prefix="distil-cache-") as folder:
            local = Path(folder) / data.name
            codec, offsets = form.write(local, rows, keys, feature, chunk_tail)
            written = Written(codec, offsets, *checksum(local))
            data.upload(local)
            return written
    codec, offsets = form.write(data, rows, keys, feature, chunk_tail)
    fsync_tree(data)
    fsync_folder(data.parent)
    return Written(codec, offsets, *checksum(data))


def remove_data(data: AnyPath) -> None:
    """Remove a shard's data, as far as they are there and can be."""
    with contextlib.suppress(OSError):
        if isinstance(data, RemotePath):
            data.remove()
        elif stat.S_ISDIR(data.lstat().st_mode):
            shutil.rmtree(data, ignore_errors=True)
        else:
            data.unlink()


def move_data(data: AnyPath, target: AnyPath) -> None:
    """Move a shard's data within its store; the time of the target becomes now. FileNotFoundError if they are not there.

    In an object store they are copied, then deleted; what an interruption leaves can be moved again.
    """
    make_folder(target.parent)
    if isinstance(data, RemotePath):
        entries = data.below()
        if not entries:
            raise FileNotFoundError(str(data))
        for entry in entries:
            entry.path.copy_to(target / entry.path.relative_to(data))
        data.remove()
    else:
        os.utime(data.rename(str(target)), follow_symlinks=False)
