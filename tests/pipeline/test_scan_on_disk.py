"""Files, rows and entries that are kept on disk must be those of plain lists and dictionaries, whatever the sizes of runs and blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distil_cache.cache.records import datasets
from distil_cache.cache.records.datasets import REPEATED, SCHEMA, DatasetStore, revision_of
from distil_cache.pipeline.audit.checks import choose_evenly, choose_evenly_of_table
from distil_cache.pipeline.planning.plan import Samples
from distil_cache.pipeline.scan.conflicts import Reject, resolve_conflicts
from distil_cache.pipeline.scan.memory import (
    EntryTable,
    ScanEntry,
    drop_scan_entries,
    known_entries,
    save_scan_memory,
)
from distil_cache.pipeline.scan.rows import FilesByKey, RowTable, ScannedRow, to_table
from distil_cache.pipeline.sources.file import ListedObject, ParquetMember, SourceFile, TarMember, ZipMember
from distil_cache.pipeline.sources.file_table import FileTable
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import tiny_runs

KEYS = [f"{number:02x}" * 16 for number in (0, 1, 2, 255)] + ["ab" + "00" * 15]
PRECEDENCE = ("test", "val", "train")


@pytest.fixture(autouse=True, scope="module")
def tiny() -> Iterator[None]:
    with tiny_runs():
        yield


members = st.one_of(
    st.none(),
    st.builds(TarMember, st.just("a.tar"), st.just(9), st.integers(-5, 5), st.integers(0, 9), st.integers(0, 9)),
    st.builds(ZipMember, st.sampled_from(["a.zip", "\udce9.zip"]), *[st.integers(0, 9)] * 8),
    st.builds(
        ParquetMember,
        st.just("t.parquet"),
        st.just(9),
        st.just(8),
        st.just("image.bytes"),
        st.just(1),
        st.integers(0, 9),
    ),
)
files = st.builds(
    SourceFile,
    st.sampled_from(["/data", "s3://bucket/data"]),
    st.one_of(st.text("a/é", max_size=6), st.sampled_from(["caf\udce9.png", "\ud800", "nul\0.png", "a/b.png"])),
    st.integers(0, 1),
    st.sampled_from(["train", "val", "test"]),
    st.sampled_from(["real", "adm", "sd"]),
    st.just("diffusion"),
    st.sampled_from(["", "faces"]),
    members,
    st.one_of(st.none(), st.builds(ListedObject, st.integers(0, 2**40), st.integers(-9, 2**62))),
)
rows = st.builds(
    ScannedRow,
    files.filter(lambda file: "\ud800" not in file.path and "\udce9" not in file.path),
    st.sampled_from(KEYS),
    st.integers(1, 99),
    st.integers(1, 99),
    st.sampled_from(["png", "jpeg"]),
    st.integers(0, 2**40),
    st.booleans(),
    st.integers(0, 999),
    st.sampled_from(["[1]", "[2]"]),
)
entries = st.builds(
    ScanEntry,
    st.integers(0, 2**40),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from(KEYS),
    st.integers(0, 99),
    st.integers(0, 99),
    st.sampled_from(["png", ""]),
    st.sampled_from(["", "damaged"]),
    st.text("ab", max_size=2),
    st.booleans(),
    st.integers(0, 999),
    st.sampled_from(["", '["RGB","","IHDR","plain",null,null,null]']),
)


@given(found=st.lists(files, max_size=12), seed=st.integers(0, 99))
def test_a_table_of_files_is_the_list_of_files(found: list[SourceFile], seed: int) -> None:
    table = FileTable(found)
    assert list(table) == found
    assert table == found
    assert [table[number] for number in range(-len(found), len(found))] == found * 2
    numbers = np.random.default_rng(seed).permutation(len(found))
    assert table.at(numbers) == [found[number] for number in numbers]
    kinds = Counter((file.root, file.label, file.split, file.generator, file.family, file.group) for file in found)
    assert {tuple(kind): count for kind, count in table.counts().items()} == kinds


def test_files_are_found_in_any_order_beside_one_without_text() -> None:
    found = [SourceFile("/data", path, 0, "train", "real", "", "") for path in ("", "a", "")]
    assert FileTable(found).at(np.array([2, 1, 0])) == found[::-1]


@given(found=st.lists(files, max_size=12))
def test_the_keys_of_files_are_their_paths_and_places(found: list[SourceFile]) -> None:
    table = FileTable(found)
    prefixes = {"/data": b"/data/", "s3://bucket/data": b"s3://bucket/data/"}
    plain = [
        prefixes[file.root] + file.path.encode(errors="surrogatepass") + (file.member.stamp if file.member else b"")
        for file in found
    ]
    assert list(table.keys([prefixes[kind.root] for kind in table.kinds])) == plain


def plain_conflicts(found: list[ScannedRow]) -> tuple[list[ScannedRow], list[Reject], list[Reject]]:
    labels: dict[str, set[int]] = {}
    splits: dict[str, set[str]] = {}
    for row in found:
        labels.setdefault(row.key, set()).add(row.file.label)
        splits.setdefault(row.key, set()).add(row.file.split)
    kept, rejects, leaks = [], [], []
    for row in found:
        keeper = min(splits[row.key], key=PRECEDENCE.index)
        if len(labels[row.key]) > 1:
            rejects.append(Reject.of(row.file, "label-conflict", f"the same bytes are real and fake (key {row.key})"))
        elif row.file.split != keeper:
            leaks.append(Reject.of(row.file, "leaked", f"the same bytes are in {keeper} (key {row.key})"))
        else:
            kept.append(row)
    return kept, rejects, leaks


@given(found=st.lists(rows, max_size=14))
def test_conflicts_and_leaks_are_those_of_the_plain_procedure_in_the_order_of_the_files(
    found: list[ScannedRow],
) -> None:
    result = resolve_conflicts(found)
    kept, rejects, leaks = plain_conflicts(found)
    assert result.rows == kept
    assert (result.rejects, result.label_conflicts, result.leaks) == (rejects, len(rejects), leaks)
    assert [reject.file for reject in result.rejects + result.leaks] == [reject.file for reject in rejects + leaks]


@given(found=st.lists(rows, max_size=14), without=st.frozensets(st.sampled_from(KEYS), max_size=2))
def test_the_first_file_and_the_split_of_each_key_are_found(found: list[ScannedRow], without: frozenset[str]) -> None:
    by_key = FilesByKey(RowTable.of(found))
    assert dict(by_key) == {row.key: row.file for row in reversed(found)}
    assert all(key not in by_key for key in {*KEYS, "f" * 32} - {row.key for row in found})
    samples = Samples.of_rows(found, without)
    first = {row.key: row.file.split for row in reversed(found) if row.key not in without}
    assert samples.counts() == {split: [*first.values()].count(split) for split in samples.splits}
    for split in samples.splits:
        keys = [key.ljust(16, b"\0").hex() for block in samples.keys_within({split}) for key in block.tolist()]
        assert keys == sorted(key for key in first if first[key] == split)


@given(found=st.lists(rows, max_size=20), most=st.integers(1, 6))
def test_the_sample_of_an_audit_is_that_of_all_rows_in_memory(found: list[ScannedRow], most: int) -> None:
    chosen = choose_evenly([row.file for row in found], [row.key for row in found], most)
    assert choose_evenly_of_table(RowTable.of(found), most) == [found[number] for number in chosen]
    first = RowTable.of(found).first_of_keys(sorted({row.key for row in found}))
    assert first == {row.key: number for number, row in reversed(list(enumerate(found)))}


@given(found=st.lists(rows, max_size=14))
def test_the_revision_of_rows_in_pieces_is_that_of_the_whole_table(found: list[ScannedRow]) -> None:
    whole = to_table(found)
    plain = pa.table(
        {
            "key": [row.key for row in found],
            "source": [row.file.root for row in found],
            "path": [row.file.path for row in found],
            **{
                name: [getattr(row.file, name) for row in found]
                for name in ("label", "split", "generator", "family", "group")
            },
            **{name: [getattr(row, name) for row in found] for name in ("width", "height", "format", "bytes")},
        },
        schema=SCHEMA,
    )
    assert whole == plain
    pieces = [plain.slice(start, 3) for start in range(0, len(found), 3)]
    assert revision_of(pieces) == revision_of(plain)


@given(
    held=st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c", b"\xff", b"d"]), entries), max_size=9),
    wanted=st.lists(st.sampled_from([b"a", b"b", b"c", b"\xff", b"x"]), max_size=9),
)
def test_each_file_gets_the_last_entry_of_its_path(
    tmp_path_factory: pytest.TempPathFactory, held: list[tuple[bytes, ScanEntry]], wanted: list[bytes]
) -> None:
    memory = tmp_path_factory.getbasetemp() / "scan.parquet"
    table = EntryTable()
    table.append([entry for _, entry in held])
    save_scan_memory(memory, (path for path, _ in held), table)
    known = dict(held)
    assert list(known_entries(memory, len(wanted), lambda: wanted)) == [known.get(path) for path in wanted]
    same_order = [path for path, _ in held]
    if len(known) == len(held):
        assert list(known_entries(memory, len(held), lambda: same_order)) == [entry for _, entry in held]
    drop_scan_entries(memory, {b"a", b"nothing"})
    known.pop(b"a", None)
    assert list(known_entries(memory, len(wanted), lambda: wanted)) == [known.get(path) for path in wanted]


class OnlyLookedUp(list[object]):
    """A list that may be long, so it must not be gone through for every piece."""

    def __iter__(self) -> Iterator[object]:
        raise AssertionError("every look was visited")


def test_a_piece_of_a_scan_memory_needs_the_looks_of_its_entries_alone() -> None:
    table = EntryTable()
    found = [ScanEntry(1, 2, KEYS[1], 3, 4, "png", "damaged", f"at byte {number % 5}") for number in range(9)]
    table.append(found)
    table._looks = OnlyLookedUp(table._looks)
    piece = table.table([b"a", b"b"], 6)
    assert piece["detail"].to_pylist() == [found[6].detail, found[7].detail]
    assert table[6:8] == found[6:8]


def test_entries_with_numbers_that_the_scan_memory_cannot_hold_are_left_out(tmp_path: Path) -> None:
    good = ScanEntry(1, 2, KEYS[1])
    table = EntryTable()
    table.append([good._replace(mtime_ns=2**63), good, None, good._replace(width=2**31)])
    save_scan_memory(tmp_path / "scan.parquet", [b"a", b"b", b"c", b"d"], table)
    paths = [b"d", b"c", b"b", b"a"]
    assert list(known_entries(tmp_path / "scan.parquet", 4, lambda: paths)) == [None, None, good, None]


def test_a_table_that_is_written_in_pieces_has_the_bytes_of_one_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "GROUP_ROWS", 4)
    names = [f"{number}.png" for number in range(11)]
    found = [
        ScannedRow(
            SourceFile("/data", name, number % 2, "train", "adm", "f", ""), f"{number:032x}", 8, 8, "png", number
        )
        for number, name in enumerate(names)
    ]
    store = DatasetStore(tmp_path)
    revision = store.add("d", lambda: (to_table(found).slice(start, 3) for start in range(0, 11, 3)))
    pq.write_table(
        to_table(found).combine_chunks(), tmp_path / "plain", compression="zstd", use_dictionary=REPEATED,
        write_page_checksum=True, row_group_size=4,
    )  # fmt: skip
    assert (tmp_path / "d" / f"{revision}.parquet").read_bytes() == (tmp_path / "plain").read_bytes()
    pieces = list(store.pieces("d", revision))
    assert pa.concat_tables(pieces) == to_table(found)
