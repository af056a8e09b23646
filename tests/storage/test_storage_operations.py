"""Operations that read, write and name files do alike on a disk and in a store what callers rely on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from distil_cache.errors import IntegrityError, UserError
from distil_cache.storage import (
    AnyPath,
    RemotePath,
    absent_error,
    absolute,
    access_hint,
    by_requests,
    file_in_place,
    is_inside,
    list_objects,
    located,
    protocol_of,
    to_path,
)
from distil_cache.storage.atomic import read_files, replace_with
from distil_cache.storage.ranges import open_ranges
from distil_cache.storage.regular import (
    AlteredFileError,
    LargeFileError,
    check_version,
    is_altered,
    read_range,
    read_stable,
    regular_status,
)

STORE = RemotePath("s3://bucket/data")


def put(path: AnyPath, data: bytes) -> None:
    """Write a file, replacing any that exists."""
    replace_with(path, lambda file: file.write(data))


def test_small_files_are_read_in_the_order_asked_for_and_what_cannot_be_read_is_none(folder: AnyPath) -> None:
    for name, data in (("a", b"1"), ("b", b"22"), ("large", b"12345"), ("unasked", b"3")):
        put(folder / name, data)
    found = list(read_files(folder, ["b", "absent", "large", "a"], 4))
    assert found == [("b", b"22"), ("absent", None), ("large", None), ("a", b"1")]


def test_a_replaced_file_has_the_new_content_and_nothing_lies_beside_it(folder: AnyPath) -> None:
    put(folder / "a", b"old")
    put(folder / "a", b"new")
    assert (folder / "a").read_bytes() == b"new"
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_whole_file_is_read_with_its_status_by_path_or_by_text(folder: AnyPath) -> None:
    put(folder / "a", b"12345")
    for path in (folder / "a", str(folder / "a")):
        data, status = read_stable(path, 5)
        assert (data, status.st_size) == (b"12345", 5)
        assert status.st_mtime_ns == regular_status(path).st_mtime_ns
        with pytest.raises(LargeFileError, match="it has 5 bytes, and more than 4 are not read"):
            read_stable(path, 4)


def test_an_object_that_is_shorter_than_it_was_listed_is_another_version() -> None:
    pytest.importorskip("fsspec")
    path = to_path(f"memory://operations-{os.getpid()}/altered")
    put(path, b"12345")
    listed = regular_status(path)
    put(path, b"123")
    with pytest.raises(AlteredFileError, match="it changed after it was listed"):
        read_stable(path, 10, listed)


def test_a_range_is_read_of_the_version_that_was_listed(folder: AnyPath) -> None:
    put(folder / "a", b"0123456789")
    listed = regular_status(folder / "a")
    assert read_range(folder / "a", 2, 5, listed) == read_range(str(folder / "a"), 2, 5, listed) == b"234"
    assert not is_altered(folder / "a", listed)
    check_version(folder / "a", listed)
    put(folder / "a", b"another")
    assert is_altered(folder / "a", listed)
    (folder / "a").unlink()
    assert is_altered(str(folder / "a"), listed)


def test_a_file_that_changed_gives_no_range_and_an_object_is_not_asked(tmp_path: Path) -> None:
    put(tmp_path / "a", b"0123456789")
    listed = regular_status(tmp_path / "a")
    put(tmp_path / "a", b"another")
    for check in (lambda: read_range(tmp_path / "a", 0, 1, listed), lambda: check_version(tmp_path / "a", listed)):
        with pytest.raises(AlteredFileError):
            check()
    check_version(RemotePath("nowhere://bucket/a"), listed)


def test_an_error_of_damage_ends_with_the_hint(folder: AnyPath) -> None:
    put(folder / "a", b"123")
    file = open_ranges(folder / "a", 3, "Look at it.")
    assert file.read(1, 2) == b"23"
    with pytest.raises(IntegrityError, match=r"a: cannot be used \(has .* bytes at offset 2\)\. Look at it\.$"):
        file.read(2, 4)
    with pytest.raises(IntegrityError, match=r"\(cannot be opened: No such file or directory\)\.$"):
        open_ranges(folder / "absent")


def test_a_store_lists_objects_with_their_sizes_and_a_disk_does_not(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    folder = to_path(f"memory://operations-{os.getpid()}/listed")
    for name in ("a", "deep/b"):
        put(folder / name, b"12")
    assert [(entry.path, entry.size) for entry in list_objects(folder) or []] == [
        (folder / "a", 2),
        (folder / "deep" / "b", 2),
    ]
    assert [entry.path.name for entry in list_objects(folder, deep=False) or []] == ["a", "deep"]
    assert list_objects(folder / "absent") == []
    assert list_objects(tmp_path) is None


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("x/a.png", Path("data"), ("data", "x/a.png")),
        ("../a.png", Path("data"), ("data", "../a.png")),
        (str(Path("data/x/a.png").absolute()), Path("data"), ("data", "x/a.png")),
        ("/other/a.png", Path("data"), ("/", "other/a.png")),
        (RemotePath("s3://other/x/a.png"), Path("data"), ("s3://other", "x/a.png")),
        ("x/a.png", STORE, ("s3://bucket/data", "x/a.png")),
        ("../x/a.png", STORE, ("s3://bucket", "x/a.png")),
        ("/other/a.png", STORE, ("/", "other/a.png")),
        (RemotePath("s3://bucket/data/x/a.png"), STORE, ("s3://bucket/data", "x/a.png")),
        (RemotePath("s3://other/a.png"), STORE, ("s3://other", "a.png")),
    ],
)
def test_a_written_path_starts_at_its_folder_and_else_at_the_top(
    path: str | AnyPath, folder: AnyPath, expected: tuple[str, str]
) -> None:
    assert located(path, folder) == expected


def test_a_written_path_does_not_lead_out_of_its_bucket() -> None:
    with pytest.raises(UserError, match=r"the path s3://bucket/data/\.\./\.\./a leads out of its bucket"):
        located("../../a", STORE)


def test_the_questions_about_a_path_have_answers_for_both_kinds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert [by_requests(path) for path in (STORE, str(STORE), Path("data"), "data")] == [True, True, False, False]
    assert [protocol_of(path) for path in (STORE, Path("data"))] == ["s3", "file"]
    assert [absolute(path) for path in (STORE, Path("a/../b"))] == [STORE, tmp_path / "b"]
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    assert [file_in_place(path) for path in (STORE, tmp_path, tmp_path / "file")] == [False, False, True]
    assert [is_inside(tmp_path / "link" / "new", path) for path in (STORE, tmp_path, tmp_path / "a")] == [
        False,
        True,
        False,
    ]
    assert access_hint(Path("data")) == ""
    assert "credentials" in access_hint(STORE)
    assert "bucket" in str(absent_error(STORE))
    assert str(absent_error(Path("data"))) == "data: no such file or folder."
