"""Damage is found by verify, refused by readers as far as they can see it, and never hides the rest."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.records.builds import BuildRecord, BuiltFeature
from distil_cache.cache.records.datasets import SCHEMA
from distil_cache.cache.shards.format import checksum
from distil_cache.cache.shards.marker import Marker
from distil_cache.cache.shards.zarr import ZarrFormat
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.errors import IntegrityError


class Toy(Spec):
    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1


KEYS = [sorted(hashlib.sha256(bytes([n, part])).hexdigest()[:32] for n in range(8)) for part in range(2)]


class Scene:
    """A cache with one float feature and two shards; the first is the one that tests damage."""

    def __init__(self, root: Path) -> None:
        self.cache = Cache.create(root)
        store = self.cache.feature(Toy())
        rows = np.random.default_rng(0).normal(size=(8, 3, 4, 4)).astype(np.float16)
        self.marker, self.whole = (store.commit(keys, rows) for keys in KEYS)
        self.marker_path = store.shards / f"{self.marker.shard}.json"
        self.data = store.shards / self.marker.data
        self.chunk = next(path for path in self.data.glob("c/**/*") if path.is_file())

    def store(self) -> FeatureStore:
        return self.cache.feature(Toy())

    def problem(self) -> str:
        """Return the only problem that verify finds, which must be that of the damaged shard."""
        (problem,) = verify(self.cache)
        assert (problem.feature, problem.shard) == (Toy().folder, self.marker.shard)
        assert len(self.store().read(self.whole.shard)) == 8
        return problem.what

    def rewrite_marker(self, **changes: object) -> None:
        self.marker_path.write_text(json.dumps(json.loads(self.marker.model_dump_json()) | changes))

    def rewrite_metadata(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change ``zarr.json`` and let the marker agree with it, as a hostile cache would."""
        path = self.data / "zarr.json"
        metadata = json.loads(path.read_text())
        change(metadata)
        path.write_text(json.dumps(metadata))
        size, sha256 = checksum(self.data)
        self.rewrite_marker(bytes=size, sha256=sha256)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "cache")


def flip_bit(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_an_undamaged_cache_has_neither_problems_nor_garbage(scene: Scene) -> None:
    assert verify(scene.cache) == []
    assert list_garbage(scene.cache) == []


@pytest.mark.parametrize("place", [0, 40, -30, -1])
def test_a_flipped_bit_is_found(scene: Scene, place: int) -> None:
    flip_bit(scene.chunk, place)
    assert "checksum" in scene.problem()


def test_rows_that_cannot_be_decoded_are_an_integrity_error(scene: Scene) -> None:
    scene.chunk.write_bytes(bytes(scene.chunk.stat().st_size))
    with pytest.raises(IntegrityError, match="distil-cache cache verify"):
        scene.store().read(scene.marker.shard)


@pytest.mark.parametrize("bytes_left", [0, 10, -1])
def test_a_truncated_shard_is_found_and_refused(scene: Scene, bytes_left: int) -> None:
    scene.chunk.write_bytes(scene.chunk.read_bytes()[:bytes_left])
    assert "its marker says" in scene.problem()
    with pytest.raises(IntegrityError, match=f"toy, shard {scene.marker.shard}.*cache verify {scene.cache.root}"):
        scene.store().read(scene.marker.shard)


@pytest.mark.parametrize("what", ["data", "chunk", "metadata"])
def test_removed_data_is_found_and_refused_and_never_read_as_zeros(scene: Scene, what: str) -> None:
    if what == "data":
        shutil.rmtree(scene.data)
    else:
        (scene.chunk if what == "chunk" else scene.data / "zarr.json").unlink()
    assert ("missing" if what == "data" else "its marker says") in scene.problem()
    with pytest.raises(IntegrityError, match=f"toy, shard {scene.marker.shard}"):
        scene.store().read(scene.marker.shard)


def test_data_removed_while_a_reader_has_it_open_are_read_to_the_end(scene: Scene) -> None:
    store = scene.store()
    rows = store.read(scene.marker.shard)
    scene.chunk.unlink()
    np.testing.assert_array_equal(store.read(scene.marker.shard), rows)
    with pytest.raises(IntegrityError, match=f"toy, shard {scene.marker.shard}"):
        scene.store().read(scene.marker.shard, 0, 1)


def test_a_data_file_swapped_for_padding_elsewhere_is_refused(scene: Scene) -> None:
    size = scene.chunk.stat().st_size
    scene.chunk.unlink()
    (scene.data / "c" / "padding").write_bytes(bytes(size - 1))
    (scene.data / "x").write_bytes(b"1")
    assert "not those of a shard" in scene.problem()


def test_a_link_among_the_data_is_refused(scene: Scene, tmp_path: Path) -> None:
    scene.chunk.rename(tmp_path / "outside")
    scene.chunk.symlink_to(tmp_path / "outside")
    assert "neither a file nor a folder" in scene.problem()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"version": 1}', "\x00" * 50, "[" * 100_000])
def test_a_marker_that_is_no_marker_is_found_and_refused(scene: Scene, text: str) -> None:
    scene.marker_path.write_text(text)
    assert "not a valid marker" in scene.problem()
    with pytest.raises(IntegrityError, match="not a valid marker"):
        scene.store().index()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 2}, "version"),
        ({"data": "../../../etc/passwd"}, "data"),
        ({"data": f"{'0' * 32}-{'0' * 16}.zarr"}, "another shard"),
        ({"keys": ["../x"] * 8}, "keys"),
        ({"keys": [KEYS[0][0]] * 8}, "twice"),
        ({"rejected": {KEYS[0][0]: "why"}}, "both stored and rejected"),
        ({"dtype": "object"}, "dtype"),
        ({"shape": [3, 4, -4]}, "shape"),
        ({"shape": [2**30, 2**30]}, "are more than"),
        ({"shape": [2**70]}, "shape"),
        ({"shape": "344"}, "shape"),
        ({"bytes": -1}, "bytes"),
        ({"bytes": "10"}, "bytes"),
        ({"sha256": "x"}, "sha256"),
        ({"command": "rm"}, "command"),
        ({"shard": "0" * 32, "data": f"{'0' * 32}-{'0' * 16}.zarr"}, "marker of another shard"),
        ({"format": "pickle"}, "unknown format"),
        ({"shape": [3, 4, 5]}, "shape or dtype"),
        ({"dtype": "uint8"}, "shape or dtype"),
        ({"keys": KEYS[0][:7]}, "not those of this shard"),
        ({"keys": KEYS[0][::-1]}, "not those of this shard"),
    ],
)
def test_a_crafted_marker_is_found_before_anything_is_read(scene: Scene, changes: dict[str, object], says: str) -> None:
    scene.rewrite_marker(**changes)
    problems = [problem.what for problem in verify(scene.cache)]
    assert says in " ".join(problems)
    assert len(scene.store().read(scene.whole.shard)) == 8


def test_a_marker_is_strict_about_its_own_name(scene: Scene) -> None:
    scene.marker_path.rename(scene.marker_path.with_name("f" * 32 + ".json"))
    assert "marker of another shard" in verify(scene.cache)[0].what


@pytest.mark.parametrize(
    "change",
    [
        lambda meta: meta.update(shape=[10**9, 3, 4, 4]),
        lambda meta: meta.update(data_type="string"),
        lambda meta: meta.update(zarr_format=2),
        lambda meta: meta.update(node_type="group"),
        lambda meta: meta.update(codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
        lambda meta: meta.update(storage_transformers=[{"name": "x"}]),
        lambda meta: meta["codecs"][0]["configuration"]["codecs"][1].update(name="gzip"),
        lambda meta: meta["codecs"][0]["configuration"].update(chunk_shape=[10**9, 3, 4, 4]),
        lambda meta: meta["codecs"][0]["configuration"].update(chunk_shape=[0, 3, 4, 4]),
        lambda meta: meta["codecs"][0]["configuration"].update(chunk_shape=["8", 3, 4, 4]),
        lambda meta: meta["chunk_grid"]["configuration"].update(chunk_shape=[2**40, 3, 4, 4]),
        lambda meta: meta.pop("codecs"),
        lambda meta: meta.update(chunk_key_encoding={"name": "evil"}),
        lambda meta: meta.update(chunk_key_encoding={"name": "v2"}),
        lambda meta: meta["chunk_key_encoding"]["configuration"].update(separator="."),
        lambda meta: meta.update(fill_value={"a": 1}),
    ],
)
def test_crafted_zarr_metadata_is_refused(scene: Scene, change: Callable[[dict[str, Any]], None]) -> None:
    scene.rewrite_metadata(change)
    assert "zarr" in scene.problem()
    with pytest.raises(IntegrityError, match="distil-cache cache verify"):
        scene.store().read(scene.marker.shard)


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_nan_and_inf_in_a_shard_are_found(scene: Scene, value: float, tmp_path: Path) -> None:
    store = scene.store()
    rows = store.read(scene.marker.shard).copy()
    rows[2, 0, 0, 0] = value
    shutil.rmtree(scene.data)
    ZarrFormat().write(scene.data, rows, scene.marker.keys, "toy", rows.shape[1:])
    size, sha256 = checksum(scene.data)
    scene.rewrite_marker(bytes=size, sha256=sha256)
    assert "1 of 8 rows hold NaN or Inf" in scene.problem()


def test_every_problem_is_reported_and_not_only_the_first(scene: Scene) -> None:
    flip_bit(scene.chunk, 3)
    shutil.rmtree(scene.store().shards / scene.whole.data)
    assert {problem.shard for problem in verify(scene.cache)} == {scene.marker.shard, scene.whole.shard}


def test_a_damaged_spec_is_one_problem_of_its_feature(scene: Scene) -> None:
    (scene.store().folder / "spec.json").write_text("{}")
    (problem,) = verify(scene.cache)
    assert (problem.feature, problem.shard) == (Toy().folder, None)


def test_data_without_a_marker_and_temporary_files_are_garbage_and_no_problem(scene: Scene) -> None:
    scene.marker_path.unlink()
    left = scene.cache.root / "builds" / ".tmp-x-0123456789abcdef"
    left.parent.mkdir()
    left.touch()
    assert verify(scene.cache) == []
    assert list_garbage(scene.cache) == sorted([left, scene.data])


def test_the_data_of_a_damaged_marker_is_no_garbage(scene: Scene) -> None:
    scene.marker_path.write_text("{")
    assert list_garbage(scene.cache) == []


def test_a_build_whose_shard_or_revision_is_gone_is_a_problem(scene: Scene) -> None:
    filled = dict.fromkeys(SCHEMA.names, "x") | {"key": KEYS[0][0], "label": 0, "width": 1, "height": 1, "bytes": 1}
    revision = scene.cache.datasets().write("d", pa.Table.from_pylist([filled], schema=SCHEMA))
    store = scene.store()
    feature = BuiltFeature(
        fingerprint=store.fingerprint, folder=store.folder.name, shards=(scene.marker.shard,), splits=("x",)
    )
    record = BuildRecord.new("d", revision, {"toy": feature}, {})
    scene.cache.builds().write(record)
    scene.cache.builds().add_ref("run", record.id, "/runs/run")
    assert verify(scene.cache) == []

    scene.marker_path.unlink()
    assert "1 of 1 shards of toy are missing" in scene.problem()
    (scene.cache.root / "datasets" / "d" / f"{revision}.parquet").unlink()
    (scene.cache.root / "builds" / f"{record.id}.json").rename(scene.cache.root / "builds" / "kept")
    assert {problem.feature for problem in verify(scene.cache)} == {"datasets/d", "refs"}


def test_a_table_that_is_not_its_revision_is_a_problem(scene: Scene) -> None:
    filled = dict.fromkeys(SCHEMA.names, "x") | {"key": KEYS[0][0], "label": 0, "width": 1, "height": 1, "bytes": 1}
    datasets = scene.cache.datasets()
    one = datasets.write("d", pa.Table.from_pylist([filled], schema=SCHEMA))
    two = datasets.write("d", pa.Table.from_pylist([filled | {"label": 1}], schema=SCHEMA))
    shutil.copy(datasets.folder / "d" / f"{one}.parquet", datasets.folder / "d" / f"{two}.parquet")
    (problem,) = verify(scene.cache)
    assert f"{two}.parquet" in problem.what


def test_a_marker_comes_back_from_its_own_json(scene: Scene) -> None:
    assert Marker.model_validate_json(scene.marker_path.read_bytes()) == scene.marker
