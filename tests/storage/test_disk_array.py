from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from distil_cache.errors import TemporaryFolderError
from distil_cache.storage import disk_array
from distil_cache.storage.disk_array import DiskArray, group_starts, sort_records, whole_groups
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

RECORD = np.dtype([("key", "S2"), ("row", ">u4")])


@pytest.fixture(params=[(1, 1, 1), (16, 24, 12), (2**20, 2**26, 2**22)], ids=["tiny", "small", "usual"])
def sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in zip(("SPOOL_BYTES", "RUN_BYTES", "BLOCK_BYTES"), request.param, strict=True):
        monkeypatch.setattr(disk_array, name, value)


def records(keys: list[int], seed: int = 0) -> np.ndarray:
    found = np.empty(len(keys), RECORD)
    found["key"] = [bytes(divmod(key, 4)) for key in keys]  # many end in zero bytes, which numpy drops from one element
    found["row"] = np.random.default_rng(seed).permutation(len(keys))
    return found


def plain(found: np.ndarray) -> list[bytes]:
    size = found.dtype.itemsize
    data = np.ascontiguousarray(found).tobytes()
    return [data[start : start + size] for start in range(0, len(data), size)]


def whole(array: DiskArray) -> np.ndarray:
    return array.read(0, len(array))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keys=st.lists(st.integers(0, 15), max_size=60), block=st.integers(1, 20))
def test_records_come_sorted_by_their_bytes_whatever_the_size_of_runs_and_blocks(
    sizes: None, keys: list[int], block: int
) -> None:
    given_records = records(keys)
    pieces = [given_records[start : start + block] for start in range(0, len(keys), block)]
    found = sort_records(pieces, RECORD)
    assert plain(whole(found)) == sorted(plain(given_records))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(keys=st.lists(st.integers(0, 5), max_size=60), block=st.integers(1, 20))
def test_no_group_is_divided_and_no_record_lost(sizes: None, keys: list[int], block: int) -> None:
    found = sort_records([records(keys)], RECORD)
    blocks = list(whole_groups(found.blocks(block), "key"))
    assert [record for part in blocks for record in plain(part)] == plain(whole(found))
    seen = [set(plain(part["key"])) for part in blocks]
    assert all(seen)
    assert sum(map(len, seen)) == len(set().union(*seen))
    for part in blocks:
        values = plain(part["key"])
        assert [values[start] for start in group_starts(part["key"])] == sorted(set(values))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(length=st.integers(1, 80), rows=st.lists(st.integers(0, 79), max_size=40))
def test_records_are_taken_by_their_numbers_in_any_order(sizes: None, length: int, rows: list[int]) -> None:
    array = DiskArray("<i4")
    for start in range(0, length, 7):
        array.append(np.arange(start, min(start + 7, length)))
    wanted = np.array([row for row in rows if row < length], np.int64)
    assert array.take(wanted).tolist() == wanted.tolist()
    assert array.read(3, 1).tolist() == []
    assert array.read(length - 1, length + 5).tolist() == [length - 1]


def test_no_more_than_a_block_is_read_at_a_time_for_rows_that_lie_thinly(monkeypatch: pytest.MonkeyPatch) -> None:
    array = DiskArray("<i8")
    array.append(np.arange(100_000))
    monkeypatch.setattr(disk_array, "BLOCK_BYTES", 8 * 640)
    lengths: list[int] = []
    read = array.read

    def watched(start: int, stop: int) -> np.ndarray:
        lengths.append(stop - start)
        return read(start, stop)

    monkeypatch.setattr(array, "read", watched)
    wanted = np.arange(0, 100_000, 9)
    assert array.take(wanted).tolist() == wanted.tolist()
    assert max(lengths) <= 640
    assert len(lengths) < 200


def test_a_killed_process_leaves_no_temporary_file(tmp_path: Path) -> None:
    code = (
        "import numpy as np, os, signal\n"
        "from distil_cache.storage import disk_array\n"
        "array = disk_array.DiskArray('u1')\n"
        "array.append(np.zeros(disk_array.SPOOL_BYTES + 1, 'u1'))\n"
        "files = [os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') if os.path.lexists(f'/proc/self/fd/{n}')]\n"
        "print(sum(os.environ['TMPDIR'] in name for name in files), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "1", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_temporary_folder_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    array = DiskArray("u1")

    def full(data: memoryview) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(array._file, "write", full)
    with pytest.raises(TemporaryFolderError, match=r"No space left on device.*TMPDIR"):
        array.append(np.zeros(3))


@pytest.mark.parametrize(
    "write",
    [
        "array = disk_array.DiskArray('u1')\n    array.append(np.zeros(2))\n    array.append(np.zeros(100))",
        "table = DiskTable(columns.schema)\n    table.append(columns)\n    table.finished()",
    ],
    ids=["array", "table"],
)
def test_a_full_disk_is_noticed_when_data_are_added_and_nothing_is_said_of_it_later(write: str) -> None:
    code = (
        "import numpy as np, pyarrow as pa, resource\n"
        "from distil_cache.errors import TemporaryFolderError\n"
        "from distil_cache.storage import disk_array\n"
        "from distil_cache.storage.disk_table import DiskTable\n"
        "disk_array.SPOOL_BYTES = 1\n"
        "columns = pa.table({'number': np.arange(1000)})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        f"try:\n    {write}\n"
        "except TemporaryFolderError as error:\n"
        "    print(error)\n"
    )
    uncounted = {
        name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")
    }  # it writes files
    command = [sys.executable, "-X", "dev", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=uncounted)
    assert "TMPDIR" in done.stdout, done.stderr
    assert "Exception ignored" not in done.stderr
