"""Sources in an object store: the same rows as from the same files here, with one listing and no request for what is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distil_cache.cache.records.datasets import revision_of
from distil_cache.errors import UserError
from distil_cache.images.file import MAX_BYTES, ImageRejected, content_key
from distil_cache.pipeline.scan.rows import to_table
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.file import DiscoveredSource, ListedObject, SourceFile
from distil_cache.pipeline.sources.read import read_source
from distil_cache.storage import RemotePath
from image_bytes import bad_files, noise, saved
from remote_sources import Forbidden, picture, put, small_set
from source_trees import BESIDE, TREES, plant
from tar_bytes import sample, write_tar


def unplaced(found: DiscoveredSource) -> tuple[str, list[SourceFile], int]:
    """Return discovered files without their roots."""
    return found.layout, [replace(file, root="", listed=None) for file in found.files], found.account.not_images


# Listing


@pytest.mark.parametrize("layout", list(TREES))
def test_each_layout_is_seen_as_in_a_folder_here(layout: str, tmp_path: Path, memory_bucket: RemotePath) -> None:
    memory_bucket.upload(
        plant(tmp_path, [*TREES[layout], *BESIDE.get(layout, []), "notes.txt", TREES[layout][0] + ".part"])
    )
    for name in (None, layout):
        assert unplaced(discover(memory_bucket, name)) == unplaced(discover(tmp_path, name))
    found = discover(memory_bucket)
    assert {file.root for file in found.files} == {str(memory_bucket)}
    assert [file.listed.bytes for file in found.files if file.listed] == [1] * len(found.files)
    assert found.files[0].location == f"{memory_bucket}/{found.files[0].path}"


def test_clutter_other_files_and_wrong_structures_are_treated_as_in_a_folder_here(
    tmp_path: Path, memory_bucket: RemotePath
) -> None:
    files = ["real/a.png", "real/.hidden.png", "fake/Thumbs.db", "fake/.git/b.png", "fake/__MACOSX/c.png", "fake/d.txt"]
    memory_bucket.upload(plant(tmp_path, files))
    assert unplaced(discover(memory_bucket)) == unplaced(discover(tmp_path))
    for layout in ("cnndet", "webdataset", "table"):
        said = []
        for place in (tmp_path, memory_bucket):
            with pytest.raises(UserError) as caught:
                discover(place, layout)
            said.append(str(caught.value).replace(str(place), "PLACE"))
        assert said[0] == said[1]
    for place, message in (
        (memory_bucket / "absent", "not found in the object store"),
        (RemotePath("http://localhost/x"), "web"),
    ):
        with pytest.raises(UserError, match=message):
            discover(place)


# Scanning


def test_a_scan_finds_the_rows_and_the_rejects_of_the_same_files_here(
    tmp_path: Path, memory_bucket: RemotePath
) -> None:
    for name, (data, _, _) in bad_files().items():
        path = tmp_path / "fake" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "größe 1.png").write_bytes(picture(1))
    (tmp_path / "real" / "again.png").write_bytes(picture(1))
    memory_bucket.upload(tmp_path)
    here, there = (scan(discover(place).files) for place in (tmp_path, memory_bucket))
    assert [(row.file.path, row[1:]) for row in there.rows] == [(row.file.path, row[1:]) for row in here.rows]
    assert [
        (reject.path.removeprefix(f"{memory_bucket}/"), reject.reason, reject.detail) for reject in there.rejects
    ] == [(reject.path.removeprefix(f"{tmp_path}/"), reject.reason, reject.detail) for reject in here.rejects]
    assert revision_of(to_table(there.rows)) == revision_of(to_table(here.rows))
    assert [read_source(row.file, row.key) for row in there.rows] == [
        read_source(row.file, row.key) for row in here.rows
    ]


def test_what_was_scanned_before_is_known_from_the_listing_alone(tmp_path: Path, memory_bucket: RemotePath) -> None:
    memory = tmp_path / "scan.parquet"
    small_set(memory_bucket)
    first = scan(discover(memory_bucket).files, memory=memory)
    files = discover(memory_bucket).files
    memory_bucket.remove()  # whatever is asked of an object from here on fails
    second = scan(files, memory=memory)
    assert (first.opened, second.opened, second.remembered) == (6, 0, 6)
    assert (second.rows, second.rejects) == (first.rows, [])


def test_an_object_that_was_written_again_is_read_again(tmp_path: Path, memory_bucket: RemotePath) -> None:
    memory = tmp_path / "scan.parquet"
    before = scan(discover(small_set(memory_bucket)).files, memory=memory)
    put(memory_bucket, {"real/0.png": picture(50)})
    after = scan(discover(memory_bucket).files, memory=memory)
    assert (after.opened, after.remembered) == (1, 5)
    assert {row.key for row in after.rows} - {row.key for row in before.rows} == {content_key(picture(50))}


def test_one_rewritten_within_the_second_is_found_when_its_pixels_are_wanted(
    tmp_path: Path, memory_bucket: RemotePath
) -> None:
    one, other = saved(noise(20, 24, 1), "BMP"), saved(noise(20, 24, 2), "BMP")
    files = discover(put(memory_bucket, {"real/a.bmp": one})).files
    (row,) = scan(files, memory=tmp_path / "scan.parquet").rows
    put(memory_bucket, {"real/a.bmp": other})
    assert scan(files, memory=tmp_path / "scan.parquet").rows == [row]  # as if listed with the same size and time
    with pytest.raises(ImageRejected, match="changed"):
        read_source(row.file, row.key)


def test_an_object_without_a_time_is_never_taken_for_known(tmp_path: Path, memory_bucket: RemotePath) -> None:
    files = [
        replace(file, listed=ListedObject(len(picture(0)), 0))
        for file in discover(small_set(memory_bucket, 1)).files[1:]
    ]
    assert [scan(files, memory=tmp_path / "scan.parquet").opened for _ in range(2)] == [1, 1]


def test_objects_that_are_gone_too_large_or_changed_since_the_listing_are_rejected(memory_bucket: RemotePath) -> None:
    data = picture(0)
    put(memory_bucket, {f"real/{name}.png": data for name in ("good", "gone", "large", "shorter")})
    files = {Path(file.path).stem: file for file in discover(memory_bucket).files}
    (memory_bucket / "real/gone.png").unlink()
    put(memory_bucket, {"real/shorter.png": data[:50]})
    files["large"] = replace(files["large"], listed=ListedObject(MAX_BYTES + 1, 1))
    files["absent"] = replace(files["good"], path="real/absent.png", listed=None)
    result = scan(list(files.values()))
    assert [row.file.path for row in result.rows] == ["real/good.png"]
    assert {reject.path: reject.reason for reject in result.rejects} == {
        f"{memory_bucket}/real/gone.png": "missing",
        f"{memory_bucket}/real/large.png": "too-large",
        f"{memory_bucket}/real/shorter.png": "changed-while-reading",
        f"{memory_bucket}/real/absent.png": "missing",
    }


def test_a_store_that_shows_nothing_more_ends_the_scan_and_what_was_read_is_remembered(
    tmp_path: Path, memory_bucket: RemotePath
) -> None:
    fsspec.register_implementation("forbidden", Forbidden, clobber=True)
    put(memory_bucket, {"fake/0.png": b"x", "real/0.png": picture(0), "train/real/1.png": picture(1)})
    place = RemotePath(str(memory_bucket).replace("memory://", "forbidden://"))
    result = scan(discover(place).files)
    assert [(reject.reason, reject.detail) for reject in result.rejects] == [("unreadable", "Access Denied")]
    put(memory_bucket, {f"train/fake/{number:03}.png": b"x" for number in range(64)})
    files = [*discover(place).files[1:2], *(f for f in discover(place).files if f.label), *discover(place).files[2:3]]
    with pytest.raises(UserError, match=rf"{place}/train/fake/06\d.png: cannot be read \(Access Denied\), nor could"):
        scan(files, memory=tmp_path / "scan.parquet")
    assert scan(files[:1], memory=tmp_path / "scan.parquet").remembered == 1


def test_the_memory_of_scans_may_lie_in_a_store_too(memory_bucket: RemotePath) -> None:
    memory = memory_bucket / "cache" / "scan.parquet"
    files = discover(small_set(memory_bucket / "set")).files
    assert [scan(files, memory=memory).opened for _ in range(2)] == [6, 0]
    memory.write(b"PAR1 no")
    assert scan(files, memory=memory).opened == 6


# Tables


def test_a_table_may_lie_anywhere_and_name_objects_and_files_anywhere(
    tmp_path: Path, memory_bucket: RemotePath
) -> None:
    put(
        memory_bucket,
        {"set/a.png": picture(1), "set/sub/b.png": picture(2), "c.png": picture(3), "other/d.png": picture(4)},
    )
    (tmp_path / "e.png").write_bytes(picture(5))
    rows = ["a.png,0", "./sub/b.png,1", "../c.png,0", f"{memory_bucket}/other/d.png,1", f"{tmp_path}/e.png,0"]
    there = memory_bucket / "set" / "t.csv"
    there.write("\n".join(["path,label", *rows]).encode())
    files = discover(there).files
    top, rest = str(memory_bucket), str(tmp_path).removeprefix("/")
    assert [(file.root, file.path) for file in files] == [
        (f"{top}/set", "a.png"),
        (f"{top}/set", "sub/b.png"),
        (top, "c.png"),
        (top, "other/d.png"),
        ("/", f"{rest}/e.png"),
    ]
    keys = [content_key(picture(number)) for number in (1, 2, 3, 4, 5)]
    assert [row.key for row in scan(files).rows] == keys
    here = tmp_path / "t.parquet"
    names = [f"{memory_bucket}/set/a.png", f"{memory_bucket}/set/./x/../sub/b.png", "e.png", f"file://{tmp_path}/e.png"]
    pq.write_table(pa.table({"path": names, "label": [0, 1, 0, 0]}), here)
    assert [row.key for row in scan(discover(here).files).rows] == [*keys[:2], keys[4], keys[4]]
    (memory_bucket / "t.parquet").write(here.read_bytes())
    assert [row.file.label for row in scan(discover(memory_bucket / "t.parquet").files[:2]).rows] == [0, 1]


def test_objects_that_a_table_names_are_known_from_the_listings_of_their_folders(
    tmp_path: Path, memory_bucket: RemotePath
) -> None:
    put(
        memory_bucket,
        {"x/a.png": picture(1), "y/b.png": picture(2), "t.csv": b"path,label\nx/a.png,0\ny/b.png,1\nx/no.png,1"},
    )
    memory = tmp_path / "scan.parquet"
    files = discover(memory_bucket / "t.csv").files
    first = scan(files, memory=memory)
    assert [reject.reason for reject in first.rejects] == ["missing"]
    memory_bucket.remove()
    second = scan(files, memory=memory)
    assert (first.opened, second.opened, second.rows) == (2, 0, first.rows)


def test_a_folder_that_may_be_read_but_not_listed_serves_a_table(tmp_path: Path, memory_bucket: RemotePath) -> None:
    fsspec.register_implementation("forbidden", Forbidden, clobber=True)
    put(memory_bucket, {"real/unlisted/a.png": picture(1), "real/t.csv": b"path,label\nunlisted/a.png,0"})
    files = discover(RemotePath(f"{memory_bucket}/real/t.csv".replace("memory://", "forbidden://"))).files
    assert [file.listed for file in files] == [None]
    assert [scan(files, memory=tmp_path / "scan.parquet").opened for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("../../../a.png", "row 1: the path .* leads out of its bucket"),
        ("memory:///", "row 1: .*names no bucket"),
        ("https://localhost/a.png", "row 1: .*web address"),
        ("nowhere://x/a.png", "unknown kind of store"),
    ],
)
def test_a_path_that_names_no_object_is_refused(memory_bucket: RemotePath, path: str, message: str) -> None:
    put(memory_bucket, {"t.csv": f"path,label\n{path},0\n".encode()})
    with pytest.raises(UserError, match=message):
        discover(memory_bucket / "t.csv")


def test_a_table_in_a_store_that_is_none_is_refused(memory_bucket: RemotePath) -> None:
    put(memory_bucket, {"a.parquet": b"no parquet", "a.dat": b"x", "b.csv": b"path,label\n"})
    for name, message in (("a.parquet", "read as a table"), ("a.dat", r"is a file\. Give"), ("b.csv", "no rows")):
        with pytest.raises(UserError, match=f"{memory_bucket}/{name}: .*{message}"):
            discover(memory_bucket / name)


# Tars


def test_images_in_tars_of_a_store_are_read_where_they_lie(tmp_path: Path, memory_bucket: RemotePath) -> None:
    for tar in ("train/0.tar", "test/1.tar"):
        members = [*sample("a", picture(len(tar)), label=0), *sample("x/b", picture(3), label=1, split="val")]
        write_tar(tmp_path / tar, [*members, ("note.txt", b"x" * 3000)])
    memory_bucket.upload(tmp_path)
    here, there = discover(tmp_path), discover(memory_bucket)
    assert there.layout == "webdataset"
    assert [(f.path, f.label, f.split) for f in there.files] == [(f.path, f.label, f.split) for f in here.files]
    memory = tmp_path / "scan.parquet"
    rows = scan(there.files, memory=memory).rows
    assert [row[1:] for row in rows] == [row[1:] for row in scan(here.files).rows]
    assert [read_source(row.file, row.key) for row in rows][:1] == [picture(len("test/1.tar"))]
    assert discover(memory_bucket / "test" / "1.tar").files[0].root == f"{memory_bucket}/test"
    memory_bucket.remove()
    assert scan(there.files, memory=memory).remembered == len(rows)


def test_a_tar_that_changes_after_it_was_listed_gives_no_image(tmp_path: Path, memory_bucket: RemotePath) -> None:
    def write(seed: int) -> list[SourceFile]:
        members = [*sample("a", picture(seed), label=0), *sample("b", picture(seed + 1), label=1)]
        (memory_bucket / "a.tar").write(write_tar(tmp_path / "a.tar", members).read_bytes())
        return discover(memory_bucket).files

    files = write(1)
    rows = scan(files).rows
    write(3)
    changed = scan(files)
    assert (changed.rows, [reject.reason for reject in changed.rejects]) == ([], ["changed-while-reading"] * 2)
    with pytest.raises(ImageRejected, match="changed"):
        read_source(rows[0].file, rows[0].key)
    (memory_bucket / "a.tar").unlink()
    assert [reject.detail for reject in scan(files).rejects] == ["its tar is gone"] * 2


def test_a_tar_that_is_cut_off_is_one_sentence_with_its_url(tmp_path: Path, memory_bucket: RemotePath) -> None:
    data = write_tar(tmp_path / "a.tar", sample("a", picture(1), label=0)).read_bytes()
    put(memory_bucket, {"a.tar": data[:700], "b.tar": data})
    with pytest.raises(UserError, match=f"{memory_bucket}/a.tar: .*truncated"):
        discover(memory_bucket)
