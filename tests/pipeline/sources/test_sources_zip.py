"""Zips as a source: members are read where they lie, and those that cannot be are counted with their reason."""

from __future__ import annotations

import io
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from distil_cache.errors import UserError
from distil_cache.images.file import ImageRejected, content_key
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.archives import zip_index
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.file import SourceFile
from distil_cache.pipeline.sources.read import read_source
from distil_cache.pipeline.sources.reading import parse_reading
from distil_cache.pipeline.sources.recorded import with_members
from distil_cache.storage import RemotePath
from hypothesis import given, settings
from hypothesis import strategies as st
from remote_sources import picture


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED, **flags: int) -> Path:
    """Write a zip; ``flags`` replaces fields of each member in the central directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as file:
        for name, data in members.items():
            file.writestr(name, data)
        for info in file.filelist:
            for field, value in flags.items():
                setattr(info, field, value)
    return path


def pair(start: str = "", seed: int = 0) -> dict[str, bytes]:
    return {f"{start}real/a.png": picture(seed), f"{start}fake/b.png": picture(seed + 1)}


def described(path: Any, layout: str | None = None) -> list[tuple[str, int, str]]:
    found = discover(path, layout)
    found.account.check()
    return [(file.path, file.label, file.split) for file in found.files]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_images_in_a_zip_are_read_where_they_lie_by_the_layout_of_its_folders(tmp_path: Path, method: int) -> None:
    members = {**pair("data/train/"), **pair("data/test/", 2), "data/notes.txt": b"x", "__MACOSX/data/._a.png": b"x"}
    path = write_zip(tmp_path / "set.zip", members, method)
    assert described(path) == [
        ("set.zip/data/test/fake/b.png", 1, "test"), ("set.zip/data/test/real/a.png", 0, "test"),
        ("set.zip/data/train/fake/b.png", 1, "train"), ("set.zip/data/train/real/a.png", 0, "train"),
    ]  # fmt: skip
    found = discover(path)
    assert (found.layout, found.account.files, found.account.not_images, found.account.hidden) == ("real-fake", 6, 1, 1)
    rows = scan(found.files).rows
    assert [row.key for row in rows] == [content_key(picture(seed)) for seed in (3, 2, 1, 0)]
    assert [read_source(row.file, row.key) for row in rows] == [picture(seed) for seed in (3, 2, 1, 0)]
    assert [child.name for child in tmp_path.iterdir()] == ["set.zip"]


def test_zips_in_a_folder_stand_for_folders_of_their_names(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        write_zip(tmp_path / "data" / f"{split}.zip", pair(seed=10 * seed))
    (tmp_path / "data" / "loose.png").write_bytes(picture(99))
    expected = [
        (f"{split}.zip/{name}", label, split)
        for split in ("test", "train", "val")
        for name, label in (("fake/b.png", 1), ("real/a.png", 0))
    ]
    found = discover(tmp_path / "data", "zip")
    assert [(file.path, file.label, file.split) for file in found.files] == expected
    assert [(entry.images, entry.example) for entry in found.account.uncovered] == [(1, "loose.png")]
    (tmp_path / "data" / "loose.png").unlink()
    assert [(path.removeprefix("data/"), *rest) for path, *rest in described(tmp_path)] == expected
    assert described(tmp_path / "data" / "test.zip") == expected[:2]


def test_names_are_only_names_and_those_of_windows_have_folders(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"x/../../real/a.png": picture(1), "x/../../fake/b.png": picture(2)})
    assert {row.key for row in scan(discover(path).files).rows} == {content_key(picture(1)), content_key(picture(2))}
    path = write_zip(tmp_path / "b.zip", {"real/a.png": picture(1), "fake/b.png": picture(2)})
    data = path.read_bytes().replace(b"real/a", b"real\\a").replace(b"fake/b", b"fake\\b")
    path.write_bytes(data.replace(b"PK\1\2\x14\3", b"PK\1\2\x14\0"))
    assert [file.label for file in discover(path).files] == [1, 0]


def patched(path: Path, offset: int, form: str, value: int) -> Path:
    """Change a field of the first entry of the central directory."""
    data = bytearray(path.read_bytes())
    struct.pack_into(form, data, data.index(b"PK\1\2") + offset, value)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("offset", "form", "value", "reason"),
    [
        (8, "<H", 1, "is encrypted"),
        (10, "<H", 12, "is compressed with bzip2"),
        (10, "<H", 97, "is compressed with method 97"),
        (24, "<I", 2**31 + 1, "declares 2,147,483,649 bytes, more than its"),
        (38, "<I", 0o120777 << 16, "is a link"),
    ],
)
def test_members_that_cannot_be_read_are_counted_with_their_reason(
    tmp_path: Path, offset: int, form: str, value: int, reason: str
) -> None:
    members = {"fake/0.png": picture(5), **pair()}
    found = discover(patched(write_zip(tmp_path / "a.zip", members), offset, form, value))
    found.account.check()
    assert (found.account.files, found.account.images) == (3, 2)
    (entry,) = found.account.uncovered
    assert (entry.folder, entry.images, entry.example) == ("a.zip", 1, "a.zip/fake/0.png")
    assert entry.reason.startswith(f"the member {reason}")


def test_a_name_that_occurs_twice_is_read_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, data in pair().items():
            file.writestr(name, data)
        with pytest.warns(UserWarning, match="Duplicate name"):
            file.writestr("real/a.png", picture(7))
    found = discover(tmp_path / "a.zip")
    assert [entry.reason for entry in found.account.uncovered] == ["the member has the name of another member"]
    assert {row.key for row in scan(found.files).rows} == {content_key(picture(0)), content_key(picture(1))}


def test_data_that_do_not_fit_what_is_declared_are_damaged(tmp_path: Path) -> None:
    zeros = bytes(4_000_000)
    path = write_zip(tmp_path / "a.zip", {"real/a.png": zeros, "fake/b.png": picture(1), "fake/c.png": picture(2)})
    for offset, form, value in ((24, "<I", 100_000), (16, "<I", 12345), (42, "<I", 7), (42, "<I", 2**31)):
        original = path.read_bytes()
        (file,) = [file for file in discover(patched(path, offset, form, value)).files if file.label == 0]
        assert [(reject.reason) for reject in scan([file]).rejects] == ["damaged"]
        path.write_bytes(original)


def test_bombs_are_refused_by_what_they_declare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_index, "_SUSPICIOUS_BYTES", 1_000_000)
    path = write_zip(tmp_path / "a.zip", {"real/a.bmp": bytes(2_000_000), **pair()})
    (entry,) = discover(path).account.uncovered
    assert "inflates from" in entry.reason
    assert "2,000,000 bytes" in entry.reason


def test_what_is_no_zip_is_cut_off_or_holds_no_image_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", pair())
    whole = path.read_bytes()
    for data, sentence in ((b"no zip", "cannot be read as a zip"), (whole[:-30], "cannot be read as a zip")):
        path.write_bytes(data)
        with pytest.raises(UserError, match=f"a.zip: {sentence}"):
            discover(path)
    with pytest.raises(UserError, match=r"a\.zip: has no image file"):
        discover(write_zip(path, {"notes.txt": b"x", "inner.zip": whole}))
    path.unlink()
    with pytest.raises(UserError, match=r"has no \.zip file"):
        discover(tmp_path, "zip")


def test_tables_and_archives_in_a_zip_are_not_read_and_the_layout_of_folders_is(tmp_path: Path) -> None:
    inner = {"a.tar": b"x", "t.parquet": b"x", "real/metadata.csv": b"file_name,label\na.png,fake\n"}
    path = write_zip(tmp_path / "a.zip", {**pair(), **inner})
    assert [label for _, label, _ in described(path)] == [1, 0]
    with pytest.raises(UserError, match=r"a\.zip: has no image file \(3 other files"):
        discover(write_zip(path, inner))
    for layout in ("metadata", "parquet"):
        with pytest.raises(UserError, match=rf"(not read. Unpack it to use the layout {layout}|is a file)"):
            discover(path, layout)


def test_several_classes_in_zips_that_are_splits_are_read_with_the_words_of_the_user(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "val", "test")):
        members = {f"{name}/0.png": picture(3 * number + n) for n, name in enumerate(("coco", "dalle-3-images"))}
        write_zip(tmp_path / "data" / f"{split}.zip", members)
    for layout in (None, "{split}/{generator}"):
        found = discover(tmp_path, layout, parse_reading("coco=real,*=fake", None))
        assert [(file.split, file.label, file.generator) for file in found.files] == [
            (split, *rest) for split in ("test", "train", "val") for rest in ((0, "real"), (1, "dalle-3-images"))
        ]
    assert len(scan(found.files).rows) == 6


def test_an_unchanged_zip_is_not_opened_for_images_again_and_a_changed_one_is(tmp_path: Path) -> None:
    memory = tmp_path / "scan.parquet"
    path = write_zip(tmp_path / "a.zip", pair())
    (row, _) = scan(discover(path).files, memory=memory).rows
    assert scan(discover(path).files, memory=memory).opened == 0
    write_zip(path, pair(seed=5))
    os.utime(path, ns=(1, 1))
    with pytest.raises(ImageRejected, match="its zip changed after it was listed"):
        read_source(row.file, row.key)
    assert scan(discover(path).files, memory=memory).opened == 2
    path.unlink()
    with pytest.raises(ImageRejected, match="its zip is gone"):
        read_source(row.file, row.key)


def test_recorded_paths_lead_to_the_members_again(tmp_path: Path) -> None:
    write_zip(tmp_path / "data.zip" / "train.zip", pair())
    files = discover(tmp_path).files
    recorded = [SourceFile(f.root, f.path, f.label, f.split, f.generator, f.family, f.group) for f in files]
    assert with_members(recorded) == files
    assert len(scan(with_members(recorded)).rows) == 2


def test_zips_in_a_store_give_the_rows_of_those_here(tmp_path: Path, memory_bucket: RemotePath) -> None:
    write_zip(tmp_path / "s" / "train.zip", pair())
    write_zip(tmp_path / "s" / "test.zip", pair(seed=4), zipfile.ZIP_STORED)
    memory_bucket.upload(tmp_path / "s")
    here, there = discover(tmp_path / "s"), discover(memory_bucket)
    assert [row[1:] for row in scan(there.files).rows] == [row[1:] for row in scan(here.files).rows]
    assert described(memory_bucket / "test.zip") == described(tmp_path / "s" / "test.zip")
    rows = scan(there.files).rows
    (memory_bucket / "train.zip").write((tmp_path / "s" / "test.zip").read_bytes())
    assert {reject.reason for reject in scan([row.file for row in rows[2:]]).rejects} <= {
        "changed-while-reading", "damaged"
    }  # fmt: skip


@given(position=st.integers(0, 700), value=st.integers(0, 255))
@settings(max_examples=150)
def test_a_changed_byte_is_read_refused_or_rejected_but_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    folder = tmp_path_factory.mktemp("z")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("real/a.png", "fake/b.png"):
            file.writestr(name, name * 20)
    data = bytearray(buffer.getvalue())
    data[position % len(data)] = value
    (folder / "a.zip").write_bytes(data)
    try:
        files = discover(folder / "a.zip").files
    except UserError:
        return
    assert len(scan(files).rejects) == len(files)


def test_zips_that_hold_a_folder_of_their_own_name_stand_for_it(tmp_path: Path) -> None:
    write_zip(tmp_path / "train.zip", pair("train/"))
    write_zip(tmp_path / "test.zip", {**pair("test/", 2), "__MACOSX/test/._a.png": b"x"})
    assert described(tmp_path) == [
        ("test.zip/test/fake/b.png", 1, "test"), ("test.zip/test/real/a.png", 0, "test"),
        ("train.zip/train/fake/b.png", 1, "train"), ("train.zip/train/real/a.png", 0, "train"),
    ]  # fmt: skip


def test_genimages_zips_are_read_in_the_folders_of_their_generators(tmp_path: Path) -> None:
    for generator, name in (("ADM", "imagenet_ai_0508_adm"), ("BigGAN", "imagenet_ai_0419_biggan")):
        members = {f"{name}/train/ai/a.png": picture(0), f"{name}/train/nature/b.png": picture(1)}
        write_zip(tmp_path / generator / f"{name}.zip", members)
    found = discover(tmp_path)
    assert found.layout == "genimage"
    assert {file.generator for file in found.files} == {"ADM", "BigGAN"}


def test_members_of_two_zips_with_one_place_are_counted(tmp_path: Path) -> None:
    write_zip(tmp_path / "train.zip", {"sub/real/a.png": picture(0), "sub/fake/b.png": picture(1)})
    write_zip(tmp_path / "train" / "sub.zip", {"real/a.png": picture(2), "fake/c.png": picture(3)})
    found = discover(tmp_path)
    found.account.check()
    assert (found.account.files, found.account.images) == (4, 3)
    (entry,) = found.account.uncovered
    assert entry.images == 1
    assert entry.reason in ("the member is in train.zip too", "the member is in train/sub.zip too")
