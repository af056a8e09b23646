from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distil_cache.errors import UserError
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.file import SourceFile


def csv(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "images.csv"
    path.write_text(text, encoding=encoding)
    return path


def test_a_csv_table_needs_only_path_and_label(tmp_path: Path) -> None:
    found = discover(csv(tmp_path, "path,label\n./a.png,0\nsub dir/b.jpg,fake\n../c.png,REAL\n"))
    root = str(tmp_path)
    assert (found.layout, found.account.not_images) == ("table", 0)
    assert found.files == [
        SourceFile(root, "a.png", 0, "train", "real", "real", ""),
        SourceFile(root, "sub dir/b.jpg", 1, "train", "fake", "unknown", ""),
        SourceFile(root, "../c.png", 0, "train", "real", "real", ""),
    ]


def test_further_columns_are_read_in_any_order_and_unknown_ones_ignored(tmp_path: Path) -> None:
    text = (
        "group,family,generator,split,label,path,prompt\n"
        'imagenet,,adm,test,1,"a, b.png",x\n'
        "NA,other,sd14,valid,1,NA.png,y\n"
    )
    files = discover(csv(tmp_path, text, encoding="utf-8-sig"), "table").files
    assert [(f.path, f.split, f.generator, f.family, f.group) for f in files] == [
        ("a, b.png", "test", "adm", "diffusion", "imagenet"),
        ("NA.png", "val", "sd14", "other", "NA"),
    ]


def test_a_parquet_table_says_the_same_as_a_csv_table(tmp_path: Path) -> None:
    text = "path,label,split,generator\nä.png,0,val,\nb.png,1,,adm\n"
    table = pa.table({"path": ["ä.png", "b.png"], "label": [0, 1], "split": ["val", None], "generator": [None, "adm"]})
    pq.write_table(table, tmp_path / "images.parquet")
    assert discover(tmp_path / "images.parquet").files == discover(csv(tmp_path, text)).files


def test_a_parquet_table_in_a_folder_that_looks_like_a_partition_gets_no_extra_column(tmp_path: Path) -> None:
    folder = tmp_path / "generator=x"
    folder.mkdir()
    pq.write_table(pa.table({"path": ["a.png"], "label": ["fake"]}), folder / "t.parquet")
    assert discover(folder / "t.parquet").files[0].generator == "fake"


def test_absolute_paths_are_taken_from_the_tables_folder_or_from_the_root(tmp_path: Path) -> None:
    files = discover(csv(tmp_path, f"path,label\n{tmp_path}/x/a.png,0\n/elsewhere/b.png,1\n")).files
    assert [(file.root, file.path) for file in files] == [(str(tmp_path), "x/a.png"), ("/", "elsewhere/b.png")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.png,maybe\n", r"row 1: the label 'maybe' in `label` is neither .* --labels maybe=fake"),
        ("path,label\na.png,0\nb.png,7\n", r"row 2: `label` holds 7 besides 0 and 1"),
        ("path,label\n,0\n", "row 1: the path is empty"),
        ("path,label,split\na.png,0,3\n", "row 1: the split '3' is none of train, val, test"),
        ("place,label\na.png,0\n", "no column of paths. Its columns: label, place. Name it with --columns path=NAME"),
        ("path,truth\na.png,0\n", "no label column. Its columns: path, truth. Name it with --columns label=NAME"),
        ("path,label,path\na.png,0,b.png\n", "two columns `path`"),
        ("path,label\n", "no rows"),
        ("", "cannot be read as a table"),
        ("path,label\na.png\n", "cannot be read as a table"),
    ],
)
def test_a_table_with_a_mistake_is_refused_and_the_place_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        discover(csv(tmp_path, text))
    assert "images.csv" in str(caught.value)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.xlsx").write_bytes(b"x")
    (tmp_path / "images.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(UserError, match=r"is a file. Give a folder, a table"):
        discover(tmp_path / "images.xlsx")
    with pytest.raises(UserError, match="cannot be read as a table"):
        discover(tmp_path / "images.parquet")
    with pytest.raises(UserError, match=r"is a file"):
        discover(csv(tmp_path, "path,label\na.png,0\n"), "cnndet")
