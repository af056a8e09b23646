"""Parquet files with images inside: what they are taken for, how they are read, and what memory that takes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from distil_cache.errors import UserError
from distil_cache.images.file import ImageRejected, content_key
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.file import ParquetMember, SourceFile
from distil_cache.pipeline.sources.read import read_source, readers, reading_blocks, reading_order
from distil_cache.pipeline.sources.reading import parse_reading
from distil_cache.pipeline.sources.recorded import with_members
from distil_cache.pipeline.sources.tables import parquet_rows
from distil_cache.storage import RemotePath
from distil_cache.storage import parquet as storage_parquet
from hub_parquet import class_label, images, write_shard
from patience import PATIENCE
from remote_sources import picture
from tar_bytes import sample, write_tar

FEATURES = {"image": {"_type": "Image"}}


def taken(path: Path, labels: str | None = None, columns: str | None = None) -> list[tuple[str, int, str, str]]:
    found = discover(path, None, parse_reading(labels, columns))
    found.account.check()
    return [(file.path, file.label, file.split, file.generator) for file in found.files]


def test_class_names_of_labels_and_generators_are_those_of_the_schema(tmp_path: Path) -> None:
    data = [picture(number) for number in range(4)]
    columns = {"image": images(data), "label": [0, 1, 1, 0], "generator": [0, 1, 2, 0], "seed": [1, 2, 3, 4]}
    features = {**FEATURES, "label": class_label("real", "fake"), "generator": class_label("Real", "ADM", "SD14")}
    path = write_shard(tmp_path / "train-00000-of-00001.parquet", columns, features)
    assert taken(path) == [
        ("train-00000-of-00001.parquet/image/0/0.png", 0, "train", "real"),
        ("train-00000-of-00001.parquet/image/1/1.png", 1, "train", "ADM"),
        ("train-00000-of-00001.parquet/image/2/2.png", 1, "train", "SD14"),
        ("train-00000-of-00001.parquet/image/3/3.png", 0, "train", "real"),
    ]
    found = discover(path)
    assert (found.layout, found.account.files) == ("parquet", 4)
    assert "Columns that are not used: `seed`." in found.account.notes
    turned = write_shard(path, columns, {**features, "label": class_label("FAKE", "REAL"), "generator": {}})
    assert [label for _, label, *_ in taken(turned, columns="generator=")] == [1, 0, 0, 1]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), *([pa.binary_view()] if hasattr(pa, "binary_view") else [])]
)
def test_a_binary_column_holds_images_and_another_column_may_name_them(tmp_path: Path, kind: pa.DataType) -> None:
    data = [picture(number) for number in range(3)]
    columns = {
        "image_name": ["x/a.png", "b.png", ""],
        "image_data": pa.array(data, pa.binary()).cast(kind),
        "label": ["real", "fake", "fake"],
    }
    path = write_shard(tmp_path / "systematic-0.parquet", columns)
    assert [name for name, *_ in taken(path)] == [
        f"systematic-0.parquet/image_data/{rest}" for rest in ("0/a.png", "1/b.png", "2")
    ]
    assert [read_source(row.file, row.key) for row in scan(discover(path).files).rows] == data


def test_shards_are_one_source_with_the_splits_of_their_names_and_one_meaning_of_numbers(tmp_path: Path) -> None:
    columns: dict[str, Any] = {"image": images([picture(1), picture(2)]), "label": [1, 0], "model": ["real", "adm"]}
    write_shard(tmp_path / "data" / "train-00000-of-00001.parquet", columns)
    columns = {"image": images([picture(3), picture(4)]), "label": [0, 0], "model": ["adm", "sdxl"]}
    write_shard(tmp_path / "data" / "test-00000-of-00001.parquet", columns)
    columns = {"image": images([picture(5)]), "label": [0], "model": ["adm"]}
    write_shard(tmp_path / "validation" / "0000.parquet", columns)
    write_shard(tmp_path / "metadata.parquet", {"prompt": ["a lake"], "part_id": [1]})
    found = discover(tmp_path)
    assert [(file.split, file.label, file.generator) for file in found.files] == [
        ("test", 1, "adm"), ("test", 1, "sdxl"), ("train", 0, "real"), ("train", 1, "adm"), ("val", 1, "adm")
    ]  # fmt: skip
    assert any("metadata.parquet" in note for note in found.account.notes)
    assert {file.root for file in found.files} == {str(tmp_path)}
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="no Parquet file with images"):
        discover(tmp_path / "nothing", "parquet")


def test_images_that_are_only_paths_in_the_structure_are_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    path = write_shard(tmp_path / "t.parquet", {"image": images([None], "a.png"), "label": ["fake"]})
    (file,) = discover(path).files
    assert (file.path, file.member) == ("a.png", None)


def test_two_columns_of_images_are_asked_for(tmp_path: Path) -> None:
    columns = {"image": images([picture(1)]), "img": images([picture(2)]), "label": ["fake"]}
    path = write_shard(tmp_path / "t.parquet", columns)
    with pytest.raises(UserError, match=r"the columns `image` and `img` hold images.*--columns path=NAME"):
        discover(path)
    assert [name for name, *_ in taken(path, columns="path=img")] == ["t.parquet/img/0/0.png"]
    path = write_shard(
        tmp_path / "t.parquet", {"mask": images([picture(2)]), "image": images([picture(1)]), "label": ["fake"]}
    )
    assert [name for name, *_ in taken(path)] == ["t.parquet/image/0/0.png"]


@pytest.mark.parametrize("groups", [1, 3, 1000])
@pytest.mark.parametrize("compression", ["snappy", "zstd", "none"])
def test_every_image_is_read_from_any_row_by_any_thread(tmp_path: Path, groups: int, compression: str) -> None:
    data = [picture(number % 40) for number in range(90)]
    columns = {"image": images(data), "label": [number % 2 for number in range(90)]}
    path = write_shard(tmp_path / "t.parquet", columns, row_group_size=90 // groups or 1, compression=compression)
    files = discover(path).files
    keys = [content_key(one) for one in data]
    order = list(range(90))
    for _ in range(2):
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda n: read_source(files[n], keys[n]), order)) == [data[n] for n in order]
        random.Random(1).shuffle(order)


def test_a_row_group_is_decoded_once_by_a_scan_and_by_a_build_in_reading_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    make = parquet_rows._Rows._open
    monkeypatch.setattr(parquet_rows, "_rows", parquet_rows._Rows())
    monkeypatch.setattr(
        parquet_rows._Rows, "_open", lambda *arguments: (opened.append(arguments[2].group), make(*arguments))[1]
    )
    data = [picture(number) for number in range(120)]
    columns = {"image": images(data), "label": [number % 2 for number in range(120)]}
    files = discover(write_shard(tmp_path / "t.parquet", columns, row_group_size=40)).files
    rows = scan(files, workers=4).rows
    assert sorted(opened) == [0, 1, 2]
    shuffled = random.Random(2).sample(rows, 120)
    opened.clear()
    with ThreadPoolExecutor(4) as pool:
        ordered = sorted(shuffled, key=lambda row: reading_order(row.file))
        list(pool.map(lambda row: read_source(row.file, row.key), ordered))
    assert len(opened) <= 6


def test_blocks_keep_the_rows_of_a_row_group_together() -> None:
    plain = [SourceFile("/d", f"{n}.png", 0, "train", "", "", "") for n in range(5)]
    inside = [
        SourceFile("/d", f"t/{n}", 0, "train", "", "", "", ParquetMember("t.parquet", 9, 9, "image", n // 4, n % 4))
        for n in range(10)
    ]
    assert [len(block) for block in reading_blocks(plain + inside, 2)] == [2, 2, 2 + 3, 4, 2]
    assert [len(block) for block in reading_blocks(plain, 2)] == [2, 2, 1]
    assert list(reading_blocks([], 2)) == []
    assert readers(inside, 3) == 3


def test_an_unchanged_file_is_not_decoded_again_and_a_changed_one_is(tmp_path: Path) -> None:
    memory = tmp_path / "scan.parquet"
    columns = {"image": images([picture(1), picture(2)]), "label": [0, 1]}
    path = write_shard(tmp_path / "d" / "t.parquet", columns)
    assert scan(discover(path).files, memory=memory).opened == 2
    again = scan(discover(path).files, memory=memory)
    assert (again.opened, again.remembered) == (0, 2)
    (row, _) = again.rows
    write_shard(path, {**columns, "image": images([picture(3), picture(2)])})
    os.utime(path, ns=(1, 1))
    with pytest.raises(ImageRejected, match="its Parquet file changed after it was listed"):
        read_source(row.file, row.key)
    changed = scan(discover(path).files, memory=memory)
    assert [row.key for row in changed.rows] == [content_key(picture(3)), content_key(picture(2))]
    path.unlink()
    with pytest.raises(ImageRejected, match="its Parquet file is gone"):
        read_source(row.file, row.key)


def test_cells_without_an_image_are_rejected_alone(tmp_path: Path) -> None:
    columns = {"image": images([picture(1), None, b"no image", b""]), "label": [0, 1, 1, 1]}
    result = scan(discover(write_shard(tmp_path / "t.parquet", columns)).files)
    assert len(result.rows) == 1
    assert [(Path(reject.path).name, reject.reason) for reject in result.rejects] == [
        ("1.png", "missing"), ("2.png", "not-an-image"), ("3.png", "empty")
    ]  # fmt: skip


def test_the_same_image_in_a_folder_and_in_parquet_is_one_sample(tmp_path: Path) -> None:
    (tmp_path / "d" / "real").mkdir(parents=True)
    (tmp_path / "d" / "real" / "a.png").write_bytes(picture(1))
    path = write_shard(tmp_path / "p" / "t.parquet", {"image": images([picture(1)]), "label": ["real"]})
    rows = scan([*discover(tmp_path / "d").files, *discover(path).files]).rows
    assert len({row.key for row in rows}) == 1
    path = write_shard(path, {"image": images([picture(1)]), "label": ["fake"]})
    assert scan([*discover(tmp_path / "d").files, *discover(path).files]).label_conflicts == 2


def test_recorded_paths_lead_to_the_rows_again(tmp_path: Path) -> None:
    columns = {"image": images([picture(n) for n in range(5)]), "label": [0, 1, 0, 1, 0]}
    write_shard(tmp_path / "train.parquet", columns, row_group_size=2)
    files = discover(tmp_path).files
    recorded = [SourceFile(f.root, f.path, f.label, f.split, f.generator, f.family, f.group) for f in files]
    assert with_members(recorded) == files
    gone = SourceFile(str(tmp_path), "train.parquet/image/5/5.png", 0, "train", "", "", "")
    absent = SourceFile(str(tmp_path), "b.parquet/image/5/5.png", 0, "train", "", "", "")
    assert [file.member for file in with_members([gone, absent])] == [None, None]


def test_shards_in_a_store_give_the_rows_of_those_here(tmp_path: Path, memory_bucket: RemotePath) -> None:
    columns = {"image": images([picture(n) for n in range(6)]), "label": ["real", "fake"] * 3}
    write_shard(tmp_path / "s" / "data" / "train-0.parquet", columns, row_group_size=2)
    memory_bucket.upload(tmp_path / "s")
    memory = tmp_path / "scan.parquet"
    here, there = scan(discover(tmp_path / "s").files), scan(discover(memory_bucket).files, memory=memory)
    assert [row[1:] for row in there.rows] == [row[1:] for row in here.rows]
    assert [row.file.path for row in there.rows] == [row.file.path for row in here.rows]
    assert scan(discover(memory_bucket / "data" / "train-0.parquet").files).rows[0][1:] == here.rows[0][1:]
    assert scan(discover(memory_bucket).files, memory=memory).opened == 0
    memory_bucket.upload(
        write_shard(tmp_path / "n" / "data" / "train-0.parquet", columns, compression="none").parents[1]
    )
    assert {reject.reason for reject in scan([row.file for row in there.rows]).rejects} == {"changed-while-reading"}


HOSTILE = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
from pathlib import Path
from distil_cache.errors import UserError
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.discover import discover
try:
    result = scan(discover(Path(sys.argv[1])).files)
    print(len(result.rows), sorted({reject.reason for reject in result.rejects}))
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_large_value_that_is_repeated_takes_the_memory_of_one(tmp_path: Path) -> None:
    value = pa.array([os.urandom(2_000) * 20_000], pa.binary())
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * 60, pa.int32()), value)
    path = write_shard(tmp_path / "t.parquet", {"image": repeated, "label": ["fake"] * 60}, compression="zstd")
    assert path.stat().st_size < 100_000
    script = subprocess.run(
        [sys.executable, "-c", HOSTILE, path, str(2 * 2**30)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert script.stdout.strip() in ("0 ['not-an-image']", "0 ['damaged', 'not-an-image']"), script.stderr


def test_a_file_that_declares_more_than_it_can_hold_and_damage_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_parquet, "SMALL_BYTES", 1 << 20)
    path = write_shard(
        tmp_path / "t.parquet",
        {"image": [bytes(3_000_000)], "label": ["fake"]},
        compression="zstd",
        use_dictionary=False,
    )
    with pytest.raises(UserError, match=r"t.parquet: cannot be read as a table .*decode to"):
        discover(path)
    columns = {"image": images([picture(n) for n in range(4)]), "label": ["real", "fake"] * 2}
    data = bytearray(write_shard(path, columns, compression="zstd", write_page_checksum=True).read_bytes())
    data[200:210] = bytes(10)
    path.write_bytes(data)
    assert {reject.reason for reject in scan(discover(path).files).rejects} == {"damaged"}
    path.write_bytes(data[:-100])
    with pytest.raises(UserError, match=r"cannot be read as a table"):
        discover(path)


def test_a_build_and_an_audit_of_its_dataset_see_parquet_zip_tar_and_files_alike(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from distil_cache.pipeline.audit.run import run_audit
    from distil_cache.pipeline.build import run_build
    from distil_cache.pipeline.config import BuildConfig
    from distil_cache.progress import Silent
    from small_models import STEPS, write_adm

    adm = write_adm(tmp_path / "adm.safetensors")
    kinds = ["real", "fake"] * 4
    data = [picture(number) for number in range(8)]
    columns = {"image": images(data), "label": kinds}
    write_shard(tmp_path / "parquet" / "data" / "train-0.parquet", columns, row_group_size=3)
    (tmp_path / "zip").mkdir()
    members = []
    with zipfile.ZipFile(tmp_path / "zip" / "train.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number, kind in enumerate(kinds):
            archive.writestr(f"{kind}/{number}.png", data[number])
            members += sample(str(number), data[number], label=kind)
            file = tmp_path / "files" / kind / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data[number])
    write_tar(tmp_path / "tar" / "train-0.tar", members)

    built = {}
    for source in ("files", "parquet", "zip", "tar"):
        config = BuildConfig.checked(
            sources=(tmp_path / source,), cache=tmp_path / "cache", dataset=source, adm=str(adm), steps=STEPS,
            features=("image",), batch_size=4, decode_threads=2, device="cpu",
        )  # fmt: skip
        built[source] = run_build(config, Silent())
        audited = run_audit(cache=tmp_path / "cache", dataset=source, sample=4)
        assert (audited["files"], audited["real"], audited["fake"], audited["set_aside"]) == (8, 4, 4, [])
    assert len({result["revision"] for result in built.values()}) == 1
    assert [result["decoded"] for result in built.values()] == [8, 0, 0, 0]


def test_columns_with_any_name_that_hold_only_words_settle_labels_and_splits(tmp_path: Path) -> None:
    data = [picture(number) for number in range(4)]
    columns = {"image": images(data), "label": [1, 0, 1, 0], "type": ["real", "ai"] * 2, "fold": ["test", "train"] * 2}
    path = write_shard(tmp_path / "a.parquet", {**columns, "prompt": ["a", "z", "ai", "real"]}, row_group_size=2)
    assert [(label, split) for _, label, split, _ in taken(path)] == [(0, "test"), (1, "train")] * 2
    assert "Columns that are not used: `type`, `prompt`." in discover(path).account.notes


def test_a_column_whose_first_and_last_words_mean_classes_but_not_all_is_left_alone(tmp_path: Path) -> None:
    data = [picture(number) for number in range(3)]
    columns = {"image": images(data), "label": [1, 0, 1], "type": ["ai", "cat", "real"]}
    path = write_shard(tmp_path / "a.parquet", columns)
    assert [label for _, label, *_ in taken(path)] == [1, 0, 1]
    assert "Columns that are not used: `type`." in discover(path).account.notes
