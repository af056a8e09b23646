from __future__ import annotations

import hashlib
import os
import shutil
import threading
from pathlib import Path

import pytest
from distil_cache.cache.records.datasets import SCHEMA, revision_of
from distil_cache.images.file import ImageRejected, Limits
from distil_cache.images.upright import load_rgb
from distil_cache.pipeline.scan.conflicts import resolve_conflicts
from distil_cache.pipeline.scan.rows import ScannedRow, to_table
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.file import SourceFile
from distil_cache.pipeline.sources.read import read_source
from hypothesis import given
from hypothesis import strategies as st
from image_bytes import bad_files, noise, saved, turned
from recorded_progress import Recorded


def put(root: Path, files: dict[str, bytes]) -> Path:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)
    return root


def small_set(root: Path) -> Path:
    return put(
        root,
        {
            f"{kind}/{n}.png": saved(noise(seed=n + 10 * (kind == "fake")))
            for kind in ("real", "fake")
            for n in range(3)
        },
    )


def source(path: str, root: Path | str = ".", label: int = 0, split: str = "train") -> SourceFile:
    return SourceFile(str(root), path, label, split, "g", "f", "")


def test_a_row_holds_key_size_format_and_bytes(tmp_path: Path) -> None:
    data = saved(noise(20, 30), "JPEG", exif=turned(6))
    put(tmp_path, {"real/a.b c.png": data})
    (row,) = scan(discover(tmp_path).files).rows
    assert row.key == hashlib.sha256(data).hexdigest()[:32]
    assert (row.width, row.height, row.format, row.bytes) == (20, 30, "jpeg", len(data))


def test_rows_keep_the_order_of_the_files_whatever_the_number_of_workers(tmp_path: Path) -> None:
    files = discover(put(tmp_path, {f"real/{n:03}.png": saved(noise(8, 8, seed=n)) for n in range(150)})).files
    assert [row.file for row in scan(files, workers=8).rows] == files
    assert scan(files, workers=8) == scan(files, workers=1)


def test_progress_ends_at_the_number_of_files(tmp_path: Path) -> None:
    files = discover(put(tmp_path, {f"real/{n}.png": saved(noise(8, 8)) for n in range(70)})).files
    progress = Recorded()
    scan(files, progress=progress)
    assert (progress.totals, progress.done) == ({"scan": 70}, {"scan": 70})


def test_a_folder_with_one_of_each_bad_file_rejects_exactly_those_with_the_right_reasons(tmp_path: Path) -> None:
    bad = bad_files()
    put(tmp_path, {f"fake/{name}": data for name, (data, _, _) in bad.items()})
    put(tmp_path, {"fake/good.png": saved(noise())})
    result = scan(discover(tmp_path).files)
    reasons = {Path(reject.path).name: reject.reason for reject in result.rejects}
    assert reasons == {name: reason for name, (_, reason, found_by) in bad.items() if found_by == "scan"}
    for row in result.rows:
        name = Path(row.file.path).name
        try:
            load_rgb(read_source(row.file, row.key), Limits())
        except ImageRejected as rejected:
            reasons[name] = rejected.reason
    assert reasons == {name: reason for name, (_, reason, _) in bad.items()}


def test_files_that_cannot_be_reached_are_rejected_and_the_rest_is_scanned(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": saved(noise()), "folder.png/b.png": b"x"})
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    names = ["a.png", "gone.png", "a.png/x.png", "folder.png", "pipe.png", "loop.png", "nul\0.png"]
    result = scan([source(name, tmp_path) for name in names])
    assert [row.file.path for row in result.rows] == ["a.png"]
    assert [reject.reason for reject in result.rejects] == [
        "missing",
        "missing",
        "not-a-file",
        "not-a-file",
        "unreadable",
        "unreadable-name",
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_unreadable(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": saved(noise())})
    (tmp_path / "a.png").chmod(0)
    assert [reject.reason for reject in scan([source("a.png", tmp_path)]).rejects] == ["unreadable"]


def test_a_name_with_stray_bytes_is_rejected_and_shown_readably(tmp_path: Path) -> None:
    put(tmp_path, {"real/good.png": saved(noise())})
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/real/caf\xe9.png")).write_bytes(saved(noise()))
    except OSError:
        pytest.skip("this file system takes no such names")
    result = scan(discover(tmp_path).files, memory=tmp_path / "scan.parquet")
    assert [(reject.path, reject.reason) for reject in result.rejects] == [
        (f"{tmp_path}/real/caf\\xe9.png", "unreadable-name")
    ]
    assert to_table(result.rows).num_rows == 1


def test_a_second_scan_of_an_unchanged_folder_opens_no_file(tmp_path: Path) -> None:
    root, memory = small_set(tmp_path / "data"), tmp_path / "cache" / "scan.parquet"
    put(root, {"fake/text.jpg": b"no image"})
    files = discover(root).files
    first = scan(files, memory=memory)
    assert (first.opened, first.remembered, len(first.rejects)) == (7, 0, 1)
    stamp = memory.stat()
    second = scan(files, memory=memory)
    assert (second.opened, second.remembered) == (0, 7)
    assert (second.rows, second.rejects) == (first.rows, first.rejects)
    assert (memory.stat().st_ino, memory.stat().st_mtime_ns) == (stamp.st_ino, stamp.st_mtime_ns)


def test_only_new_and_changed_files_are_opened(tmp_path: Path) -> None:
    root, memory = small_set(tmp_path / "data"), tmp_path / "scan.parquet"
    scan(discover(root).files, memory=memory)
    put(root, {"real/new.png": saved(noise(seed=90)), "real/0.png": saved(noise(9, 9, seed=91))})
    result = scan(discover(root).files, memory=memory)
    assert (result.opened, result.remembered) == (2, 5)
    assert {(row.width, row.height) for row in result.rows if row.file.path == "real/0.png"} == {(9, 9)}


@pytest.mark.parametrize("year", [1500, 1677, 2263, 2400])
def test_a_date_beyond_64_bits_of_nanoseconds_costs_a_reading_and_nothing_else(tmp_path: Path, year: int) -> None:
    root, memory = small_set(tmp_path / "data"), tmp_path / "scan.parquet"
    nanoseconds = round((year - 1970) * 365.2425 * 86400) * 10**9
    os.utime(root / "real" / "0.png", ns=(nanoseconds, nanoseconds))
    if (root / "real" / "0.png").stat().st_mtime_ns != nanoseconds:
        pytest.skip("this file system does not hold such dates")
    first = scan(discover(root).files, memory=memory)
    second = scan(discover(root).files, memory=memory)
    assert (second.rows, second.rejects) == (first.rows, [])
    assert (second.opened, second.remembered) == (1, 5)


def test_rehash_notices_a_file_rewritten_with_its_old_size_and_time(tmp_path: Path) -> None:
    root, memory = put(tmp_path / "data", {"real/a.bmp": saved(noise(seed=1), "BMP")}), tmp_path / "scan.parquet"
    (before,) = scan(discover(root).files, memory=memory).rows
    old = (root / "real/a.bmp").stat()
    put(root, {"real/a.bmp": saved(noise(seed=2), "BMP")})
    os.utime(root / "real/a.bmp", ns=(old.st_atime_ns, old.st_mtime_ns))
    assert scan(discover(root).files, memory=memory).rows == [before]
    with pytest.raises(ImageRejected, match="changed"):
        read_source(before.file, before.key)
    (after,) = scan(discover(root).files, memory=memory, rehash=True).rows
    assert after.key != before.key
    assert scan(discover(root).files, memory=memory).rows == [after]


def test_other_limits_apply_to_remembered_files(tmp_path: Path) -> None:
    files = discover(put(tmp_path / "data", {"real/a.png": saved(noise(10, 30))})).files
    memory = tmp_path / "scan.parquet"
    assert [reject.reason for reject in scan(files, memory=memory, limits=Limits(min_side=11)).rejects] == ["too-small"]
    assert [reject.reason for reject in scan(files, memory=memory, limits=Limits(max_pixels=299)).rejects] == [
        "too-large"
    ]
    result = scan(files, memory=memory, limits=Limits(max_pixels=300))
    assert (len(result.rows), result.opened) == (1, 0)


@pytest.mark.parametrize("junk", [b"", b"PAR1 no", b"PAR1" * 40])
def test_a_damaged_memory_is_replaced_without_an_error(tmp_path: Path, junk: bytes) -> None:
    files, memory = discover(small_set(tmp_path / "data")).files, tmp_path / "scan.parquet"
    memory.write_bytes(junk)
    assert scan(files, memory=memory).opened == 6
    assert scan(files, memory=memory).opened == 0
    assert [path.name for path in tmp_path.iterdir() if "scan" in path.name] == ["scan.parquet"]


def test_a_memory_of_another_schema_or_one_cut_short_is_ignored(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    files, memory = discover(small_set(tmp_path / "data")).files, tmp_path / "scan.parquet"
    pq.write_table(pa.table({"path": [b"x"], "size": [1]}), memory)
    assert scan(files, memory=memory).opened == 6
    memory.write_bytes(memory.read_bytes()[:-30])
    assert scan(files, memory=memory).opened == 6


def test_a_memory_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    files = discover(small_set(tmp_path / "data")).files
    put(tmp_path, {"file": b""})
    assert scan(files, memory=tmp_path / "file" / "scan.parquet").opened == 6


def test_moving_and_renaming_changes_no_key_and_no_revision(tmp_path: Path) -> None:
    root = small_set(tmp_path / "data")
    before = scan(discover(root).files).rows
    moved = tmp_path / "new place" / "v1.0"
    moved.parent.mkdir()
    shutil.move(root, moved)
    (moved / "real/0.png").rename(moved / "real/é.jpeg")
    after = scan(discover(moved).files).rows
    assert sorted(row.key for row in after) == sorted(row.key for row in before)
    assert revision_of(to_table(after)) == revision_of(to_table(before))


def test_a_file_that_is_being_written_is_rejected_and_one_that_settles_is_read(tmp_path: Path) -> None:
    put(tmp_path, {"a.png": saved(noise(400, 400))})
    stop = threading.Event()

    def grow() -> None:
        with (tmp_path / "a.png").open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x" * 64)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        reasons: set[str] = set()
        for _ in range(300):
            reasons |= {reject.reason for reject in scan([source("a.png", tmp_path)]).rejects}
            if reasons:
                break
    finally:
        stop.set()
        writer.join()
    assert reasons == {"changed-while-reading"}
    assert len(scan([source("a.png", tmp_path)]).rows) == 1


def test_the_same_bytes_with_both_labels_are_rejected_wherever_they_are(tmp_path: Path) -> None:
    same = saved(noise())
    put(
        tmp_path,
        {
            "train/real/a.png": same,
            "train/fake/b.png": same,
            "test/fake/c.png": same,
            "test/real/d.png": saved(noise(seed=1)),
        },
    )
    result = scan(discover(tmp_path).files)
    assert [row.file.path for row in result.rows] == ["test/real/d.png"]
    assert {reject.reason for reject in result.rejects} == {"label-conflict"}
    assert (len(result.rejects), result.label_conflicts, len(result.leaks)) == (3, 3, 0)


def test_the_same_bytes_in_train_and_test_stay_in_test_only(tmp_path: Path) -> None:
    one, two = saved(noise()), saved(noise(seed=1))
    put(tmp_path, {"train/real/a.png": one, "train/real/b.png": one, "val/real/c.png": one, "test/real/d.png": one})
    put(tmp_path, {"train/real/e.png": two, "val/real/f.png": two})
    result = scan(discover(tmp_path).files)
    assert [row.file.path for row in result.rows] == ["test/real/d.png", "val/real/f.png"]
    assert (result.rejects, result.label_conflicts, len(result.leaks)) == ([], 0, 4)


def test_the_same_bytes_twice_in_one_split_stay_two_rows(tmp_path: Path) -> None:
    put(tmp_path, {"train/real/a.png": saved(noise()), "train/real/b.png": saved(noise())})
    rows = scan(discover(tmp_path).files).rows
    assert len(rows) == 2
    assert rows[0].key == rows[1].key


ROWS = st.lists(
    st.builds(
        lambda key, label, split: ScannedRow(source("x", label=label, split=split), key, 8, 8, "png", 1),
        st.sampled_from(["a" * 32, "b" * 32, "b" * 30 + "00", "0" * 32]),
        st.integers(0, 1),
        st.sampled_from(["train", "val", "test"]),
    )
)


@given(rows=ROWS)
def test_after_resolving_every_key_has_one_label_and_one_split_and_nothing_is_lost(rows: list[ScannedRow]) -> None:
    result = resolve_conflicts(rows)
    seen: dict[str, set[tuple[int, str]]] = {}
    for row in result.rows:
        seen.setdefault(row.key, set()).add((row.file.label, row.file.split))
    assert all(len(places) == 1 for places in seen.values())
    assert len(result.rows) + result.label_conflicts + len(result.leaks) == len(rows)
    assert resolve_conflicts(result.rows).rows == result.rows


def test_the_table_has_the_columns_of_a_dataset(tmp_path: Path) -> None:
    rows = scan(discover(small_set(tmp_path)).files).rows
    table = to_table(rows)
    assert table.schema == SCHEMA
    assert table.column("path").to_pylist() == [row.file.path for row in rows]
    assert table.column("source").to_pylist() == [str(tmp_path)] * 6
    assert to_table([]).schema == SCHEMA


def test_reading_a_source_checks_its_key(tmp_path: Path) -> None:
    (row,) = scan(discover(put(tmp_path, {"real/a.png": saved(noise())})).files).rows
    assert read_source(row.file, row.key) == saved(noise())
    for changed, reason in ((row._replace(key="0" * 32), "changed"), (row._replace(file=source("gone")), "missing")):
        with pytest.raises(ImageRejected) as caught:
            read_source(changed.file, changed.key)
        assert caught.value.reason == reason
