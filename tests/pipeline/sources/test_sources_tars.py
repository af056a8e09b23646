"""Webdataset tars as a source: what is read of them, what is refused, and that a second build opens no image."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import webdataset
from distil_cache.cache.gather import gather
from distil_cache.cache.records.datasets import revision_of
from distil_cache.cache.store import Cache
from distil_cache.errors import UserError
from distil_cache.images.file import ImageRejected, content_key
from distil_cache.pipeline.scan.rows import to_table
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.archives.tar_index import read_tar_index
from distil_cache.pipeline.sources.discover import discover
from distil_cache.pipeline.sources.file import ReadingOptions, TarMember
from distil_cache.pipeline.sources.read import read_source
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bytes import bad_files
from remote_sources import picture
from tar_bytes import odd_member, pax, sample, write_headers, write_tar


def test_images_in_a_tar_are_read_where_they_lie_with_what_the_json_says(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "a.tar",
        [
            *sample("one", picture(1), label=0, split="test", group="imagenet"),
            *sample("sub/two", picture(2), "img.png", label="fake", generator="sd14"),
        ],
    )
    found = discover(tmp_path / "a.tar")
    assert found.layout == "webdataset"
    described = [(file.path, file.label, file.split, file.generator, file.family, file.group) for file in found.files]
    assert described == [
        ("a.tar/one.png", 0, "test", "real", "real", "imagenet"),
        ("a.tar/sub/two.img.png", 1, "train", "sd14", "diffusion", ""),
    ]
    rows = scan(found.files).rows
    assert [read_source(row.file, row.key) for row in rows] == [picture(1), picture(2)]
    assert [row.key for row in rows] == [content_key(picture(1)), content_key(picture(2))]
    assert [child.name for child in tmp_path.iterdir()] == ["a.tar"]


def test_a_tar_that_goes_on_in_zeros_is_not_read_to_their_end(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", sample("one", picture(1), label=0))
    os.truncate(path, 2**26)
    assert len(read_tar_index(path).entries) == 2
    os.truncate(path, 2**42)
    with pytest.raises(UserError, match="has more than 67,108,864 zeros behind its end"):
        read_tar_index(path)


def test_what_the_webdataset_package_writes_is_read(tmp_path: Path) -> None:
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=2, verbose=0) as sink:
        for number in range(5):
            sink.write({"__key__": f"{number:04d}", "png": picture(number), "cls": number % 2})
    found = discover(tmp_path)
    assert [(file.label, file.split) for file in found.files] == [(number % 2, "train") for number in range(5)]
    assert [row.key for row in scan(found.files).rows] == [content_key(picture(number)) for number in range(5)]


@pytest.mark.parametrize(
    ("tar", "split"),
    [
        ("val-000000.tar", "val"),
        ("imagenet_test_03.tar", "test"),
        ("000.tar", "train"),
        ("test/000.tar", "test"),
        ("validation/a/train-0.tar", "train"),
        ("contest-0.tar", "train"),
    ],
)
def test_the_split_is_in_the_tars_name_or_in_its_folders(tmp_path: Path, tar: str, split: str) -> None:
    write_tar(tmp_path / tar, sample("a", picture(1), label=0))
    assert [file.split for file in discover(tmp_path, "webdataset").files] == [split]


def test_tars_in_split_folders_are_recognised_and_an_image_layout_comes_first(tmp_path: Path) -> None:
    write_tar(tmp_path / "test" / "0.tar", sample("a", picture(1), label=1))
    assert discover(tmp_path).layout == "webdataset"
    (tmp_path / "test" / "real").mkdir()
    (tmp_path / "test" / "real" / "x.png").write_bytes(picture(2))
    assert discover(tmp_path).layout == "real-fake"
    assert discover(tmp_path, "webdataset").layout == "webdataset"


def test_long_names_of_each_tar_dialect_are_whole(tmp_path: Path) -> None:
    name = "é" * 90 + "/" + "k" * 120
    for dialect in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        path = write_tar(tmp_path / f"{dialect}.tar", sample(name, picture(1), label=0), dialect)
        assert [entry.name for entry in read_tar_index(path).entries] == [f"{name}.png", f"{name}.json"]
        assert len(scan(discover(path).files).rows) == 1


def test_folders_and_clutter_are_passed_over_and_the_rest_is_counted(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(odd_member("./", tarfile.DIRTYPE))
        for name, data in [
            *sample("./a", picture(1), label=0),
            ("./._a.png", b"x"),
            ("a.txt", b"x"),
            ("b.json", b"{}"),
        ]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    found = discover(tmp_path)
    assert [file.path for file in found.files] == ["a.tar/a.png"]
    assert found.account.not_images == 2


def test_tars_one_behind_the_other_in_a_file_are_read_to_the_end(tmp_path: Path) -> None:
    one = write_tar(tmp_path / "1.tar", sample("a", picture(1), label=0)).read_bytes()
    two = write_tar(tmp_path / "2.tar", sample("b", picture(2), label=1)).read_bytes()
    whole = tmp_path / "both" / "a.tar"
    whole.parent.mkdir()
    for data in (one + two, one + bytes(512 * 5000) + two):
        whole.write_bytes(data)
        assert [file.path for file in discover(whole).files] == ["a.tar/a.png", "a.tar/b.png"]
        assert [row.key for row in scan(discover(whole).files).rows] == [
            content_key(picture(1)),
            content_key(picture(2)),
        ]
    for data, sentence in [
        (one + one, "two members called a.png"),
        (one + b"x" * 512, "behind its end, at byte"),
        (one + b"notes", "behind its end, at byte"),
        (one + two[:700], "in the middle of b.png"),
        (one + two[: -(-len(two.rstrip(b"\0")) // 512) * 512], "no end marker"),
    ]:
        whole.write_bytes(data)
        with pytest.raises(UserError, match=sentence):
            discover(whole)


def test_labels_of_samples_are_words_or_numbers_and_what_was_taken_is_noted(tmp_path: Path) -> None:
    def labels(*samples: list[tuple[str, bytes]], **said: int) -> tuple[list[int], str]:
        path = write_tar(tmp_path / "a.tar", [member for members in samples for member in members])
        found = discover(path, None, ReadingOptions(labels=said))
        return [file.label for file in found.files], " ".join(found.account.notes)

    one, two = picture(1), picture(2)
    assert labels(sample("a", one, label="Human"), sample("b", two, label="AI-generated"))[0] == [0, 1]
    assert labels(sample("a", one, label=1.0), sample("b", two, label=True))[0] == [1, 1]
    assert labels([("a.png", one), ("a.cls", b"1.0\n")], [("b.png", two), ("b.cls", b"0")])[0] == [1, 0]
    assert "--labels 0=fake,1=real" in labels(sample("a", one, label=0), sample("b", two, label=1))[1]
    turned = sample("a", one, label=1, generator="real"), sample("b", two, label=0, generator="adm")
    assert labels(*turned) == ([0, 1], "Labels are from `label`: 1 = real, 0 = generated, as the generators say.")
    assert labels(sample("a", one, label="dog"), sample("b", two, label="cat"), dog=0, cat=1)[0] == [0, 1]


REFUSED = {
    "leads out of the tar": [[odd_member("../a.png", tarfile.REGTYPE)], [odd_member("/etc/a.png", tarfile.REGTYPE)]],
    "a link, a device": [
        [odd_member("a.png", tarfile.SYMTYPE, linkname="/etc/passwd")],
        [odd_member("a.png", tarfile.LNKTYPE, linkname="b.png")],
        [odd_member("a.png", tarfile.CHRTYPE)],
        [odd_member("a.png", tarfile.FIFOTYPE)],
        [odd_member("a.png", tarfile.GNUTYPE_SPARSE)],
    ],
    "two members called a.png": [[odd_member("a.png", tarfile.REGTYPE), odd_member("./a.png", tarfile.REGTYPE)]],
    "in the middle of": [[odd_member("a.png", tarfile.REGTYPE, size=10**12)], [pax("a.png", 0, {"size": "9" * 15})]],
    "pax header of|cannot be read": [[odd_member("x", tarfile.XHDTYPE, size=1024)]],
    "impossible size": [[pax("a.png", 0, {"size": "-5"})], [pax("a.png", 0, {"size": "9" * 30})]],
    "sparse": [[pax("a.png", 0, {"GNU.sparse.major": "1"})]],
}  # fmt: skip


@pytest.mark.parametrize(
    ("sentence", "headers"), [(sentence, headers) for sentence, cases in REFUSED.items() for headers in cases]
)
def test_a_crafted_tar_is_one_clear_error(tmp_path: Path, sentence: str, headers: list[tarfile.TarInfo]) -> None:
    path = write_headers(tmp_path / "a.tar", headers)
    with pytest.raises(UserError, match=f"a.tar: .*({sentence})"):
        discover(path)


def test_a_tar_that_is_cut_off_compressed_or_no_tar_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "a.tar", sample("a", picture(1), label=0)).read_bytes()
    for data, sentence in [
        (whole[:700], "truncated"),
        (whole[:-10240], "truncated"),
        (b"\x1f\x8b" + bytes(range(256)) * 4, "uncompress it"),
        (b"", "no end marker"),
    ]:
        (tmp_path / "a.tar").write_bytes(data)
        with pytest.raises(UserError, match=sentence):
            discover(tmp_path / "a.tar")


@given(position=st.integers(0, 3000), value=st.integers(0, 255))
@settings(max_examples=150)
def test_a_changed_byte_is_read_or_refused_but_never_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "a.tar"
    data = bytearray(write_tar(path, sample("a" * 120, b"not an image", label=0)).read_bytes())
    data[position] = value
    path.write_bytes(data)
    try:
        files = discover(path).files
    except UserError:
        return
    for file in files:
        assert isinstance(file.member, TarMember)
        assert file.member.offset + file.member.length <= len(data)


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ([("a.png", b"x")], "needs a label"),
        ([("a.png", b"x"), ("a.cls", b"7")], "needs a label"),
        ([*sample("a", b"x", label=0, split="holdout")], "'holdout' is none of"),
        ([*sample("a", b"x", label=0, generator=7)], "not a string"),
        ([("a.png", b"x"), ("a.json", b"[1]")], "not an object"),
        ([("a.png", b"x"), ("a.json", b"{")], "cannot be read"),
        ([("a.png", b"x"), ("a.json", b" " * 70_000)], "70,000 bytes"),
        ([("a.png", b"x"), ("a.mask.png", b"x"), ("a.cls", b"1")], "Leave one in each sample"),
        ([("a.image.npy", b"x"), ("a.cls", b"1")], "no image in its 1 tars"),
    ],
)
def test_a_sample_that_says_too_little_or_too_much_is_named(
    tmp_path: Path, members: list[tuple[str, bytes]], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        discover(write_tar(tmp_path / "a.tar", members))


def test_bad_images_in_a_tar_are_rejected_with_the_reasons_that_files_have(tmp_path: Path) -> None:
    bad = {name: value for name, value in bad_files().items() if value[2] == "scan"}
    members = [member for name, (data, _, _) in bad.items() for member in _labelled(name, data)]
    result = scan(discover(write_tar(tmp_path / "a.tar", [*members, *sample("good", picture(1), label=0)])).files)
    assert {reject.path: reject.reason for reject in result.rejects} == {
        f"{tmp_path}/a.tar/{name}": reason for name, (_, reason, _) in bad.items()
    }
    assert len(result.rows) == 1


def _labelled(name: str, data: bytes) -> list[tuple[str, bytes]]:
    stem, _, extension = name.partition(".")
    return sample(f"{stem}", data, extension, label=1)


def test_an_unchanged_tar_is_not_opened_for_images_again_and_a_changed_one_is(tmp_path: Path) -> None:
    memory = tmp_path / "scan.parquet"
    tar = write_tar(tmp_path / "a.tar", [*sample("a", picture(1), label=0), *sample("b", picture(2), label=1)])
    assert (scan(discover(tar).files, memory=memory)).opened == 2
    again = scan(discover(tar).files, memory=memory)
    assert (again.opened, again.remembered) == (0, 2)
    write_tar(tar, [*sample("a", picture(3), label=0), *sample("b", picture(2), label=1)])
    changed = scan(discover(tar).files, memory=memory)
    assert changed.opened == 2
    assert [row.key for row in changed.rows] == [content_key(picture(3)), content_key(picture(2))]


def test_a_tar_that_changes_after_it_was_listed_gives_no_image(tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", sample("a", picture(1), label=0))
    (row,) = scan(discover(tar).files).rows
    write_tar(tar, sample("a", picture(2), label=0))
    os.utime(tar, ns=(1, 1))
    with pytest.raises(ImageRejected, match="changed after it was listed"):
        read_source(row.file, row.key)
    assert [reject.reason for reject in scan([row.file]).rejects] == ["changed-while-reading"]
    tar.unlink()
    with pytest.raises(ImageRejected, match="its tar is gone"):
        read_source(row.file, row.key)


def test_a_build_from_tars_makes_the_rows_of_a_build_from_the_same_files(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from distil_cache.pipeline.build import run_build
    from distil_cache.pipeline.config import BuildConfig
    from distil_cache.progress import Silent
    from small_models import STEPS, write_adm

    adm = write_adm(tmp_path / "adm.safetensors")
    members = []
    for number in range(6):
        kind = ("real", "fake")[number % 2]
        file = tmp_path / "files" / kind / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture(number))
        members += sample(f"{number}", picture(number), label=kind)
    write_tar(tmp_path / "tars" / "train-0.tar", members)

    def build(source: str, cache: str) -> dict[str, Any]:
        config = BuildConfig.checked(
            sources=(tmp_path / source,), cache=tmp_path / cache, dataset="d", adm=str(adm), steps=STEPS,
            features=("image,eps",), batch_size=4, decode_threads=2, device="cpu",
        )  # fmt: skip
        return run_build(config, Silent())

    plain, tarred = build("files", "c1"), build("tars", "c2")
    assert (tarred["revision"], tarred["samples"]) == (plain["revision"], 6)
    again = build("tars", "c2")
    assert Counter(opened=again["opened"], adm=again["adm_calls"], decoded=again["decoded"]) == Counter()
    stores = [next(s for s in Cache.open(tmp_path / c).features() if s.feature == "eps") for c in ("c1", "c2")]
    keys = [content_key(picture(number)) for number in range(6)]
    assert (gather(stores[0], keys) == gather(stores[1], keys)).all()
    rows = scan(discover(tmp_path / "tars").files).rows
    assert revision_of(to_table(rows)) == plain["revision"]


@pytest.mark.parametrize("fields", [({"label_str": "real"}, {"label_str": "fake"}), ({"isReal": 1}, {"isReal": 0})])
def test_other_fields_settle_what_the_numbers_of_labels_mean(
    tmp_path: Path, fields: tuple[dict[str, object], dict[str, object]]
) -> None:
    members = [*sample("a", b"x", label=1, **fields[0]), *sample("b", b"x", label=0, **fields[1])]
    write_tar(tmp_path / "a.tar", members)
    assert [(file.path, file.label) for file in discover(tmp_path / "a.tar").files] == [
        ("a.tar/a.png", 0),
        ("a.tar/b.png", 1),
    ]
