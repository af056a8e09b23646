"""Dataset tables from a stranger: a small file that stands for a huge table is refused before it is decoded."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distil_cache.cache.records.datasets import SCHEMA, DatasetStore
from distil_cache.errors import IntegrityError
from distil_cache.pipeline.scan.memory import _SCHEMA as MEMORY
from distil_cache.pipeline.scan.memory import known_entries
from distil_cache.storage import parquet
from distil_cache.storage.parquet import SMALL_ROWS, read_bounded
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE

ROW = {
    "key": "0" * 32, "source": "s", "path": "p", "label": 0, "split": "train", "generator": "g", "family": "f",
    "group": "i", "width": 1, "height": 1, "format": "PNG", "bytes": 1,
}  # fmt: skip
PLAIN = pa.schema([(field.name, field.type) for field in SCHEMA])


def table(rows: int, **columns: pa.Array) -> pa.Table:
    """Rows that are all alike, with some columns replaced."""
    made = {
        name: columns.get(name, pa.repeat(pa.scalar(value, PLAIN.field(name).type), rows))
        for name, value in ROW.items()
    }
    return pa.table(made)


def long_text(rows: int, length: int) -> pa.DictionaryArray:
    """A column that repeats one long string in every row and stores it once."""
    return pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array(["x" * length]))


def placed(folder: Path, wrong: pa.Table, **options: object) -> DatasetStore:
    """A dataset whose table is replaced by another under its name."""
    store = DatasetStore(folder)
    path = folder / "d" / f"{store.write('d', table(1))}.parquet"
    path.unlink()
    pq.write_table(wrong, path, compression="zstd", store_schema=False, **options)
    return store


def test_a_usual_table_and_one_of_equal_rows_are_read(tmp_path: Path) -> None:
    keys = pa.array([hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(5000)])
    for rows in (table(5000, key=keys), table(100_000), table(0)):
        assert placed(tmp_path / str(rows.num_rows), rows).read("d").equals(rows.cast(SCHEMA))


@pytest.mark.parametrize("coded", [True, False, ["source"], ["key", "path"]])
def test_how_the_columns_are_stored_makes_no_difference(tmp_path: Path, coded: bool | list[str]) -> None:
    keys = pa.array([hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(500)])
    store = placed(tmp_path, table(500, key=keys), use_dictionary=coded, row_group_size=70)
    assert store.read("d").equals(table(500, key=keys).cast(SCHEMA))
    assert store.read("d", columns=["key", "split"]).equals(table(500, key=keys).select(["key", "split"]).cast(
        pa.schema([SCHEMA.field("key"), SCHEMA.field("split")])
    ))  # fmt: skip


@pytest.mark.parametrize("name", ["source", "path", "generator"])
def test_one_long_text_in_many_rows_is_refused(tmp_path: Path, name: str) -> None:
    rows = 200_000
    store = placed(tmp_path, table(rows, **{name: long_text(rows, 100_000)}))
    assert sum(path.stat().st_size for path in (tmp_path / "d").iterdir()) < 200_000
    with pytest.raises(IntegrityError, match="decode to 20,0"):
        store.read("d")


def test_long_texts_that_compress_well_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "SMALL_BYTES", 2**20)
    store = placed(tmp_path, table(300, path=pa.array(["x" * 2**13] * 300)), use_dictionary=False)
    with pytest.raises(IntegrityError, match="decode to 2,4"):
        store.read("d")


def test_more_rows_than_the_file_has_room_for_are_refused(tmp_path: Path) -> None:
    store = placed(tmp_path, table(SMALL_ROWS + 1))
    with pytest.raises(IntegrityError, match="declares 1,048,577 rows in"):
        store.read("d")


def test_wrong_types_are_refused_before_anything_is_decoded(tmp_path: Path) -> None:
    rows = 200_000
    for number, wrong in enumerate([table(rows, key=long_text(rows, 99)), table(rows).drop_columns("key")]):
        store = placed(tmp_path / str(number), wrong.append_column("more", long_text(rows, 100_000)))
        with pytest.raises(IntegrityError, match="columns are not those of a dataset"):
            store.read("d")


def _smallest(kind: pa.DataType) -> str | bool | int:
    if pa.types.is_string(kind):
        return ""
    return True if pa.types.is_boolean(kind) else 1


def test_a_scan_memory_that_stands_for_more_than_its_size_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "scan.parquet"
    values = [b"x" * 2000, *("0" * 32 if field.name == "key" else _smallest(field.type) for field in list(MEMORY)[1:])]
    columns = [pa.repeat(pa.scalar(value, field.type), 1000) for value, field in zip(values, MEMORY, strict=True)]
    pq.write_table(pa.table(columns, schema=MEMORY), memory)
    paths = [b"x" * 2000, b"y"]
    entry, absent = known_entries(memory, 2, lambda: paths)
    assert entry is not None
    assert absent is None
    monkeypatch.setattr(parquet, "SMALL_BYTES", 2**20)
    with pytest.raises(ValueError, match="decode to 2,0"):
        read_bounded(memory)
    assert list(known_entries(memory, 2, lambda: paths)) == [None, None]


def test_refusing_needs_no_memory(tmp_path: Path) -> None:
    rows = 200_000
    placed(tmp_path, table(rows, path=long_text(rows, 100_000)))
    program = """
import resource, sys
from pathlib import Path
from distil_cache.cache.records.datasets import DatasetStore
from distil_cache.errors import IntegrityError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[1]),) * 2)
try:
    DatasetStore(Path(sys.argv[2])).read("d")
except IntegrityError as error:
    print(error)
"""
    command = [sys.executable, "-c", program, str(parquet.SMALL_BYTES), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (result.returncode, result.stderr) == (0, "")
    assert " decode to 20,0" in result.stdout


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = DatasetStore(tmp_path_factory.mktemp("tables"))
    keys = pa.array([hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(40)])
    return store.folder / "d" / f"{store.write('d', table(40, key=keys))}.parquet"


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_a_mutated_table_is_a_table_of_a_dataset_or_one_clear_error(stored: Path, data: st.DataObject) -> None:
    whole = stored.read_bytes()
    mutated = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(whole)))
        new = data.draw(st.binary(max_size=6))
        mutated[place : place + data.draw(st.sampled_from([len(new), len(new), 0, 1]))] = new
    try:
        stored.write_bytes(mutated)
        try:
            found = DatasetStore(stored.parents[1]).read("d")
        except IntegrityError:
            return
        assert found.schema.equals(SCHEMA)
    finally:
        stored.write_bytes(whole)
