"""Wherever one bad item among many is read, whatever it raises sets that item aside, with its reason, and no other."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from distil_cache.cache.store import Cache
from distil_cache.images.file import Limits, content_key
from distil_cache.images.spec import ImageSpec
from distil_cache.inference import decode as inference_decode
from distil_cache.inference.decode import InputDecoder, InputItem
from distil_cache.pipeline import verify_sources as verify_module
from distil_cache.pipeline.audit import files as audit
from distil_cache.pipeline.audit.run import run_audit
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.execution import load
from distil_cache.pipeline.importing import loose_files
from distil_cache.pipeline.importing.import_config import ImportConfig
from distil_cache.pipeline.importing.importer import run_import
from distil_cache.pipeline.scan import scan as scan_module
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources import read
from distil_cache.pipeline.sources.discover import discover
from distil_cache.progress import Silent
from hub_parquet import class_label, images, write_shard
from image_bytes import noise, saved
from loose_files import write_distildire
from small_models import STEPS, write_adm, write_images
from tar_bytes import sample, write_tar

BAD = saved(noise(20, 24, seed=7))


class OddError(Exception):
    """Something that no code expects."""


def odd_for(bad: Callable[..., bool], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, which raises for the arguments that are bad."""

    def odd(*arguments: Any, **options: Any) -> Any:
        if bad(*arguments):
            raise OddError("no \udcff one thought of it")
        return function(*arguments, **options)

    return odd


def is_bad(data: bytes, *_: object) -> bool:
    return data == BAD


def reasons(rejects: Any) -> list[str]:
    return [f"{reject.reason}: {reject.detail}" for reject in rejects]


ODD = "damaged: png: OddError: no \\udcff one thought of it"
ODD_FILE = ODD.replace("png", "file")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of each class, and the bad one."""
    write_images(tmp_path / "images", {"train": 3})
    (tmp_path / "images/train/gen/0_real/bad.png").write_bytes(BAD)
    return tmp_path / "images"


def test_a_header(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = discover(folder).files
    monkeypatch.setattr(read, "read_stable", odd_for(lambda path: path.endswith("bad.png"), read.read_stable))
    found = scan(files)
    assert (len(found.rows), reasons(found.rejects)) == (6, [ODD_FILE])
    monkeypatch.undo()
    monkeypatch.setattr(scan_module, "read_header", odd_for(is_bad, scan_module.read_header))
    found = scan(files)
    assert (len(found.rows), reasons(found.rejects)) == (6, [ODD])


@pytest.mark.parametrize("kind", ["tar", "zip", "parquet"])
def test_a_member_of_an_archive(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [saved(noise(20, 24, seed=number)) for number in range(4)]
    if kind == "tar":
        members = [part for n, data in enumerate(pictures) for part in sample(f"{n}", data, label=n % 2)]
        path = write_tar(tmp_path / "set.tar", members)
        monkeypatch.setattr(read, "_archive_range", odd_for(lambda file, *_: "/2" in file.path, read._archive_range))
    elif kind == "zip":
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for number, data in enumerate(pictures):
                archive.writestr(f"{('real', 'fake')[number % 2]}/{number}.png", data)
        monkeypatch.setattr(read, "inflate", odd_for(lambda _, data: pictures[2] in data, read.inflate))
    else:
        columns = {"image": images(pictures), "label": pa.array([0, 1, 0, 1])}
        features = {"image": {"_type": "Image"}, "label": class_label("real", "fake")}
        path = write_shard(tmp_path / "train.parquet", columns, features)
        monkeypatch.setattr(read, "read_row", odd_for(lambda _, member: member.row == 2, read.read_row))
    found = scan(discover(tmp_path / path.name).files)
    assert (len(found.rows), reasons(found.rejects)) == (3, [ODD_FILE])


@pytest.mark.parametrize("field", ["generator", "family", "group", "path"])
@pytest.mark.parametrize("kind", ["tar", "table"])
def test_a_text_that_is_not_unicode(field: str, kind: str, tmp_path: Path) -> None:
    said: list[dict[str, Any]] = [{"path": f"{n}.png", "label": n % 2, "generator": "g"} for n in range(4)]
    said[2][field] = "\ud800x"
    if kind == "tar":
        parts = [part for n, row in enumerate(said) for part in sample(f"{n}", saved(noise(20, 24, seed=n)), **row)]
        found = discover(write_tar(tmp_path / "set.tar", parts))
    else:
        for number in range(4):
            (tmp_path / f"{number}.png").write_bytes(saved(noise(20, 24, seed=number)))
        (tmp_path / "set.json").write_text(json.dumps(said))
        found = discover(tmp_path / "set.json")
    rejected = [reject for reject in scan(found.files).rejects if reject.reason == "unreadable-name"]
    assert len(rejected) == (kind == "table" or field != "path")  # a tar's path is the name of the member
    for reject in rejected:
        json.dumps(reject.as_json()).encode()
        reject.path.encode()


@pytest.mark.parametrize("name", ["read_source", "decode"])
def test_an_image_of_a_build_which_the_next_build_tries_again(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BuildConfig.checked(
        sources=(folder,), cache=tmp_path / "cache", dataset="d", features=("image",), adm=str(write_adm(tmp_path / "adm.safetensors")),
        steps=STEPS, device="cpu", batch_size=4,
    )  # fmt: skip
    bad = is_bad if name == "decode" else lambda _, key: key == content_key(BAD)
    monkeypatch.setattr(load, name, odd_for(bad, getattr(load, name)))
    result = run_build(config, Silent())
    assert [f"{reject['reason']}: {reject['detail']}" for reject in result["rejects"]] == [
        ODD if name == "decode" else ODD_FILE
    ]
    assert result["features"]["image"]["computed"] == 6
    monkeypatch.undo()
    assert run_build(config, Silent())["features"]["image"]["computed"] == 1


def test_an_image_of_an_audit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "read_source", odd_for(lambda _, key: key == content_key(BAD), audit.read_source))
    result = run_audit([folder])
    assert [f"{reject['reason']}: {reject['detail']}" for reject in result["set_aside"]] == [ODD_FILE]


@pytest.mark.parametrize("name", ["read_image", "decode"])
def test_an_image_that_is_compared_with_its_file(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BuildConfig.checked(
        sources=(folder,), cache=tmp_path / "cache", dataset="d", features=("image",), adm=str(write_adm(tmp_path / "adm.safetensors")),
        steps=STEPS, device="cpu", batch_size=4,
    )  # fmt: skip
    run_build(config, Silent())
    bad = is_bad if name == "decode" else lambda file: file.path.endswith("bad.png")
    monkeypatch.setattr(verify_module, name, odd_for(bad, getattr(verify_module, name)))
    result = verify_module.verify_sources(Cache.open(tmp_path / "cache"), [folder])
    named = result["suspects"] if name == "decode" else result["unreadable"]
    assert len(named) == 1
    assert "OddError" in str(named[0])
    assert result["files"] == 7


def test_a_file_of_an_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_distildire(tmp_path / "data", {"train": 3})
    config = ImportConfig.checked(
        sources=(source,), cache=tmp_path / "cache", dataset="d", kind="distildire", device="cpu", decode_threads=1
    )
    # img000 is also among the files that tell the side, and is compared when they are imported again
    monkeypatch.setattr(loose_files, "load_tensor", odd_for(lambda path: "img000" in path, loose_files.load_tensor))
    result = run_import(config, Silent())
    assert [f"{reject['reason']}: {reject['detail']}" for reject in result["rejects"]] == [ODD_FILE]
    monkeypatch.undo()
    assert run_import(config, Silent())["samples"] == 6
    monkeypatch.setattr(loose_files, "load_tensor", odd_for(lambda path: "img000" in path, loose_files.load_tensor))
    assert run_import(config, Silent())["samples"] == 6


@pytest.mark.parametrize("name", ["bad.png", "bad.mp4"])
def test_an_image_or_a_video_of_a_prediction(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = InputDecoder(ImageSpec(size=16), Limits(), 2, 2)
    (tmp_path / name).write_bytes(BAD)
    (tmp_path / "good.png").write_bytes(saved(noise(20, 24)))
    monkeypatch.setattr(inference_decode, "decode", odd_for(is_bad, inference_decode.decode))
    monkeypatch.setattr(inference_decode, "sample", odd_for(lambda *_: True, inference_decode.sample))
    items = [InputItem.of(number, str(tmp_path / each)) for number, each in enumerate((name, "good.png"), 1)]
    bad, good = decoder.decode(items, 4)
    assert str(bad.rejected) == ODD_FILE
    assert good.rejected is None
    assert good.images[0].dtype == np.uint8
