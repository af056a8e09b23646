from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest
from distil_cache.errors import TemporaryFolderError
from distil_cache.storage.disk_table import DiskTable

SCHEMA = pa.schema([("key", pa.string()), ("generator", pa.dictionary(pa.int32(), pa.string()))])


def piece(*rows: tuple[str, str]) -> pa.Table:
    keys, generators = zip(*rows, strict=True) if rows else ((), ())
    return pa.table(
        {"key": pa.array(keys, pa.string()), "generator": pa.array(generators, pa.string()).dictionary_encode()}
    )


def test_pieces_with_dictionaries_of_their_own_are_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    table = DiskTable(SCHEMA)
    for part in (piece(("a", "adm"), ("b", "sd")), piece(), piece(("c", "sd"), ("d", "real"))):
        table.append(part)
    found = table.finished()
    assert found.to_pydict() == {"key": ["a", "b", "c", "d"], "generator": ["adm", "sd", "sd", "real"]}
    assert found.schema == SCHEMA
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_rows_has_its_columns() -> None:
    assert DiskTable(SCHEMA).finished().schema == SCHEMA


def test_a_full_temporary_folder_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write_table(self, table: pa.Table) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    table = DiskTable(SCHEMA)
    table._writer = Full()
    with pytest.raises(TemporaryFolderError, match=r"No space left on device.*TMPDIR"):
        table.append(piece(("a", "adm")))
