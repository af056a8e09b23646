"""Tables as people's programs write them: separators, encodings, line ends, JSON of several shapes, lists, paths."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from distil_cache.errors import UserError
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.file import DiscoveredSource
from distil_cache.pipeline.sources.folders.split_names import split_of_table
from distil_cache.pipeline.sources.reading import parse_reading
from distil_cache.storage import RemotePath
from remote_sources import put

PLAIN = "path,label\nim/0.png,real\nim/1 a.png,fake\n"
ROWS = [{"path": "im/0.png", "label": "real"}, {"path": "im/1 a.png", "label": "fake"}]


def taken(path: Path, columns: str | None = None, prefixes: tuple[str, ...] = ()) -> list[tuple[str, int]]:
    return [(file.path, file.label) for file in found_in(path, columns, prefixes).files]


def found_in(path: Path, columns: str | None = None, prefixes: tuple[str, ...] = ()) -> DiscoveredSource:
    found = discover(path, None, parse_reading(None, columns, prefixes))
    found.account.check()
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_is_read_with_any_separator_line_end_and_encoding(
    tmp_path: Path, separator: str, end: str, encoding: str
) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(PLAIN.replace(",", separator).replace("\n", end).encode(encoding))
    assert taken(path) == [("im/0.png", 0), ("im/1 a.png", 1)]


@pytest.mark.parametrize(
    "text",
    [
        '"path","label"\n"im/0.png","real"\n"im/1 a.png","fake"\n', ",path,label\n0,im/0.png,real\n1,im/1 a.png,fake\n",
        "path, label\nim/0.png, real\nim/1 a.png, fake\n", "sep=;\npath;label\nim/0.png;real\nim/1 a.png;fake\n",
        'path,prompt,label\nim/0.png,"a; b, ""c""\nd",real\nim/1 a.png,x,fake\n',
    ],
)  # fmt: skip
def test_quoted_cells_spaces_and_columns_without_a_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    assert taken(tmp_path / "list.csv") == [("im/0.png", 0), ("im/1 a.png", 1)]


@pytest.mark.parametrize(
    "value",
    [
        ROWS, {"version": 1, "data": ROWS}, {"im/0.png": "real", "im/1 a.png": "fake"},
        {row["path"]: {"label": row["label"], "seed": 1} for row in ROWS},
        {name: [row[name] for row in ROWS] for name in ("path", "label")},
        {name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ("path", "label")},
    ],
)  # fmt: skip
def test_json_of_every_shape(tmp_path: Path, value: object) -> None:
    for indent in (None, 1):
        (tmp_path / "list.json").write_text(json.dumps(value, indent=indent))
        assert taken(tmp_path / "list.json") == [("im/0.png", 0), ("im/1 a.png", 1)]


def test_json_lines_under_either_suffix_with_blank_lines_and_missing_names(tmp_path: Path) -> None:
    lines = "\n\n".join(json.dumps(row) for row in [*ROWS, {"path": "c.png"}]) + "\n"
    for name in ("list.jsonl", "list.ndjson", "list.json"):
        (tmp_path / name).write_text(lines)
        assert taken(tmp_path / name) == [("im/0.png", 0), ("im/1 a.png", 1)]


@pytest.mark.parametrize(
    "text",
    [
        "im/0.png real\nim/1 a.png fake\n", "im/0.png\treal\nim/1 a.png\tfake\n", "im/0.png,real\r\nim/1 a.png,fake",
        "\nim/0.png   real\n\nim/1 a.png fake\n\n", "real im/0.png\nfake im/1 a.png\n", PLAIN, PLAIN.replace(",", "\t"),
        "path label\nim/0.png real\nim/1 a.png fake\n", '"im/0.png" real\n"im/1 a.png" fake\n',
    ],
)  # fmt: skip
def test_lists_of_paths_with_labels(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    assert taken(tmp_path / "list.txt") == [("im/0.png", 0), ("im/1 a.png", 1)]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.csv", "path,label\nä.png,0\n".encode("cp1252"), r"is not UTF-8 text \(byte 11: .*Save it as UTF-8"),
        ("a.csv", "path,label\n".encode("utf-16") + b"x", "is not UTF-16-LE text"),
        ("a.csv", b"path,label\na.png,0,1\n", "cannot be read as a table"),
        ("a.csv", b"im/0.png,0\nim/1.png,1\n", "if the first row is no header, write one"),
        ("a.csv", b" \n", "cannot be read as a table .*empty"),
        ("a.json", b'[{"path":', "is not valid JSON"),
        ("a.json", b'"path"', "is no list of objects"),
        ("a.json", b"[1]", "entry 1: is not an object"),
        ("a.json", b"[" * 100_000, "is not valid JSON"),
        ("a.jsonl", b'{"path": "a.png", "label": 0}\n{x\n', "line 2: is not valid JSON"),
        ("a.txt", b"a.png\nb.png\n", "has no label on any line"),
    ],
)
def test_what_is_no_table_is_refused_in_a_sentence(tmp_path: Path, name: str, data: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=f"{name}.*{sentence}"):
        discover(tmp_path / name)


def test_a_stray_word_among_numbers_and_cells_that_mean_nothing_are_rows_without_a_label(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("path,label,model\na.png,0,None\nb.png,x,\nc.png,1,nan\nd.png,NaN,\n")
    found = found_in(tmp_path / "a.csv")
    assert [(file.path, file.label, file.generator) for file in found.files] == [
        ("a.png", 0, "real"),
        ("c.png", 1, "fake"),
    ]
    assert [entry.reason for entry in found.account.uncovered] == [
        "row 2: the label 'x' is neither a word for real or generated nor 0 or 1",
        "row 4: the label is empty",
    ]


# Paths


def test_the_column_of_paths_is_the_one_that_leads_to_files(tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    (tmp_path / "im" / "0.png").write_bytes(b"x")
    (tmp_path / "list.csv").write_text("filename,image_path,target\n0.png,im/0.png,0\n")
    assert taken(tmp_path / "list.csv") == [("im/0.png", 0)]
    assert taken(tmp_path / "list.csv", "path=filename") == [("0.png", 0)]
    (tmp_path / "im" / "0.png").unlink()
    with pytest.raises(UserError, match=r"`image_path` and `filename` may each be the path.*--columns path=NAME"):
        taken(tmp_path / "list.csv")
    with pytest.raises(UserError, match="--columns path=x: has no such column"):
        taken(tmp_path / "list.csv", "path=x")


def test_backslashes_are_slashes_unless_there_is_such_a_file(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\nim\\0.png,real\nim\\sub\\1.png,fake\n")
    assert [path for path, _ in taken(tmp_path / "list.csv")] == ["im/0.png", "im/sub/1.png"]
    assert any("backslashes" in note for note in found_in(tmp_path / "list.csv").account.notes)
    (tmp_path / "im\\0.png").write_bytes(b"x")
    assert [path for path, _ in taken(tmp_path / "list.csv")] == ["im\\0.png", "im\\sub\\1.png"]


def test_paths_of_another_machine_are_mapped_or_explained(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,label\nC:\\data\\im\\0.png,real\nC:/data/im/1.png,fake\n/old/2.png,fake\n")
    with pytest.raises(UserError, match=r"row 1: C:\\data\\im\\0.png is a path on Windows.*--path-prefix"):
        taken(tmp_path / "list.csv")
    prefixes = (f"C:\\data={tmp_path}", f"/old={tmp_path}/new")
    assert [path for path, _ in taken(tmp_path / "list.csv", None, prefixes)] == ["im/0.png", "im/1.png", "new/2.png"]
    notes = found_in(tmp_path / "list.csv", None, prefixes).account.notes
    assert f"2 paths begin with {tmp_path} in place of C:\\data." in notes
    assert f"1 paths begin with {tmp_path}/new in place of /old." in notes


def test_paths_start_at_the_folder_above_if_only_that_has_the_files(tmp_path: Path) -> None:
    (tmp_path / "im").mkdir()
    (tmp_path / "im" / "0.png").write_bytes(b"x")
    (tmp_path / "annotation").mkdir()
    (tmp_path / "annotation" / "val_sdv5.txt").write_text("im/0.png 0\n")
    found = found_in(tmp_path / "annotation" / "val_sdv5.txt")
    assert [(file.root, file.path, file.split) for file in found.files] == [(str(tmp_path), "im/0.png", "val")]
    assert any("folder above the table's" in note for note in found.account.notes)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/list.csv", None), ("test/metadata.csv", "test"), ("data/train_sdv5.txt", "train"), ("x/dev.csv", "val"),
        ("x/FLUX1-dev.parquet", None), ("data/validation-00000-of-00002.parquet", "val"), ("my_test_files/a.csv", None),
        ("test/train-0.parquet", "train"), ("x/contest.csv", None),
    ],
)  # fmt: skip
def test_the_split_is_in_the_tables_name_or_is_its_folders_name(path: str, split: str | None) -> None:
    assert split_of_table(path) == split


def test_a_table_in_a_store_is_read_like_one_here(tmp_path: Path, memory_bucket: RemotePath) -> None:
    data = {"list.txt": b"im\\0.png 0\r\nim\\1.png 1\r\n", "test.jsonl": json.dumps(ROWS[0]).encode()}
    for name, content in put(memory_bucket, data) and data.items():
        (tmp_path / name).write_bytes(content)
        here, there = discover(tmp_path / name), discover(memory_bucket / name)
        assert [(f.path, f.label, f.split) for f in there.files] == [(f.path, f.label, f.split) for f in here.files]
        assert there.account.notes == here.account.notes
