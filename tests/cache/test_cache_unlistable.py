"""A folder or a file that cannot be read for a moment is neither empty nor damaged: nothing is removed or repaired by it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.repair import repair
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.records import datasets
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.store import Cache
from distil_cache.errors import UnreachableError
from distil_cache.storage import list_folders, list_names, path_exists
from maintained_cache import NAME, SPECS, build, keys_of

ERRORS = [errno.EACCES, errno.EIO, errno.EMFILE, errno.ESTALE]
FOLDERS = [
    "builds",
    "refs",
    "datasets",
    f"datasets/{NAME}",
    "features",
    "builders",
    f"features/{SPECS['eps'].folder}/shards",
]


def numbered(code: int) -> str:
    return errno.errorcode[code]


def train(*numbers: int) -> dict[str, str]:
    return dict.fromkeys(keys_of(numbers), "train")


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildRecord, BuildRecord]:
    """Two revisions, the older used by a run, and a second data set; gc has something to do in every folder."""
    root = tmp_path_factory.mktemp("grown") / "cache"
    older, _ = build(root, train(0, 1, 2, 3))
    Cache.open(root).builds().add_ref("run", older.id, "/runs/run")
    newer, _ = build(root, train(4, 5, 6, 7))
    build(root, train(8, 9), name="other")
    return root, older, newer


@pytest.fixture
def cache(grown: tuple[Path, BuildRecord, BuildRecord], tmp_path: Path) -> Cache:
    return Cache.open(shutil.copytree(grown[0], tmp_path / "cache"))


@contextmanager
def failing(path: Path, code: int) -> Iterator[None]:
    """Make every listing of a folder, or every open of a file, fail as the operating system would."""

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any = ".", *arguments: Any, **options: Any) -> Any:
            if isinstance(target, (str, os.PathLike)) and Path(target) == path:
                raise OSError(code, os.strerror(code), str(path))
            return real(target, *arguments, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("listdir", "scandir", "open"):
            patch.setattr(os, name, wrapped(getattr(os, name)))
        yield


def held(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.parent.name != "builders"
    }


@pytest.mark.parametrize("code", ERRORS, ids=numbered)
@pytest.mark.parametrize("folder", FOLDERS)
def test_gc_removes_nothing_and_says_why_if_a_folder_cannot_be_listed(cache: Cache, folder: str, code: int) -> None:
    before = held(cache.root)
    with failing(cache.root / folder, code), pytest.raises(UnreachableError, match=os.strerror(code)) as told:
        collect(cache, delete_them=True, grace_hours=0)
    assert str(cache.root / folder) in str(told.value)
    assert held(cache.root) == before


@pytest.mark.parametrize("code", ERRORS, ids=numbered)
def test_gc_removes_nothing_if_a_record_a_head_or_a_reference_cannot_be_read(cache: Cache, code: int) -> None:
    before = held(cache.root)
    paths = [path for name in ("builds/*.json", "refs/*.json", "datasets/*/HEAD*") for path in cache.root.glob(name)]
    assert len(paths) == 3 + 1 + 3
    for path in paths:
        with failing(path, code), pytest.raises(UnreachableError, match=os.strerror(code)):
            collect(cache, delete_them=True, grace_hours=0)
    assert held(cache.root) == before


@pytest.mark.parametrize("code", ERRORS, ids=numbered)
@pytest.mark.parametrize("what", ["builds/*.json", "refs/*.json", "datasets/*/HEAD*", "features/*/shards/*.json"])
def test_what_cannot_be_read_is_a_problem_of_its_own_kind_and_repair_leaves_it_alone(
    cache: Cache, what: str, code: int
) -> None:
    before = held(cache.root)
    path = min(cache.root.glob(what))
    with failing(path, code):
        assert [problem.kind for problem in verify(cache)] == ["unreadable"]
        result = repair(cache)
    assert (result["repaired"], len(result["left"])) == ([], 1)
    assert str(path) in result["left"][0]
    assert held(cache.root) == before


@pytest.mark.parametrize("code", ERRORS, ids=numbered)
def test_a_table_that_cannot_be_opened_is_not_damaged(cache: Cache, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def unopened(place: Path) -> None:  # pyarrow opens files without Python's functions
        raise OSError(code, os.strerror(code), str(place))

    monkeypatch.setattr(datasets, "fetch_source", unopened)
    assert {problem.kind for problem in verify(cache)} == {"unreadable"}
    with pytest.raises(UnreachableError, match=r"parquet: cannot be used"):
        cache.datasets().read(NAME)


@pytest.mark.parametrize("code", ERRORS, ids=numbered)
@pytest.mark.parametrize("form", ["zarr", "webdataset"])
def test_repair_leaves_a_shard_alone_whose_data_cannot_be_read(tmp_path: Path, form: str, code: int) -> None:
    build(tmp_path / "cache", train(0, 1, 2), form=form)
    cache = Cache.open(tmp_path / "cache")
    before = held(cache.root)
    store = cache.feature(SPECS["eps"])
    data = store.shards / store.markers()[0].data
    with failing(data if data.is_file() else data / "c" / "0" / "0" / "0" / "0", code):
        found = [(problem.kind, problem.shard) for problem in verify(cache)]
        assert found == [("unreadable", store.marker_ids()[0])]
        assert repair(cache)["repaired"] == []
    assert held(cache.root) == before


def test_compact_ends_with_a_sentence_and_changes_nothing_if_a_shards_folder_cannot_be_listed(cache: Cache) -> None:
    before = held(cache.root)
    with failing(cache.feature(SPECS["image"]).shards, errno.EIO), pytest.raises(UnreachableError):
        compact(cache)
    assert held(cache.root) == before


def test_a_link_to_nothing_is_no_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "builds").symlink_to(tmp_path / "away")
    with pytest.raises(UnreachableError, match="link to something that does not exist"):
        list_names(tmp_path / "builds")
    with pytest.raises(UnreachableError, match="link to something that does not exist"):
        list_folders(tmp_path)
    assert path_exists(tmp_path / "builds")
    assert list_names(tmp_path / "absent") == []


def test_a_folder_that_is_made_while_it_is_looked_for_is_no_link_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir, is_folder = os.listdir, Path.stat

    def listed_too_early(path: Path) -> list[str]:
        try:
            return listdir(path)
        except FileNotFoundError:
            Path(path).mkdir()
            raise

    def seen_too_early(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if follow_symlinks and path.name == "later":
            raise FileNotFoundError(errno.ENOENT, "not yet", str(path))
        return is_folder(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "listdir", listed_too_early)
    assert list_names(tmp_path / "new") == []
    (tmp_path / "later").mkdir()
    monkeypatch.setattr(Path, "stat", seen_too_early)
    assert [path.name for path in list_folders(tmp_path)] == ["new"]


def test_a_cache_whose_records_are_on_a_disk_that_is_away_loses_nothing(cache: Cache, tmp_path: Path) -> None:
    before = held(cache.root)
    (cache.root / "builds").rename(tmp_path / "elsewhere")
    (cache.root / "builds").symlink_to(tmp_path / "away")
    with pytest.raises(UnreachableError, match="builds"):
        collect(cache, delete_them=True, grace_hours=0)
    (cache.root / "builds").unlink()
    (tmp_path / "elsewhere").rename(cache.root / "builds")
    assert held(cache.root) == before
