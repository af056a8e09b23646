"""The index, from key to shard and row: built from markers, from the compacted file, and from both."""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from distil_cache.cache.gather import gather
from distil_cache.cache.index import file as index_file
from distil_cache.cache.index.index import EMPTY, Index, IndexSegment, ShardRows
from distil_cache.cache.maintenance.repair import repair
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.records.datasets import revision_of
from distil_cache.cache.shards.keys import binary_keys, hex_keys, keys_of_column
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.errors import IntegrityError
from distil_cache.storage.atomic import OversizeError
from hypothesis import given, settings
from hypothesis import strategies as st
from maintained_cache import keys_of

PRINT = "a" * 64
hex_key = st.binary(min_size=16, max_size=16).map(bytes.hex)
near_keys = st.sampled_from([first + 28 * "0" + last for first in ("00", "7f", "ff") for last in ("00", "01", "80")])


class Toy(Spec):
    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1


def keys(count: int, start: int = 0) -> list[str]:
    return sorted(keys_of(range(start, start + count)))


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 3, 2, 2), dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Three shards of four rows, and a compacted index of them."""
    store = Cache.create(tmp_path / "cache").feature(Toy())
    for start in (0, 4, 8):
        store.commit(keys(4, start), images(4) + np.uint8(start))
    assert store.compact_index()
    return FeatureStore(store.folder)


def the_file(store: FeatureStore) -> Path:
    (path,) = store.index_folder.iterdir()
    return path


def rows_found(index: Index, wanted: list[str]) -> list[tuple[str, int] | None]:
    shard, row = index.locate(wanted)
    return [(index.shards[s], int(r)) if s >= 0 else None for s, r in zip(shard, row, strict=True)]


def from_markers(store: FeatureStore) -> Index:
    return Index.of(store.markers())


@given(st.lists(hex_key))
def test_keys_turn_into_bytes_and_back(names: list[str]) -> None:
    binary = binary_keys(names)
    assert hex_keys(binary) == names
    for other in (np.array(names, "S32"), np.array(names, "U32"), np.array(names, object), binary):
        np.testing.assert_array_equal(binary_keys(other), binary)
    column = pa.chunked_array([names, [], names], pa.string()).slice(len(names) // 2)
    assert hex_keys(keys_of_column(column)) == column.to_pylist()


@pytest.mark.parametrize("bad", ["", "a" * 31, "a" * 33, "A" * 32, "g" * 32, " " * 32, "é" * 16, "é" * 32])
def test_what_is_no_key_is_refused(bad: str) -> None:
    good = keys(1)[0]
    arrays = [np.array([bad])] if not bad.isascii() else [np.array([bad]), np.array([bad], "S")]
    for some in ([bad], [good, bad], *arrays):
        with pytest.raises(ValueError, match="key"):
            binary_keys(some)
    for column in ([bad], [good, bad], [good, None]):
        with pytest.raises(ValueError, match="key"):
            keys_of_column(pa.chunked_array([column]))
    with pytest.raises(ValueError, match="key"):
        Index.empty().locate([bad])


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[ShardRows], set[str], int]:
    """Shards with any keys, some of which replace others, which of them are present, and how many are on disk."""
    names = [f"{number:032x}" for number in range(draw(st.integers(0, 6)))]
    rows = [draw(st.lists(st.one_of(hex_key, near_keys), unique=True, max_size=6)) for _ in names]
    shards = []
    for name, held in zip(names, rows, strict=True):
        merged = draw(st.sets(st.sampled_from(names))) - {name} if draw(st.booleans()) else set()
        rejected = dict.fromkeys(draw(st.sets(near_keys)) - set(held), "bad")
        shards.append(ShardRows(name, binary_keys(held), 1, rejected, tuple(sorted(merged))))
    present = draw(st.sets(st.sampled_from(names))) if names else set()
    return draw(st.permutations(shards)), present, draw(st.integers(0, len(shards)))


@settings(max_examples=100)
@given(history=histories())
def test_the_index_answers_as_a_plain_search_through_the_shards(
    history: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shards, present, on_disk = history
    folder = tmp_path_factory.mktemp("index")
    assert index_file.write(folder, IndexSegment.build(shards[:on_disk]), PRINT)
    saved = index_file.read_newest(folder, PRINT)
    shutil.rmtree(folder)
    assert saved is not None
    index = Index(IndexSegment.build(shards[on_disk:]), saved, present)

    replaced = {old for one in shards if one.shard in present for old in one.merged}
    counting = sorted((one for one in shards if one.shard in present - replaced), key=lambda one: one.shard)
    expected: dict[str, tuple[str, int]] = {}
    for one in reversed(counting):
        expected.update({key: (one.shard, row) for row, key in enumerate(hex_keys(one.keys))})
    asked = sorted({key for one in shards for key in (*hex_keys(one.keys), *one.rejected)} | {"ab" * 16}, reverse=True)
    assert index.shards == [one.shard for one in counting]
    assert rows_found(index, asked) == [expected.get(key) for key in asked]
    assert hex_keys(index.keys) == sorted(expected)
    assert index.rejected == {key: "bad" for one in counting for key in one.rejected if key not in expected}
    whole = Index(index.whole(), present=present)
    assert rows_found(whole, asked) == rows_found(index, asked)


def test_with_the_compacted_index_only_new_markers_are_read(store: FeatureStore) -> None:
    old = store.index().shards
    for shard in old:
        (store.shards / f"{shard}.json").write_text("not read")
    new = store.commit(keys(4, 100), images(4)).shard
    opened = FeatureStore(store.folder)
    assert opened.index().shards == sorted([*old, new])
    assert len(opened.index()) == 16
    assert opened.index().stored_bytes([new]) == store.marker(new).bytes


def test_pages_of_the_compacted_index_that_were_given_back_are_read_again(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    forget = IndexSegment.forget_pages
    monkeypatch.setattr(
        IndexSegment, "forget_pages", lambda segment: given_back.append(len(segment.keys)) or forget(segment)
    )
    index = Cache.open(store.folder.parents[1]).open_feature(store.folder.name).index()
    wanted = hex_keys(index.keys)
    first = index.locate(wanted)
    assert not given_back
    monkeypatch.setattr("distil_cache.cache.index.index._MANY", 1)
    for again in (index.locate(wanted), index.locate(wanted)):
        assert [column.tolist() for column in again] == [column.tolist() for column in first]
    assert given_back == [len(index.saved.keys)] * 2


def test_opening_writes_nothing(store: FeatureStore) -> None:
    def tree() -> list[tuple[Path, int]]:
        return sorted((path, path.stat().st_mtime_ns) for path in store.folder.rglob("*"))

    store.commit(keys(4, 100), images(4))
    before = tree()
    assert len(FeatureStore(store.folder).index()) == 16
    assert tree() == before


def test_rows_of_a_marker_that_is_gone_are_gone_and_a_second_copy_of_a_key_is_found(store: FeatureStore) -> None:
    copy = store.commit(keys(5), images(5)).shard
    store.compact_index()
    first = rows_found(store.index(), keys(1))[0]
    assert first is not None
    other = ({copy, store.shard_id(keys(4))} - {first[0]}).pop()
    (store.shards / f"{first[0]}.json").unlink()
    index = FeatureStore(store.folder).index()
    expected = [(other, store.marker(other).keys.index(keys(1)[0]))]
    assert rows_found(index, keys(1)) == expected
    assert first[0] not in index.shards
    assert rows_found(store.index(refresh=True), keys(1)) == expected


def test_a_marker_that_comes_back_changed_is_read_again(store: FeatureStore) -> None:
    shard = store.shard_id(keys(4))
    path = store.shards / f"{shard}.json"
    path.unlink()
    assert rows_found(store.index(refresh=True), keys(4)) == [None] * 4
    store.commit(keys(4), images(3), keys=keys(4)[1:], rejected={keys(4)[0]: "bad"})
    assert rows_found(store.index(refresh=True), keys(4)) == [None, (shard, 0), (shard, 1), (shard, 2)]
    assert store.index().rejected == {keys(4)[0]: "bad"}
    stale = FeatureStore(store.folder)
    with pytest.raises(IntegrityError, match="which is safe"):
        gather(stale, keys(4))
    assert [problem.path for problem in verify(Cache.open(store.folder.parents[1]))] == [
        the_file(store).relative_to(store.folder.parents[1]).as_posix()
    ]


def test_a_merged_shard_hides_those_that_it_replaces_until_it_is_gone(store: FeatureStore) -> None:
    small = store.index().shards
    held = [key for shard in small for key in store.marker(shard).keys]
    big = store.commit(held, np.concatenate([store.read(shard) for shard in small]), merged=small).shard
    for opened in (store, FeatureStore(store.folder)):
        assert rows_found(opened.index(refresh=True), held) == [(big, row) for row in range(12)]
        np.testing.assert_array_equal(gather(opened, held)[:4], store.read(small[0]))
    assert store.compact_index()
    assert rows_found(FeatureStore(store.folder).index(), held) == [(big, row) for row in range(12)]
    (store.shards / f"{big}.json").unlink()
    assert sorted(FeatureStore(store.folder).index().shards) == small


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut in the preamble": lambda data: data[:30],
    "cut in the header": lambda data: data[:200],
    "cut at the end": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "another magic": lambda data: b"x" + data[1:],
    "a huge header": lambda data: data[:8] + b"\xff" * 8 + data[16:],
    "a bit of the header": lambda data: data.replace(b'"rows":[4', b'"rows":[5'),
    "no JSON": lambda data: data.replace(b'{"version"', b'["version"'),
    "a bit of a key": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    "a bit of a place": lambda data: data[:-4] + bytes([data[-4] ^ 1]) + data[-3:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_ignored_reported_by_verify_and_replaced(store: FeatureStore, damage: str) -> None:
    path = the_file(store)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    opened = FeatureStore(store.folder)
    assert opened.index().saved is EMPTY
    assert rows_found(opened.index(), keys(12)) == rows_found(from_markers(store), keys(12))
    (problem,) = verify(Cache.open(store.folder.parents[1]))
    assert "it is ignored" in problem.what
    assert opened.compact_index(if_worth=True)
    assert the_file(store) != path
    assert verify(Cache.open(store.folder.parents[1])) == []


def test_the_file_of_another_feature_is_ignored(store: FeatureStore) -> None:
    assert index_file.read_newest(store.index_folder, PRINT) is None
    assert index_file.read_newest(store.index_folder, store.fingerprint) is not None


def test_a_sound_older_file_serves_where_the_newest_is_damaged(store: FeatureStore) -> None:
    (store.index_folder / "000007.index").write_bytes(b"dcindex1")
    (store.index_folder / "notes.txt").write_text("not ours")
    opened = FeatureStore(store.folder)
    assert len(opened.index().saved.shards) == 3
    assert opened.compact_index(if_worth=True)
    assert sorted(path.name for path in store.index_folder.iterdir()) == ["000008.index", "notes.txt"]


def test_a_deleted_folder_loses_nothing(store: FeatureStore) -> None:
    shutil.rmtree(store.index_folder)
    assert rows_found(FeatureStore(store.folder).index(), keys(12)) == rows_found(from_markers(store), keys(12))


def test_two_that_write_at_once_leave_one_sound_file(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    part = store.index().whole()
    real = index_file.create_file

    def beaten(path: Path, *data: Any) -> bool:
        monkeypatch.setattr(index_file, "create_file", real)
        assert index_file.write(store.index_folder, part, store.fingerprint)
        return real(path, *data)

    monkeypatch.setattr(index_file, "create_file", beaten)
    assert not index_file.write(store.index_folder, part, store.fingerprint)
    assert the_file(store).name == "000002.index"
    assert len(FeatureStore(store.folder).index().saved.shards) == 3


def forged(store: FeatureStore, change: Callable[[dict[str, Any], np.ndarray, np.ndarray], object]) -> None:
    """Change the file's header, keys or row numbers in place, and update its checksum."""
    data = the_file(store).read_bytes()
    length = int.from_bytes(data[8:16], "little")
    header = json.loads(data[48 : 48 + length])
    rows = sum(header["rows"])
    binary = np.frombuffer(data[48 + length : 48 + length + 16 * rows], "S16").copy()
    numbers = np.frombuffer(data[48 + length + 16 * rows :], "<i4").copy()
    change(header, binary, numbers)
    body = json.dumps(header).encode().ljust(length) + binary.tobytes() + numbers.tobytes()
    the_file(store).write_bytes(data[:16] + hashlib.sha256(body).digest() + body)


def swap(numbers: np.ndarray, one: int, other: int) -> None:
    numbers[[one, other]] = numbers[[other, one]]


def rename_a_key(_: dict[str, Any], binary: np.ndarray, __: np.ndarray) -> None:
    raw = bytearray(binary[5:6].tobytes())
    raw[-1] ^= 1
    binary[5:6] = np.frombuffer(bytes(raw), "S16")


LIES = {
    "two rows swapped": lambda header, binary, numbers: swap(numbers, 0, 1),
    "rows of two shards swapped": lambda header, binary, numbers: swap(
        numbers, int(np.argmin(numbers)), int(np.argmax(numbers))
    ),
    "a key that is not there": rename_a_key,
    "another number of rows": lambda header, *_: header["rows"].__setitem__(slice(0, 2), [3, 5]),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_wrong_file_with_a_right_checksum_is_found_on_reading_a_shard_and_by_verify(
    store: FeatureStore, lie: str
) -> None:
    sound = FeatureStore(store.folder)
    sound.index()
    forged(store, LIES[lie])
    opened = FeatureStore(store.folder)
    assert opened.index().saved is not EMPTY
    refused = []
    for key in (key for key in keys(12) if key in opened.index()):
        try:
            row = gather(opened, [key])[0]
        except IntegrityError as error:
            refused.append(str(error))
            continue
        np.testing.assert_array_equal(row, gather(sound, [key])[0])
    assert refused
    assert all("which is safe" in message for message in refused)
    cache = Cache.open(store.folder.parents[1])
    (problem,) = verify(cache)
    assert "differs from" in problem.what
    assert repair(cache)["problems"] == []
    assert len(gather(FeatureStore(store.folder), keys(12))) == 12


IMPOSSIBLE = {
    "keys out of order": lambda header, binary, numbers: swap(binary, 0, 1),
    "a place twice": lambda header, binary, numbers: numbers.__setitem__(0, numbers[1]),
    "a place beyond the rows": lambda header, binary, numbers: numbers.__setitem__(0, 12),
    "a negative place": lambda header, binary, numbers: numbers.__setitem__(0, -1),
    "shards out of order": lambda header, *_: header["shards"].reverse(),
    "negative rows": lambda header, *_: header["rows"].__setitem__(slice(0, 2), [-1, 9]),
    "too few shards": lambda header, *_: header["shards"].pop(),
    "a stranger's merge": lambda header, *_: header["merged"].update({"f" * 32: []}),
}


@pytest.mark.parametrize("lie", IMPOSSIBLE)
def test_a_file_that_cannot_be_an_index_is_ignored(store: FeatureStore, lie: str) -> None:
    forged(store, IMPOSSIBLE[lie])
    assert index_file.read_newest(store.index_folder, store.fingerprint) is None


def test_an_index_that_could_not_be_read_again_is_not_written_and_the_older_one_stays(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, length = the_file(store), int.from_bytes(the_file(store).read_bytes()[8:16], "little")
    for start in (12, 16, 20):
        store.commit(keys(4, start), images(4))
    monkeypatch.setattr(index_file, "_MAX_HEADER", length)
    with pytest.raises(OversizeError, match=r"was not written: it would have .* more slowly, from its markers"):
        store.compact_index()
    assert the_file(store) == older
    assert len(FeatureStore(store.folder).index()) == 24


def test_a_few_new_shards_are_not_worth_a_new_file_and_many_are(store: FeatureStore) -> None:
    for number in range(63):
        store.commit(keys(1, 1000 + number), images(1))
    assert not store.compact_index(if_worth=True)
    store.commit(keys(1, 2000), images(1))
    assert store.compact_index(if_worth=True)
    opened = FeatureStore(store.folder)
    assert opened.index().fresh is EMPTY
    assert not opened.compact_index()
    opened.commit(keys(1, 3000), images(1))
    assert opened.compact_index()


def plain_revision(table: pa.Table) -> str:
    columns = [table.column(name).to_pylist() for name in ("key", "label", "split", "generator", "group")]
    lines = [json.dumps(row, separators=(",", ":")) + "\n" for row in sorted(zip(*columns, strict=True))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


rows = st.tuples(
    near_keys,
    st.integers(0, 1),
    st.sampled_from(["train", "test"]),
    st.text(max_size=3),
    st.sampled_from(["", "é", '"']),
)


@settings(max_examples=50)
@given(st.lists(st.lists(rows, max_size=6), max_size=4))
def test_the_revision_is_the_hash_of_the_sorted_rows_as_json(pieces: list[list[tuple[Any, ...]]]) -> None:
    names = ("key", "label", "split", "generator", "group")
    schema = pa.schema([(name, pa.int8() if name == "label" else pa.string()) for name in names])
    tables = [pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in piece], schema) for piece in pieces]
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    assert revision_of(table) == plain_revision(table)
    everything = list(itertools.chain(*pieces))
    mixed = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in reversed(everything)], schema)
    assert revision_of(mixed) == revision_of(table)
