"""Files and folders as one thing are listed, written, moved and deleted alike on a disk and in a store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from distil_cache.storage import AnyPath, RemotePath, path_exists
from distil_cache.storage.regular import IrregularFileError
from distil_cache.storage.trees import (
    move_file,
    move_tree,
    moved_time,
    new_tree,
    put_back,
    remove_tree,
    tree_files,
    tree_size_and_time,
)


def write(path: AnyPath, files: dict[str, bytes]) -> None:
    if not isinstance(path, RemotePath):
        path.parent.mkdir(parents=True, exist_ok=True)
    with new_tree(path) as local:
        for name, data in files.items():
            place = local / name if name else local
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)


def test_a_tree_is_listed_with_names_and_sizes_and_a_single_file_without_a_name(folder: AnyPath) -> None:
    write(folder / "tree", {"b": b"12", "a/x": b"123"})
    write(folder / "file", {"": b"1"})
    assert [(name, size) for name, _, size in tree_files(folder / "tree")] == [("a/x", 3), ("b", 2)]
    assert tree_files(folder / "file") == [("", folder / "file", 1)]
    assert tree_size_and_time(folder / "tree")[0] == 5


def test_what_is_absent_is_no_empty_tree(folder: AnyPath) -> None:
    for work in (
        tree_files,
        lambda path: move_tree(path, folder / "other"),
        lambda path: move_file(path, folder / "x"),
    ):
        with pytest.raises(FileNotFoundError):
            work(folder / "absent")


def test_a_moved_tree_is_at_its_target_alone(folder: AnyPath) -> None:
    write(folder / "tree", {"b": b"12", "a/x": b"123"})
    move_tree(folder / "tree", folder / "trash" / "tree")
    assert not path_exists(folder / "tree")
    assert [name for name, _, _ in tree_files(folder / "trash" / "tree")] == ["a/x", "b"]
    remove_tree(folder / "trash" / "tree")
    assert not path_exists(folder / "trash" / "tree")


def test_a_moved_file_is_put_back_unless_another_is_there(folder: AnyPath) -> None:
    write(folder / "file", {"": b"old"})
    move_file(folder / "file", folder / "moved")
    written = tree_size_and_time(folder / "moved")[1]
    assert moved_time(folder / "moved", written) == written
    assert put_back(folder / "moved", folder / "file")
    assert (folder / "file").read_bytes() == b"old"
    write(folder / "other", {"": b"new"})
    assert put_back(folder / "moved", folder / "other")
    assert (folder / "other").read_bytes() == b"new"
    assert not put_back(folder / "absent", folder / "third")


def test_a_pipe_in_a_tree_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IrregularFileError) as refused:
        tree_files(tmp_path)
    assert refused.value.filename == str(tmp_path / "pipe")
