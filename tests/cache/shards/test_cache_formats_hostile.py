"""Untrusted shards: whatever a file claims, the reader returns the rows or raises one clear error.

The markers here agree with the crafted data in size and checksum, as a hostile cache's would.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from distil_cache.cache.gather import gather
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.shards.format import checksum
from distil_cache.cache.shards.marker import MAX_MARKER_BYTES
from distil_cache.cache.shards.tar import TarLayout, npy_header, ustar_header
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.choices import CodecChoice
from distil_cache.errors import IntegrityError
from patience import PATIENCE

SHAPE = (2, 3, 8, 8)
KEYS = sorted(hashlib.sha256(bytes([number])).hexdigest()[:32] for number in range(4))
ROWS = np.random.default_rng(0).integers(0, 4, (4, *SHAPE), dtype=np.uint8)  # blosc compresses them
LAYOUT = TarLayout("toy", ROWS.dtype, SHAPE)
Change = Callable[[bytearray], None]


class Toy(Spec):
    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1


class Scene:
    """A cache with one shard of four rows, and a folder around it in which nothing must appear."""

    def __init__(self, root: Path, form: str, codec: CodecChoice = "zstd") -> None:
        self.root = root
        self.cache = Cache.create(root / "cache")
        store = self.cache.feature(Toy(), form, codec)
        self.shards = store.shards
        self.marker = store.commit(KEYS, ROWS)
        self.data = self.shards / self.marker.data
        self.chunks = self.data if form == "webdataset" else next(p for p in self.data.glob("c/**/*") if p.is_file())

    def craft(self, change: Change) -> None:
        data = bytearray(self.chunks.read_bytes())
        change(data)
        self.chunks.write_bytes(data)
        self.rewrite_marker()

    def rewrite_marker(self, **changes: object) -> None:
        size, sha256 = checksum(self.data)
        fields = json.loads(self.marker.model_dump_json()) | {"bytes": size, "sha256": sha256} | changes
        (self.shards / f"{self.marker.shard}.json").write_text(json.dumps(fields))

    def store(self) -> FeatureStore:
        return self.cache.feature(Toy())

    def assert_refused(self, says: str = "") -> None:
        before = sorted(self.root.rglob("*"))
        with pytest.raises(IntegrityError, match=says) as caught:
            self.store().read(self.marker.shard)
        assert "\n" not in str(caught.value)
        assert [problem.shard for problem in verify(self.cache)] == [self.marker.shard]
        assert sorted(self.root.rglob("*")) == before


@pytest.fixture
def tar(tmp_path: Path) -> Scene:
    return Scene(tmp_path, "webdataset")


@pytest.fixture
def zarr(tmp_path: Path) -> Scene:
    return Scene(tmp_path, "zarr")


@pytest.fixture(params=["zstd", "lz4"])
def compressed(tmp_path: Path, request: pytest.FixtureRequest) -> Scene:
    return Scene(tmp_path, "zarr", request.param)


def member(name: str, size: int = 512, **fields: Any) -> bytes:
    """The first block of a tar member, as Python writes it."""
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


NAME = f"{KEYS[1]}.toy.npy"
SIZE = len(npy_header(ROWS.dtype, SHAPE)) + ROWS[0].nbytes


def test_a_member_header_like_the_writers_is_accepted(tar: Scene) -> None:
    tar.craft(lambda data: put(data, ustar_header(NAME, SIZE)))
    np.testing.assert_array_equal(tar.store().read(tar.marker.shard), ROWS)


@pytest.mark.parametrize(
    "header",
    [
        ustar_header("../../../../../../tmp/x.toy.npy", SIZE),
        ustar_header(f"/etc/{NAME}", SIZE),
        ustar_header(f"{KEYS[0]}.toy.npy", SIZE),  # twice the same member
        ustar_header(f"{KEYS[1]}.eps.npy", SIZE),
        ustar_header(NAME, 8**11 - 1),
        ustar_header(NAME, 0),
        member(NAME, 2**60),
        member(NAME, SIZE, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member(NAME, SIZE, type=tarfile.LNKTYPE, linkname=f"{KEYS[0]}.toy.npy"),
        member(NAME, SIZE, type=tarfile.DIRTYPE),
        member(NAME, SIZE, type=tarfile.CHRTYPE, devmajor=1, devminor=5),
        member(NAME, SIZE, type=tarfile.FIFOTYPE),
        member(NAME, SIZE, type=tarfile.GNUTYPE_SPARSE),
        member(NAME, SIZE, type=tarfile.XHDTYPE),
        member(NAME, SIZE, type=tarfile.XGLTYPE),
        member(NAME, SIZE, type=tarfile.GNUTYPE_LONGNAME),
        member(NAME, SIZE, mode=0o4755),
        bytes(512),
        b"\xff" * 512,
    ],
)
def test_a_member_that_is_not_the_rows_own_plain_file_is_refused(tar: Scene, header: bytes) -> None:
    tar.craft(lambda data: put(data, header))
    np.testing.assert_array_equal(tar.store().read(tar.marker.shard, 0, 1), ROWS[:1])
    tar.assert_refused(f"row 1 is not the member {NAME} of its marker")


@pytest.mark.parametrize(
    "change",
    [
        (b"'|u1'", b"'|O' "),
        (b"'|u1'", b"'<f8'"),
        (b"(2, 3, 8, 8)", b"(9, 3, 8, 8)"),
        (b"(2, 3, 8, 8)", b"(9**99,3, 8)"),
        (b"False", b"True "),
        (b"\x93NUMPY\x01", b"\x93NUMPY\x03"),
        (b"'descr'", b"'evil()"),
    ],
)
def test_an_array_header_that_is_not_the_markers_is_refused(tar: Scene, change: tuple[bytes, bytes]) -> None:
    header = npy_header(ROWS.dtype, SHAPE).replace(*change)
    tar.craft(lambda data: put(data, ustar_header(NAME, SIZE) + header))
    tar.assert_refused("row 1 is not the member")


def test_swapped_members_are_refused(tar: Scene) -> None:
    def swap(data: bytearray) -> None:
        one, two = (slice(n * LAYOUT.stride, (n + 1) * LAYOUT.stride) for n in (0, 1))
        data[one], data[two] = data[two], data[one]

    tar.craft(swap)
    tar.assert_refused("row 0 is not the member")


@pytest.mark.parametrize("more", [b"x", bytes(512), member("extra", 0), bytes(10240)])
def test_a_tar_with_more_in_it_is_refused(tar: Scene, more: bytes) -> None:
    tar.craft(lambda data: data.extend(more))
    tar.assert_refused("its size is not that of")


def test_a_tar_that_is_sparse_on_the_disk_and_huge_is_refused_at_once(tar: Scene) -> None:
    os.truncate(tar.data, 2**40)
    fields = json.loads(tar.marker.model_dump_json()) | {"bytes": 2**40}
    (tar.shards / f"{tar.marker.shard}.json").write_text(json.dumps(fields))
    with pytest.raises(IntegrityError, match="its size is not that of"):
        tar.store().read(tar.marker.shard)


@pytest.mark.parametrize(
    ("offsets", "says"),
    [
        ([], "not those of its rows"),
        ([1, 1025, 2049, 3073], "not those of its rows"),
        ([640, 1664, 2688], "3 offsets for 4 rows"),
        ([640, 640, 640, 640], "overlap or leave the file"),
        ([640, 1664, 2688, 10**9], "overlap or leave the file"),
        ([640, 1664, 2688, 10**400], "overlap or leave the file"),
        ([-640, 1664, 2688, 3712], "overlap or leave the file"),
        ([3712, 2688, 1664, 640], "overlap or leave the file"),
        ([640.0, 1664, 2688, 3712], "valid integer"),
        ("640", "offsets: input should be"),
    ],
)
def test_offsets_that_are_not_those_of_the_rows_are_refused(tar: Scene, offsets: object, says: str) -> None:
    tar.rewrite_marker(offsets=offsets)
    tar.assert_refused(says)


@pytest.mark.parametrize(
    ("place", "length", "says"),
    [
        (2**40, None, "not contiguous"),
        (2**64 - 1, 2**64 - 1, "impossible sizes"),
        (0, 2**63, "impossible sizes"),
        (0, 15, "impossible sizes"),
        (1, None, "not contiguous"),
        (0, 100, "not contiguous"),
    ],
)
def test_a_zarr_index_that_points_elsewhere_is_refused(zarr: Scene, place: int, length: int | None, says: str) -> None:
    def change(data: bytearray) -> None:
        start = len(data) - 4 - 16
        _, old = struct.unpack_from("<QQ", data, start)
        struct.pack_into("<QQ", data, start, place, old if length is None else length)

    zarr.craft(change)
    zarr.assert_refused(says)


@pytest.mark.parametrize(
    ("place", "value"),
    [(4, 2**31 - 1), (4, 2**32 - 1), (4, 0), (4, 1), (12, 2**31 - 1), (12, 0), (12, 2**32 - 1)],
)
def test_a_chunk_whose_header_promises_another_size_is_refused_before_it_is_decoded(
    compressed: Scene, place: int, value: int
) -> None:
    compressed.craft(lambda data: struct.pack_into("<I", data, place, value))
    compressed.assert_refused("an unexpected codec or size")


@pytest.mark.parametrize("step", range(1, 5))
def test_a_chunk_of_another_compressor_is_refused(compressed: Scene, step: int) -> None:
    compressed.craft(lambda data: data.__setitem__(2, ((data[2] >> 5) + step) % 5 << 5))
    compressed.assert_refused("an unexpected codec or size")


def test_a_compressed_chunk_that_claims_to_hold_the_rows_as_they_are_is_refused(compressed: Scene) -> None:
    compressed.craft(lambda data: data.__setitem__(2, data[2] | 2))
    compressed.assert_refused("an unexpected codec or size")


@pytest.mark.parametrize(("place", "value"), [(2, 0), (2, 4 << 5), (4, 1), (12, 1)])
def test_a_stored_chunk_whose_header_says_something_else_is_refused(tmp_path: Path, place: int, value: int) -> None:
    scene = Scene(tmp_path, "zarr", "none")
    scene.craft(lambda data: data.__setitem__(place, value))
    scene.assert_refused("an unexpected codec or size")


@pytest.mark.parametrize("value", [0, 1, 2**31 - 1, 2**32 - 1])
def test_a_chunk_with_impossible_blocks_is_refused(compressed: Scene, value: int) -> None:
    compressed.craft(lambda data: struct.pack_into("<I", data, 8, value))
    compressed.assert_refused("cannot be decoded")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda meta, inner: inner.update(index_location="start"), "byte order or index location"),
        (
            lambda meta, inner: inner["codecs"][0].update(configuration={"endian": "big"}),
            "byte order or index location",
        ),
        (lambda meta, inner: inner["codecs"][0].update(configuration=7), "cannot be used"),
        (
            lambda meta, inner: inner["index_codecs"][0].update(configuration={"endian": "big"}),
            "byte order or index location",
        ),
        (lambda meta, inner: inner.update(chunk_shape=[1, 1, 1, 1, 1]), "too small for its index"),
        (lambda meta, inner: inner.update(chunk_shape=[True, 2, 3, 8, 8]), "malformed"),
        (lambda meta, inner: meta.update(shape=meta["shape"] * 1000), "shape or dtype"),
        (lambda meta, inner: meta.update(codecs=None), "cannot be used"),
        (lambda meta, inner: meta.update(codecs=[None]), "cannot be used"),
        (lambda meta, inner: meta.update(fill_value="NaN"), "fill value"),
        (lambda meta, inner: meta.update(attributes="x" * 2**21), "is larger than"),
    ],
)
def test_crafted_zarr_metadata_is_refused(zarr: Scene, change: Callable[[Any, Any], None], says: str) -> None:
    path = zarr.data / "zarr.json"
    meta = json.loads(path.read_text())
    change(meta, meta["codecs"][0]["configuration"])
    path.write_text(json.dumps(meta))
    zarr.rewrite_marker()
    zarr.assert_refused(says)


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"nul", b"[" * 100_000, b'{"shape": ' + b"9" * 5000 + b"}"])
def test_zarr_metadata_that_is_no_json_is_refused(zarr: Scene, text: bytes) -> None:
    (zarr.data / "zarr.json").write_bytes(text)
    zarr.rewrite_marker()
    zarr.assert_refused("zarr.json: cannot be used")


@pytest.mark.parametrize("scene", ["tar", "zarr"])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shape": [2**20, 2**10]}, "bytes of a row are more than"),
        ({"shape": [2**30, 2**30, 2**30]}, "are more than"),
        ({"shape": [1] * 9}, "shape"),
        ({"shape": []}, "shape"),
        ({"shape": [2, 3, 8, 9]}, "shape or dtype|its size is not"),
        ({"dtype": "float16"}, "shape or dtype|its size is not"),
        ({"merged": [KEYS[0], KEYS[0]]}, "named twice"),
        ({"merged": ["../x"]}, "merged"),
        ({"format": "pickle"}, "unknown format"),
    ],
)
def test_a_marker_with_impossible_sizes_is_refused(
    scene: str, request: pytest.FixtureRequest, changes: dict[str, object], says: str
) -> None:
    found: Scene = request.getfixturevalue(scene)
    found.rewrite_marker(**changes)
    found.assert_refused(says)


def test_a_marker_that_names_the_other_format_is_refused(tar: Scene) -> None:
    tar.rewrite_marker(format="zarr", data=tar.marker.data.replace(".tar", ".zarr"))
    with pytest.raises(IntegrityError, match="missing"):
        tar.store().read(tar.marker.shard)
    tar.rewrite_marker(format="zarr")
    tar.assert_refused("unknown format")


def test_a_huge_marker_is_refused_without_reading_it_all(tar: Scene) -> None:
    path = tar.shards / f"{tar.marker.shard}.json"
    os.truncate(path, 2**40)
    with pytest.raises(IntegrityError, match=f"larger than {MAX_MARKER_BYTES:,}"):
        tar.store().read(tar.marker.shard)


def test_a_pipe_instead_of_a_marker_does_not_hang_the_reader(tar: Scene) -> None:
    path = tar.shards / f"{tar.marker.shard}.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(IntegrityError, match="is not a regular file"):
        tar.store().read(tar.marker.shard)


def test_shards_whose_rows_differ_in_shape_are_refused_where_they_meet(tmp_path: Path) -> None:
    store = Cache.create(tmp_path).feature(Toy())
    store.commit(KEYS[:2], ROWS[:2])
    store.commit(KEYS[2:], ROWS[2:, :, :, :4])
    with pytest.raises(IntegrityError, match="rows of different shapes"):
        gather(store, KEYS)


def test_reading_hostile_shards_needs_no_more_memory_than_their_rows(tmp_path: Path) -> None:
    """A process that may take 200 MiB more than it has refuses each of these, though each promises gigabytes."""
    scene, chunks = (Scene(tmp_path / name, "zarr") for name in ("header", "chunks"))
    scene.craft(lambda data: struct.pack_into("<I", data, 4, 2**31 - 1))
    meta = json.loads((chunks.data / "zarr.json").read_text())
    meta["shape"] = meta["chunk_grid"]["configuration"]["chunk_shape"] = [4, 2**26]
    meta["codecs"][0]["configuration"]["chunk_shape"] = [4, 2**26]
    (chunks.data / "zarr.json").write_text(json.dumps(meta))
    chunks.rewrite_marker(shape=[2**26])
    program = """
import resource, sys
from pathlib import Path
from distil_cache.cache.store import Cache
from distil_cache.errors import IntegrityError
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
for root in sys.argv[1:]:
    (store,) = Cache.open(root).features()
    try:
        store.read(store.marker_ids()[0])
    except IntegrityError as error:
        print(error)
"""
    command = [sys.executable, "-c", program, str(scene.cache.root), str(chunks.cache.root)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    header, chunk = result.stdout.splitlines()
    assert (result.returncode, result.stderr) == (0, "")
    assert "an unexpected codec or size" in header
    assert "the chunks are too large" in chunk


def put(data: bytearray, header: bytes) -> None:
    """Overwrite the beginning of the second member."""
    data[LAYOUT.stride : LAYOUT.stride + len(header)] = header
