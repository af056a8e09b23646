"""The arithmetic of paths in object stores, beside pathlib's, and which text names which path."""

from __future__ import annotations

import pickle
from pathlib import Path, PurePosixPath

import pytest
from distil_cache.errors import UserError
from distil_cache.storage import RemotePath, to_path
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.text(st.characters(exclude_characters="/", exclude_categories=("Cs", "Cc")), min_size=1, max_size=8).filter(
    lambda name: name != "."
)
TREES = st.lists(NAMES, min_size=1, max_size=5)


@given(TREES)
def test_a_remote_path_has_the_parts_that_pathlib_sees(names: list[str]) -> None:
    remote, path = _joined(names), PurePosixPath("/", *names)
    assert remote.name == path.name
    assert remote.suffix == path.suffix
    assert remote.stem == path.stem
    assert list(remote.parts[1:]) == list(path.parts[1:])
    assert str(remote) == f"s3://bucket{path}"
    assert str(remote.parent) == f"s3://bucket{path.parent}".rstrip("/")
    above = [f"s3://bucket{one}".rstrip("/") for one in path.parents]
    assert [str(one) for one in remote.parents] == above


@given(TREES, TREES)
def test_relative_paths_are_those_of_pathlib(first: list[str], more: list[str]) -> None:
    folder = _joined(first)
    remote = _joined([*first, *more])
    assert remote.relative_to(folder) == PurePosixPath(*more)
    assert remote.is_relative_to(folder)
    assert folder / remote.relative_to(folder) == remote
    assert not folder.is_relative_to(remote)
    with pytest.raises(ValueError, match="is not below"):
        folder.relative_to(remote)


@given(TREES, NAMES)
def test_a_neighbours_name_is_put_as_pathlib_does(names: list[str], other: str) -> None:
    remote = _joined(names)
    assert remote.with_name(other) == remote.parent / other


@given(st.lists(TREES, min_size=2, max_size=6))
def test_remote_paths_sort_as_pathlib_sorts(trees: list[list[str]]) -> None:
    paths = sorted(PurePosixPath("/", *names) for names in trees)
    remotes = sorted(_joined(names) for names in trees)
    assert [str(remote) for remote in remotes] == [f"s3://bucket{path}" for path in paths]


@given(TREES)
def test_equal_urls_are_equal_paths(names: list[str]) -> None:
    remote = _joined(names)
    again = to_path(str(remote))
    assert again == remote
    assert hash(again) == hash(remote)
    assert pickle.loads(pickle.dumps(remote)) == remote
    assert to_path(f"{remote}/") == remote


def test_a_folder_with_a_similar_name_is_no_folder_above() -> None:
    assert not RemotePath("s3://bucket/cache2/x").is_relative_to(RemotePath("s3://bucket/cache"))
    assert not RemotePath("s3://bucket/cache").is_relative_to(Path("/bucket"))


def test_what_opens_local_files_refuses_a_remote_path() -> None:
    remote = RemotePath("s3://bucket/x")
    with pytest.raises(TypeError):
        open(remote)  # type: ignore[call-overload]  # noqa: PTH123, SIM115
    with pytest.raises(TypeError):
        Path(remote)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["cache", "/data/cache", "./a b", "C:/x", "a/b:c", "s3:/bucket/x", ""])
def test_what_is_no_url_is_a_local_path(text: str) -> None:
    assert to_path(text) == Path(text)


def test_a_file_url_is_a_local_path() -> None:
    assert to_path("file:///data/a%20b") == Path("/data/a b")


@pytest.mark.parametrize("text", ["s3://", "s3:///", "memory://"])
def test_a_url_without_a_bucket_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="names no bucket"):
        to_path(text)


def test_an_unknown_kind_of_store_is_refused() -> None:
    with pytest.raises(UserError, match="nosuchstore"):
        RemotePath("nosuchstore://bucket/x").exists()


def _joined(names: list[str]) -> RemotePath:
    remote = RemotePath("s3://bucket")
    for name in names:
        remote = remote / name
    return remote
