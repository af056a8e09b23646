"""Whatever the bytes are: the rows that were written, or one clear error. And verify distinguishes the two."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from distil_cache.cache.gather import gather
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import FORMATS, Cache, FeatureStore
from distil_cache.errors import IntegrityError
from drawn_rows import any_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

KEYS = sorted(hashlib.sha256(bytes([number])).hexdigest()[:32] for number in range(6))
ROWS = np.random.default_rng(0).normal(size=(6, 2, 3, 4, 4)).astype(np.float16)
quickly = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Toy(Spec):
    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1


class Scene:
    """One shard whose files can be replaced and put back."""

    def __init__(self, root: Path, form: str) -> None:
        self.cache = Cache.create(root)
        store = self.cache.feature(Toy(), form)
        self.folder = store.folder
        self.shard = store.commit(KEYS, ROWS).shard
        self.marker = store.shards / f"{self.shard}.json"
        data = store.shards / store.marker(self.shard).data
        self.files = [data] if data.is_file() else sorted(path for path in data.rglob("*") if path.is_file())
        self.whole = {path: path.read_bytes() for path in [*self.files, self.marker]}

    def put(self, path: Path, data: bytes) -> None:
        self.restore()
        path.write_bytes(data)

    def restore(self) -> None:
        for path, data in self.whole.items():
            path.write_bytes(data)

    def read(self, start: int, stop: int, view: int | None) -> np.ndarray[Any, Any] | None:
        """Rows as a new reader finds them, or None if it refuses them. Any other exception fails the test."""
        try:
            return FeatureStore(self.folder).read(self.shard, start, stop, view)
        except IntegrityError:
            return None


@pytest.fixture(scope="module", params=sorted(FORMATS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("fuzz"), request.param)


@pytest.fixture
def scene(made: Scene) -> Iterator[Scene]:
    yield made
    made.restore()


@st.composite
def mutations(draw: st.DrawFn, whole: bytes) -> bytes:
    """The bytes with up to four pieces overwritten, put in or taken away, more often at the ends; or any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 4))):
        near_end = st.integers(1, 120).map(lambda back: max(0, len(data) - back))
        place = draw(st.one_of(st.integers(0, 700), st.integers(0, len(whole)), near_end))
        new = draw(st.one_of(st.binary(max_size=9), st.sampled_from([b"\x00" * 8, b"\xff" * 8, b"\x00\x00\x00\x80"])))
        data[place : place + draw(st.sampled_from([len(new), len(new), 0, 1]))] = new
    return bytes(data)


spans = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)


@quickly
@given(data=st.data(), span=spans, view=st.sampled_from([None, 0, 1]))
def test_a_reader_of_mutated_data_gives_rows_of_the_markers_kind_or_one_clear_error(
    scene: Scene, data: st.DataObject, span: list[int], view: int | None
) -> None:
    path = data.draw(st.sampled_from(scene.files))
    scene.put(path, data.draw(mutations(scene.whole[path])))
    expected = ROWS[span[0] : span[1]] if view is None else ROWS[span[0] : span[1], view]
    found = scene.read(span[0], span[1], view)
    assert found is None or (found.shape, found.dtype) == (expected.shape, expected.dtype)
    problems = verify(scene.cache)
    assert problems or path.read_bytes() == scene.whole[path]
    if not problems:
        assert found is not None
        assert found.tobytes() == expected.tobytes()


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(-(10**30), 10**30), st.floats(), st.text(max_size=40)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
FIELDS = (
    "version",
    "shard",
    "data",
    "format",
    "keys",
    "rejected",
    "dtype",
    "shape",
    "codec",
    "bytes",
    "offsets",
    "merged",
)


@st.composite
def markers(draw: st.DrawFn, whole: bytes) -> bytes:
    """A marker with mutated bytes, with a field of any value, or with a field that is nearly right."""
    if draw(st.booleans()):
        return draw(mutations(whole))
    fields = json.loads(whole)
    name = draw(st.sampled_from(FIELDS))
    old = fields.get(name)
    nearly: st.SearchStrategy[Any] = st.nothing()
    if isinstance(old, list) and old:
        nearly = st.one_of(st.permutations(old), st.lists(st.sampled_from(old), max_size=9))
        if isinstance(old[0], int):
            nearly |= st.lists(st.integers(-3, 2**70), min_size=len(old), max_size=len(old))
    elif isinstance(old, int):
        nearly = st.integers(-3, 2 * old + 1)
    elif isinstance(old, str):
        nearly = st.sampled_from(["zarr", "webdataset", "uint8", "float16", "float32", old[::-1], old + "/.."])
    fields[name] = draw(st.one_of(json_values, nearly))
    return json.dumps(fields).encode()


@quickly
@given(data=st.data())
def test_a_reader_with_a_mutated_marker_gives_the_rows_or_one_clear_error(scene: Scene, data: st.DataObject) -> None:
    scene.put(scene.marker, data.draw(markers(scene.whole[scene.marker])))
    for read in (lambda store: store.read(scene.shard, 0, 6), lambda store: gather(store, KEYS)):
        try:
            found = read(FeatureStore(scene.folder))
        except IntegrityError:
            continue
        assert found.tobytes() == ROWS.tobytes()
    verify(scene.cache)


@quickly
@given(data=st.data())
def test_a_mutated_spec_is_the_spec_or_one_clear_error(scene: Scene, data: st.DataObject) -> None:
    spec = scene.folder / "spec.json"
    whole = spec.read_bytes()
    try:
        spec.write_bytes(
            data.draw(st.one_of(mutations(whole), json_values.map(lambda value: json.dumps(value).encode())))
        )
        with contextlib.suppress(IntegrityError):
            assert FeatureStore(scene.folder).spec == json.loads(whole)
    finally:
        spec.write_bytes(whole)


@settings(max_examples=25)
@given(rows=any_rows, form=st.sampled_from(sorted(FORMATS)), data=st.data())
def test_any_rows_come_back_to_the_bit_from_either_format(
    rows: np.ndarray[Any, Any], form: str, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(rows)))
    stop = data.draw(st.integers(start, len(rows)))
    view = data.draw(st.one_of(st.none(), st.integers(0, rows.shape[1] - 1))) if rows.ndim > 2 else None
    keys = [f"{number:032x}" for number in range(len(rows))]
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache.create(folder)
        marker = cache.feature(Toy(), form).commit(keys, rows)
        expected = rows[start:stop] if view is None else rows[start:stop, view]
        found = cache.feature(Toy()).read(marker.shard, start, stop, view)
        assert (found.dtype, found.shape, found.tobytes()) == (rows.dtype, expected.shape, expected.tobytes())
        assert (verify(cache), list_garbage(cache)) == ([], [])
