"""What the rows of a feature are: written once, checked against the rows, and known for caches that do not say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from distil_cache.cache.maintenance.listing import summary
from distil_cache.cache.maintenance.repair import repair
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.records.about import BEFORE, FILE, About, Layout, Provider, can_mirror, read_about
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.errors import IntegrityError
from distil_cache.features.registry import FEATURES
from maintained_cache import Backbone, keys_of
from pydantic import ValidationError


class Bands(Spec):
    feature: Literal["bands"] = "bands"
    algorithm: Literal[1] = 1


KEYS = sorted(keys_of([1, 2]))
VERSION_1 = Provider(distribution="distil-bands", version="1.0")


def about(*shape: int, dtype: Any = "float32", version: str = "1.0", **changes: Any) -> About:
    return About(
        layout=Layout(shape or (4,), dtype, "vector"),
        description="log power in rings",
        provider=Provider(distribution="distil-bands", version=version),
    ).model_copy(update=changes)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache.create(tmp_path / "cache")


@pytest.fixture
def store(cache: Cache) -> FeatureStore:
    return cache.feature(Bands(), about=about())


def test_what_was_written_is_what_every_reader_gets(cache: Cache, store: FeatureStore) -> None:
    again = cache.open_feature(store.folder.name)
    assert again.about == about()
    assert (again.geometry, again.views, again.description) == ("vector", (), "log power in rings")
    assert summary(cache)["features"][0]["provider"] == "distil-bands 1.0"


def test_the_first_writer_wins_and_a_later_version_changes_no_word(cache: Cache, store: FeatureStore) -> None:
    later = cache.feature(Bands(), about=about(version="2.0", description="the same rings"))
    assert later.about is not None
    assert (later.about.provider, later.description) == (VERSION_1, "log power in rings")


def test_a_version_with_other_rows_is_refused_before_it_computes(cache: Cache, store: FeatureStore) -> None:
    with pytest.raises(IntegrityError, match=r"distil-bands 1\.0, and distil-bands 2\.0 makes other rows.*algorithm"):
        cache.feature(Bands(), about=about(8, version="2.0"))


@pytest.mark.parametrize(("shape", "dtype"), [((2, 5), "float32"), ((2, 4), "float16")])
def test_rows_of_another_shape_or_type_are_not_stored(store: FeatureStore, shape: Any, dtype: str) -> None:
    with pytest.raises(IntegrityError, match="would get rows of shape"):
        store.commit(KEYS, np.zeros(shape, dtype))
    store.commit(KEYS, np.zeros((2, 4), np.float32))
    assert len(store.marker_ids()) == 1


def test_rows_that_are_not_what_the_record_says_are_damage(cache: Cache, store: FeatureStore) -> None:
    store.commit(KEYS, np.zeros((2, 4), np.float32))
    assert verify(cache) == []
    (store.folder / FILE).write_bytes(about(5).json_bytes)
    (problem,) = verify(cache)
    assert problem.shard is not None
    assert "rows of shape (4,) and float32, where about.json says (5,)" in problem.what


def test_a_damaged_record_is_one_sentence_and_repair_lets_the_next_build_write_it(
    cache: Cache, store: FeatureStore
) -> None:
    path = store.folder / FILE
    store.commit(KEYS, np.zeros((2, 4), np.float32))
    path.write_text('{"layout": 7}')
    with pytest.raises(IntegrityError, match=r"about\.json: is not a valid description of a feature"):
        _ = FeatureStore(store.folder).geometry
    (problem,) = verify(cache)
    assert problem.path == f"features/{store.folder.name}/{FILE}"
    repair(cache)
    assert not path.exists()
    assert cache.feature(Bands(), about=about()).about == about()
    assert verify(cache) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("layout", "shape"), []),
        (("layout", "shape"), [1] * 9),
        (("layout", "shape"), [0]),
        (("layout", "shape"), [2**60]),
        (("layout", "geometry"), "cube"),
        (("layout", "views"), ["identity", "vflip"]),
        (("layout", "dtype"), "float64"),
        (("layout", "other"), 1),
        (("description",), "two\nlines"),
        (("description",), "a | cell"),
        (("description",), "<script>"),
        (("description",), "\u202eturned"),
        (("description",), "k" * 301),
        (("provider", "distribution"), "../x"),
        (("provider", "version"), "\x1b[31m"),
    ],
)
def test_only_plain_records_are_read(store: FeatureStore, place: tuple[str, ...], value: Any) -> None:
    plain: Any = json.loads(about().json_bytes)
    inner = plain
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (store.folder / FILE).write_text(json.dumps(plain))
    with pytest.raises(IntegrityError) as error:
        read_about(store.folder)
    assert len(str(error.value)) < 500
    assert str(error.value).isprintable()


def test_a_large_file_is_not_read(store: FeatureStore) -> None:
    (store.folder / FILE).write_bytes(b" " * 70_000 + about().json_bytes)
    with pytest.raises(IntegrityError, match=r"about\.json"):
        read_about(store.folder)


def test_a_cache_of_before_works_and_a_build_adds_what_it_lacks(cache: Cache) -> None:
    store = cache.feature(Backbone())
    assert (store.about, store.geometry, store.views) == (None, "map", ("identity", "hflip"))
    assert store.description == BEFORE["teacher"].description
    assert verify(cache) == []
    written = about(2, 8, dtype="float16")
    assert cache.feature(Backbone(), about=written).about == written


def test_a_feature_of_which_nothing_says_what_it_is_names_the_way_out(cache: Cache) -> None:
    store = cache.feature(Bands())
    assert store.description == "bands"
    with pytest.raises(IntegrityError, match="A build that makes this feature writes it again"):
        _ = store.geometry


def test_what_is_known_of_earlier_caches_is_what_the_features_say_of_themselves() -> None:
    assert BEFORE.keys() <= FEATURES.keys()
    for name, known in BEFORE.items():
        assert known.description == FEATURES[name].description


def test_a_row_is_mirrored_with_the_image_or_by_a_view_of_its_own() -> None:
    assert can_mirror("image", ())
    assert can_mirror("pixels", ())
    assert not can_mirror("map", ("identity",))
    assert not can_mirror("vector", ())
    assert can_mirror("vector", ("hflip", "identity"))


def test_a_description_that_could_end_a_table_is_refused_where_it_is_written() -> None:
    with pytest.raises(ValidationError):
        About(layout=Layout((4,), "float32", "vector"), description="a | b", provider=VERSION_1)
