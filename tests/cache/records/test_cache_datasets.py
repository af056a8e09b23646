"""Datasets as revisions, and tables that are not what they should be."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distil_cache.cache.records import datasets
from distil_cache.cache.records.datasets import SCHEMA, DatasetStore, revision_of
from distil_cache.errors import IntegrityError, UserError


def row(number: int, **changes: object) -> dict[str, object]:
    return {
        "key": hashlib.sha256(bytes([number])).hexdigest()[:32],
        "source": "/data/photos v1.0",
        "path": f"train/fake/é {number}.a.png",
        "label": number % 2,
        "split": "train",
        "generator": "adm",
        "family": "diffusion",
        "group": "imagenet",
        "width": 64,
        "height": 48,
        "format": "PNG",
        "bytes": 2**33,
    } | changes


def table(rows: list[dict[str, object]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


ROWS = [row(number) for number in range(4)]


@pytest.fixture
def store(tmp_path: Path) -> DatasetStore:
    return DatasetStore(tmp_path / "datasets")


def test_a_table_and_its_rejects_come_back(store: DatasetStore) -> None:
    rejects = [{"path": "a.jpg", "reason": "truncated"}]
    revision = store.write("photos", table(ROWS), rejects)
    assert store.read("photos").equals(table(ROWS))
    assert store.read("photos", revision).equals(table(ROWS))
    assert list(store.rejects("photos")) == rejects
    assert (store.names(), store.head("photos")) == (["photos"], revision)


@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4])
def test_a_table_has_the_bytes_of_one_write_whatever_its_rows(
    store: DatasetStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(datasets, "GROUP_ROWS", 2)
    revision = store.write("photos", table(ROWS[:rows]))
    assert store.read("photos").equals(table(ROWS[:rows]))
    once = tmp_path / "once.parquet"
    pq.write_table(
        table(ROWS[:rows]),
        once,
        row_group_size=2,
        compression="zstd",
        use_dictionary=datasets.REPEATED,
        write_page_checksum=True,
    )
    assert (store.folder / "photos" / f"{revision}.parquet").read_bytes() == once.read_bytes()


def test_the_revision_is_pinned() -> None:
    assert revision_of(table(ROWS)) == "f6bbc93cf2f656c0"
    assert revision_of(table([])) == hashlib.sha256(b"").hexdigest()[:16]


def test_moving_reordering_and_measuring_change_no_revision() -> None:
    changes = {"source": "/elsewhere", "path": "x", "width": 1, "height": 1, "format": "GIF", "bytes": 0, "family": "f"}
    moved = [row(number, **changes) for number in (2, 0, 3, 1)]
    assert revision_of(table(moved)) == revision_of(table(ROWS))


@pytest.mark.parametrize(
    "change", [{"key": "0" * 32}, {"label": 1}, {"split": "test"}, {"generator": "sd"}, {"group": "celebahq"}]
)
def test_what_a_sample_is_changes_the_revision(change: dict[str, object]) -> None:
    assert revision_of(table([row(0, **change), *ROWS[1:]])) != revision_of(table(ROWS))


def test_a_second_occurrence_changes_the_revision() -> None:
    assert revision_of(table([*ROWS, ROWS[0]])) != revision_of(table(ROWS))


def test_the_head_moves_on_and_back_and_old_revisions_stay(store: DatasetStore) -> None:
    first = store.write("d", table(ROWS))
    second = store.write("d", table(ROWS[:2]))
    assert store.head("d") == second
    assert store.read("d", first).num_rows == 4
    assert store.write("d", table(ROWS)) == first == store.head("d")
    assert store.revisions("d") == sorted([first, second])
    store.write("d", table(ROWS))
    assert len(list((store.folder / "d").glob("HEAD-*.json"))) == 3


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a b", "x" * 101])
def test_a_name_that_is_no_plain_name_is_refused(store: DatasetStore, name: str) -> None:
    with pytest.raises(UserError, match="not a valid dataset name"):
        store.write(name, table(ROWS))


def test_an_unknown_dataset_or_revision_is_named_with_what_there_is(store: DatasetStore) -> None:
    store.write("photos", table(ROWS))
    with pytest.raises(UserError, match=r"no dataset 'foto' \(existing: photos"):
        store.read("foto")
    for revision in ("0" * 16, "../photos"):
        with pytest.raises(UserError, match="no revision"):
            store.read("photos", revision)


@pytest.mark.parametrize("change", [{"key": "xyz"}, {"key": "A" * 32}, {"label": 2}, {"split": None}])
def test_impossible_values_are_not_written(store: DatasetStore, change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"column|split"):
        store.write("d", table([row(0, **change)]))


@pytest.mark.parametrize(
    "make",
    [
        lambda good: good.drop_columns("bytes"),
        lambda good: good.append_column("extra", pa.array([1] * 4)),
        lambda good: good.set_column(3, "label", good["label"].cast(pa.int64())),
        lambda good: good.set_column(0, "key", good["key"].cast(pa.binary())),
        lambda good: good.set_column(0, "key", pa.array([["nested"]] * 4)),
        lambda good: good.set_column(0, "key", pa.array(["../../etc"] * 4)),
        lambda good: good.set_column(3, "label", pa.array([0, 1, 7, 0], pa.int8())),
        lambda good: good.set_column(4, "split", pa.array([None] * 4, pa.string())),
    ],
)
def test_a_table_with_other_columns_types_or_values_is_one_clear_error(store: DatasetStore, make) -> None:  # type: ignore[no-untyped-def]
    revision = store.write("d", table(ROWS))
    path = store.folder / "d" / f"{revision}.parquet"
    path.unlink()
    pq.write_table(make(pa.Table.from_pylist(ROWS, schema=pa.schema([(f.name, f.type) for f in SCHEMA]))), path)
    with pytest.raises(IntegrityError, match=f"{revision}.parquet: cannot be used"):
        store.read("d")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-20], lambda data: b"PAR1" + b"\xff" * 99])
def test_a_damaged_table_is_one_clear_error(store: DatasetStore, damage) -> None:  # type: ignore[no-untyped-def]
    path = store.folder / "d" / f"{store.write('d', table(ROWS))}.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(IntegrityError, match="cannot be used"):
        store.read("d")


@pytest.mark.parametrize("text", ["", "{}", '{"revision": "../../x"}', "[]", '{"revision": 1}'])
def test_a_damaged_head_is_one_clear_error(store: DatasetStore, text: str) -> None:
    store.write("d", table(ROWS))
    (store.folder / "d" / "HEAD-000001.json").write_text(text)
    with pytest.raises(IntegrityError, match="HEAD-000001"):
        store.head("d")


@pytest.mark.parametrize("text", ["{", "[1]\n", "\xff"])
def test_damaged_rejects_are_one_clear_error(store: DatasetStore, text: str) -> None:
    revision = store.write("d", table(ROWS))
    (store.folder / "d" / f"{revision}.rejects.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match="list of rejects"):
        list(store.rejects("d"))


def test_rejects_are_read_and_written_one_at_a_time(store: DatasetStore) -> None:
    drawn = []

    def many() -> Iterator[dict[str, object]]:
        for number in range(3000):
            drawn.append(number)
            yield {"path": "x" * 1000, "number": number}

    tracemalloc.start()
    store.write("d", table(ROWS), many())
    assert [reject["number"] for reject in store.rejects("d")] == drawn == list(range(3000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_500_000  # of 3 MB


def test_damage_behind_sound_rejects_is_found_where_it_is(store: DatasetStore) -> None:
    revision = store.write("d", table(ROWS), [{"path": "a"}])
    with (store.folder / "d" / f"{revision}.rejects.jsonl").open("a") as file:
        file.write("[1]\n")
    rejects = store.rejects("d")
    assert next(rejects) == {"path": "a"}
    with pytest.raises(IntegrityError, match="list of rejects"):
        next(rejects)


def test_a_line_of_rejects_without_an_end_is_not_read_into_memory(
    store: DatasetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "_LONGEST_REJECT", 20)
    revision = store.write("d", table(ROWS), [{"path": "a"}, {"path": "a" * 100}])
    assert (store.folder / "d" / f"{revision}.rejects.jsonl").stat().st_size > 100
    with pytest.raises(IntegrityError, match="a line of more than 20 bytes"):
        list(store.rejects("d"))


def test_the_scan_file_is_no_revision(store: DatasetStore) -> None:
    revision = store.write("d", table(ROWS))
    store.scan_file("d").write_bytes(b"anything")
    assert store.revisions("d") == [revision]
