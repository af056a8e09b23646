"""What a stranger made is read if it is a regular file, whole, of one version, and never beyond its limit."""

from __future__ import annotations

import os
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from distil_cache.storage import regular
from distil_cache.storage.atomic import read_lines
from distil_cache.storage.regular import (
    ChangedFileError,
    IrregularFileError,
    LargeFileError,
    open_regular,
    read_regular,
    read_stable,
    regular_status,
)


def put(kind: str, path: Path) -> Path:
    """Make something that is no regular file."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    return path


def opened(path: Path) -> None:
    with open_regular(path):
        pass


@pytest.mark.parametrize(
    "read", [regular_status, opened, lambda path: read_regular(path, 10), lambda path: read_stable(str(path), 10)]
)
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_what_is_no_file_is_refused_and_named(
    kind: str, read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the address of a socket is short
    path = put(kind, tmp_path / "x")
    with pytest.raises(IrregularFileError, match=f"it is a (named )?{kind}") as raised:
        read(path)
    assert raised.value.filename == str(path)


@pytest.mark.parametrize("read", [regular_status, opened, lambda path: read_regular(path, 10)])
def test_an_absent_file_is_absent(read: Callable[[Path], object], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "x")


def test_a_file_is_read_up_to_its_limit_and_not_held_beyond(tmp_path: Path) -> None:
    (path := tmp_path / "x").write_bytes(b"12345")
    assert read_regular(path, 5) == b"12345"
    with pytest.raises(LargeFileError, match="it has 5 bytes, and more than 4 are not read"):
        read_regular(path, 4)
    os.truncate(path, 2**42)
    tracemalloc.start()
    with pytest.raises(LargeFileError):
        read_regular(path, 2**20)
    assert tracemalloc.get_traced_memory()[1] < 2**16
    tracemalloc.stop()


def test_a_file_that_grows_is_read_again_and_refused_if_it_goes_on_growing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "x").write_bytes(b"1")
    read_whole, growths = regular._read_whole, [1]

    def growing(handle: int, size: int) -> bytes:
        if growths and growths.pop():
            with path.open("ab") as file:
                file.write(b"2")
        return read_whole(handle, size)

    monkeypatch.setattr(regular, "_read_whole", growing)
    data, status = read_stable(path, 100)
    assert (data, status.st_size) == (b"12", 2)
    growths += [1, 1]
    with pytest.raises(ChangedFileError, match="it changed while it was read"):
        read_stable(path, 100)


def test_a_file_of_proc_has_bytes_beyond_its_size_and_is_refused() -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("there is no /proc")
    with pytest.raises(ChangedFileError):
        read_stable("/proc/self/status", 2**20)


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_a_log_that_is_no_regular_file_is_an_error_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    with pytest.raises(IrregularFileError):
        read_lines(put(kind, tmp_path / "log.jsonl"), 1000)
