"""The arithmetic of paths in object stores, beside pathlib's, and what text names which place."""

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
    place, path = _joined(names), PurePosixPath("/", *names)
    assert place.name == path.name
    assert place.suffix == path.suffix
    assert place.stem == path.stem
    assert list(place.parts[1:]) == list(path.parts[1:])
    assert str(place) == f"s3://bucket{path}"
    assert str(place.parent) == f"s3://bucket{path.parent}".rstrip("/")
    above = [f"s3://bucket{one}".rstrip("/") for one in path.parents]
    assert [str(one) for one in place.parents] == above


@given(TREES, TREES)
def test_relative_paths_are_those_of_pathlib(first: list[str], more: list[str]) -> None:
    folder = _joined(first)
    place = _joined([*first, *more])
    assert place.relative_to(folder) == PurePosixPath(*more)
    assert place.is_relative_to(folder)
    assert folder / place.relative_to(folder) == place
    assert not folder.is_relative_to(place)
    with pytest.raises(ValueError, match="does not lie"):
        folder.relative_to(place)


@given(TREES, NAMES)
def test_a_neighbours_name_is_put_as_pathlib_does(names: list[str], other: str) -> None:
    place = _joined(names)
    assert place.with_name(other) == place.parent / other


@given(st.lists(TREES, min_size=2, max_size=6))
def test_remote_paths_sort_as_pathlib_sorts(trees: list[list[str]]) -> None:
    paths = sorted(PurePosixPath("/", *names) for names in trees)
    places = sorted(_joined(names) for names in trees)
    assert [str(place) for place in places] == [f"s3://bucket{path}" for path in paths]


@given(TREES)
def test_equal_urls_are_equal_places(names: list[str]) -> None:
    place = _joined(names)
    again = to_path(str(place))
    assert again == place
    assert hash(again) == hash(place)
    assert pickle.loads(pickle.dumps(place)) == place
    assert to_path(f"{place}/") == place


def test_a_folder_with_a_similar_name_is_no_folder_above() -> None:
    assert not RemotePath("s3://bucket/cache2/x").is_relative_to(RemotePath("s3://bucket/cache"))
    assert not RemotePath("s3://bucket/cache").is_relative_to(Path("/bucket"))


def test_what_opens_local_files_refuses_a_remote_path() -> None:
    place = RemotePath("s3://bucket/x")
    with pytest.raises(TypeError):
        open(place)  # type: ignore[call-overload]  # noqa: PTH123, SIM115
    with pytest.raises(TypeError):
        Path(place)  # type: ignore[arg-type]


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
    place = RemotePath("s3://bucket")
    for name in names:
        place = place / name
    return place
