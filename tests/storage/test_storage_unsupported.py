"""File systems that cannot flush folders, flush files, or append."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from distil_cache.errors import UserError
from distil_cache.storage import atomic
from distil_cache.storage.atomic import append_line, create_file, fsync_tree, make_folder

REFUSALS = [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS]


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_noted", set())


def refuse_fsync(monkeypatch: pytest.MonkeyPatch, code: int, *, folders: bool) -> None:
    flush = os.fsync

    def refused(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) == folders:
            raise OSError(code, os.strerror(code))
        flush(handle)

    monkeypatch.setattr("os.fsync", refused)


@pytest.mark.parametrize("code", REFUSALS)
def test_where_folders_cannot_be_flushed_work_goes_on_with_one_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    refuse_fsync(monkeypatch, code, folders=True)
    make_folder(tmp_path / "a" / "b")
    assert create_file(tmp_path / "a" / "b" / "file", b"content")
    fsync_tree(tmp_path)
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "this file system cannot flush folders to disk" in record.getMessage()
    assert "cache verify" in record.getMessage()


@pytest.mark.parametrize("code", REFUSALS)
def test_where_files_cannot_be_flushed_the_sentence_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    refuse_fsync(monkeypatch, code, folders=False)
    with pytest.raises(UserError, match=r"file.*: this file system cannot flush files to disk .*another file system"):
        create_file(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folders", [True, False])
def test_a_disk_that_fails_is_no_missing_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: bool
) -> None:
    refuse_fsync(monkeypatch, errno.EIO, folders=folders)
    with pytest.raises(UserError, match="cannot be written"):
        create_file(tmp_path / "file", b"content")


@pytest.mark.parametrize("code", REFUSALS)
def test_where_files_cannot_grow_a_log_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    real = Path.open

    def no_append(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        if "a" in mode:
            raise OSError(code, os.strerror(code))
        return real(path, mode, *rest, **named)

    log = tmp_path / "log.jsonl"
    log.write_bytes(b"cut off")
    monkeypatch.setattr(Path, "open", no_append)
    append_line(log, b"one")
    append_line(log, b"two")
    assert log.read_bytes() == b"cut off\none\ntwo\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]
    (record,) = caplog.records
    assert "this file system cannot append to files" in record.getMessage()
