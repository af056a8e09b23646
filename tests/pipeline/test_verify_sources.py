"""``cache verify --sources``: cached images that today's rules refuse or decode otherwise are named and left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from distil_cache.cache.lease import read_leases
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.repair import repair
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.set_aside import read_set_aside
from distil_cache.cache.store import Cache
from distil_cache.cli import app
from distil_cache.errors import IntegrityError, UserError
from distil_cache.images.file import ImageRejected, content_key
from distil_cache.pipeline import verify_sources as module
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig, build_requests
from distil_cache.pipeline.execution import load
from distil_cache.pipeline.importing.import_config import ImportConfig
from distil_cache.pipeline.importing.importer import run_import
from distil_cache.pipeline.verify_sources import verify_sources
from distil_cache.progress import Silent
from distil_cache.storage import AnyPath, to_path
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from loose_files import write_distildire
from old_builds import earlier_version
from small_models import STEPS, computed, write_images, write_material
from typer.testing import CliRunner

BAD, OTHER = 0, 1
"""Which of the train fakes is refused, and which is decoded to other pixels than before."""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_material(tmp_path_factory.mktemp("material"), {"train": 3, "test": 2})


def keys_of(material: Path) -> list[str]:
    """Keys of the generated train images."""
    return [content_key(path.read_bytes()) for path in sorted((material / "images/train/gen/1_fake").iterdir())]


@pytest.fixture(scope="module")
def before(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of an earlier version, which decoded every file, and one of them to other pixels."""
    cache = tmp_path_factory.mktemp("before") / "cache"
    with earlier_version(otherwise={keys_of(material)[OTHER]}):
        build(material, cache)
    return cache


@pytest.fixture
def cache(before: Path, tmp_path: Path) -> Path:
    return shutil.copytree(before, tmp_path / "cache")


@contextmanager
def todays_rules(material: Path) -> Iterator[None]:
    """Within it, one file is refused."""
    bad, decode = keys_of(material)[BAD], load.decode

    def stricter(data: bytes, *arguments: Any) -> np.ndarray:
        if content_key(data) == bad:
            raise ImageRejected("truncated", "half of it is grey")
        return decode(data, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "decode", stricter)
        patch.setattr(module, "decode", stricter)
        yield


@pytest.fixture
def _stricter(material: Path) -> Iterator[None]:
    with todays_rules(material):
        yield


def settings(material: Path, cache: AnyPath) -> dict[str, Any]:
    return {
        "cache": cache, "dataset": "noise", "adm": str(material / "adm.safetensors"), "teacher": "small",
        "teacher_weights": material / "teacher.safetensors", "steps": STEPS, "batch_size": 4, "shard_size": 4,
        "decode_threads": 2, "device": "cpu",
    }  # fmt: skip


def build(material: Path, cache: AnyPath, **changes: Any) -> dict[str, Any]:
    values = {**settings(material, cache), "sources": (material / "images",), **changes}
    return run_build(BuildConfig.checked(**values), Silent())


def checked(material: Path, cache: AnyPath, **options: Any) -> dict[str, Any]:
    return verify_sources(Cache.open(cache), [material / "images"], **options)


def table(cache: AnyPath, dataset: str = "noise") -> pa.Table:
    return Cache.open(cache).datasets().read(dataset)


def records(cache: AnyPath, dataset: str = "noise") -> list[BuildRecord]:
    """The build records of the newest revision."""
    opened = Cache.open(cache)
    return [record for record in opened.builds().find(dataset) if record.revision == opened.datasets().head(dataset)]


def test_files_that_decode_as_cached_are_no_suspects(material: Path, cache: Path, tmp_path: Path) -> None:
    build(material, tmp_path / "new")
    extra = write_images(tmp_path / "extra", {"test": 1}, seed=8)
    found = verify_sources(Cache.open(tmp_path / "new"), [material / "images", extra])
    assert (found["files"], found["not_in_cache"], found["suspects"], found["counts"]) == (12, 2, [], [])
    part = verify_sources(Cache.open(tmp_path / "new"), [extra])
    assert (part["datasets"][0]["seen"], part["datasets"][0]["not_seen"]) == (0, 10)


@pytest.mark.usefixtures("_stricter")
def test_suspects_are_named_with_data_set_generator_label_and_reason_and_nothing_is_written(
    material: Path, cache: Path
) -> None:
    head = Cache.open(cache).datasets().head("noise")
    found = checked(material, cache)
    bad, other = keys_of(material)[BAD], keys_of(material)[OTHER]
    by_key = {suspect["key"]: suspect for suspect in found["suspects"]}
    assert by_key.keys() == {bad, other}
    assert by_key[bad]["reason"] == "truncated"
    assert by_key[bad]["detail"] == "half of it is grey"
    assert by_key[other]["reason"] == "decodes-otherwise"
    assert by_key[bad]["rows"] == ["dire", "eps", "image", "teacher"]
    assert {(s["dataset"], s["generator"], s["label"], s["split"]) for s in by_key.values()} == {
        ("noise", "gen", 1, "train")
    }
    assert found["counts"] == [
        {"dataset": "noise", "generator": "gen", "label": 1, "reason": reason, "images": 1}
        for reason in ("decodes-otherwise", "truncated")
    ]
    summary = found["datasets"][0]
    assert (summary["refused"], summary["decoded_otherwise"], summary["not_seen"]) == (1, 1, 0)
    assert Cache.open(cache).datasets().head("noise") == head == summary["newest_revision"]


@pytest.mark.parametrize("form", ["zarr", "webdataset"])
def test_what_is_set_aside_is_in_no_new_revision_and_stays_for_the_old_one(
    material: Path, tmp_path: Path, form: str
) -> None:
    cache = tmp_path / "cache"
    with earlier_version():
        old = build(material, cache, format=form)
    run = tmp_path / "run"
    config = TrainConfig.checked(dataset="noise", method="distildire", backbone="small", epochs=1, batch_size=4)
    run_training(config, cache, run)
    with todays_rules(material):
        found = checked(material, cache, set_aside=True)
    bad = keys_of(material)[BAD]
    assert ([suspect["key"] for suspect in found["suspects"]], found["left"]) == ([bad], [])
    assert bad not in table(cache)["key"].to_pylist()
    assert table(cache).num_rows == 9
    rejects = list(Cache.open(cache).datasets().rejects("noise"))
    assert [(reject["reason"], reject["detail"]) for reject in rejects] == [("truncated", "half of it is grey")]
    assert Path(str(rejects[0]["path"])).is_file()
    (record,) = records(cache)
    assert record.features.keys() == old["features"].keys()
    assert {feature.fingerprint for feature in record.features.values()} == {
        row["fingerprint"] for row in old["features"].values()
    }
    assert verify(Cache.open(cache)) == []
    assert read_leases(cache).live == ()
    collect(Cache.open(cache), delete_them=True, grace_hours=0)
    run_training(config, cache, tmp_path / "again")
    assert bad in Cache.open(cache).datasets().read("noise", old["revision"])["key"].to_pylist()  # the run's
    assert verify(Cache.open(cache)) == []
    with todays_rules(material):
        assert checked(material, cache)["suspects"] == []


def test_images_of_todays_algorithm_that_are_set_aside_are_not_reused_by_key(material: Path, tmp_path: Path) -> None:
    cache, bad = tmp_path / "cache", keys_of(material)[BAD]
    build(material, cache)
    with todays_rules(material):
        assert build(material, cache)["rejected"] == 0  # the row is there, so the file is not decoded
        assert [suspect["key"] for suspect in checked(material, cache, set_aside=True)["suspects"]] == [bad]
    again = build(material, cache)
    assert (again["rejected"], again["rejects"][0]["reason"], again["adm_calls"]) == (1, "truncated", 0)
    assert again["revision"] == Cache.open(cache).datasets().head("noise")
    other = build(material, cache, dataset="other", features=("image,eps,noise",))
    assert (other["rejected"], computed(other)["noise"]) == (1, 9)
    assert bad not in table(cache, "other")["key"].to_pylist()
    config = BuildConfig.checked(**settings(material, cache), sources=(material / "images",))
    assert run_build(config, Silent(), dry_run=True)["features"]["image"]["missing"] == 0
    (request,) = build_requests(**settings(material, cache), sources=(), from_cache=True, perturb=("jpeg:75",))
    assert run_build(request, Silent())["rejected"] == 0


@pytest.mark.usefixtures("_stricter")
def test_after_a_new_build_only_the_images_that_a_training_takes_are_judged(material: Path, cache: Path) -> None:
    build(material, cache)
    assert checked(material, cache)["suspects"] == []


def test_every_data_set_with_the_image_is_served_and_one_that_would_be_empty_is_left(
    material: Path, tmp_path: Path
) -> None:
    cache, bad = tmp_path / "cache", keys_of(material)[BAD]
    build(material, cache, features=("image",))
    only = tmp_path / "only" / "test" / "gen" / "1_fake"
    only.mkdir(parents=True)
    (tmp_path / "only" / "test" / "gen" / "0_real").mkdir()
    shutil.copy(sorted((material / "images/train/gen/1_fake").iterdir())[BAD], only)
    build(material, cache, sources=(tmp_path / "only",), dataset="only", one_class=True, features=("image",))
    with todays_rules(material):
        found = checked(material, cache, set_aside=True)
    assert {suspect["dataset"] for suspect in found["suspects"]} == {"noise", "only"}
    assert found["left"] == ["only: every image would be set aside, so nothing was. Build it from other files."]
    assert bad in table(cache, "only")["key"].to_pylist()
    assert bad not in table(cache)["key"].to_pylist()


@pytest.mark.usefixtures("_stricter")
def test_the_command_ends_with_code_4_until_the_suspects_are_set_aside(material: Path, cache: Path) -> None:
    command = ["cache", "verify", str(cache), "--sources", str(material / "images")]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 4
    said = " ".join(shown.stdout.split())
    assert "noise gen, generated: 1 image truncated" in said
    assert "2 suspects" in said
    assert "--set-aside" in said
    aside = CliRunner().invoke(app, [*command, "--set-aside", "--json"])
    assert (aside.exit_code, len(json.loads(aside.stdout)["suspects"])) == (0, 2)
    after = CliRunner().invoke(app, [*command, str(material / "images")])
    assert "20 files" in after.stdout
    assert (after.exit_code, "no suspect" in after.stdout) == (0, True)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["extra"], "needs --sources"),
        (["--set-aside"], "needs --sources"),
        (["--layout", "cnndet"], "needs --sources"),
        (["--repair", "--sources", "x"], "--set-aside"),
    ],
)
def test_options_that_do_not_go_together_are_refused(cache: Path, options: list[str], word: str) -> None:
    refused = CliRunner().invoke(app, ["cache", "verify", str(cache), *options])
    assert refused.exit_code == 2
    assert word in " ".join(refused.output.replace("│", " ").split())


def test_files_that_cannot_be_read_and_sources_that_are_none_are_said(
    material: Path, cache: Path, tmp_path: Path
) -> None:
    images = shutil.copytree(material / "images", tmp_path / "images")
    path = next((images / "test/gen/0_real").iterdir())
    path.unlink()
    path.symlink_to(tmp_path / "nowhere")
    found = verify_sources(Cache.open(cache), [images])
    assert [entry["reason"] for entry in found["unreadable"]] in ([], ["missing"])
    assert found["datasets"][0]["not_seen"] == 1
    with pytest.raises(UserError, match="no such file or folder"):
        verify_sources(Cache.open(cache), [tmp_path / "absent"])


def test_a_damaged_list_is_said_and_is_not_taken_for_an_empty_one(material: Path, tmp_path: Path) -> None:
    result = build(material, tmp_path / "c", features=("image",))
    store = Cache.open(tmp_path / "c").open_feature(result["features"]["image"]["fingerprint"])
    (store.folder / "set-aside").mkdir()
    (store.folder / "set-aside" / f"{'a' * 16}.json").write_text('{"no key": 1}')
    with pytest.raises(IntegrityError, match="set aside"):
        build(material, tmp_path / "c", features=("image",))
    assert ["set aside" in problem.what for problem in verify(Cache.open(tmp_path / "c"))] == [True]
    repaired = repair(Cache.open(tmp_path / "c"))
    assert (len(repaired["repaired"]), repaired["problems"]) == (1, [])
    assert build(material, tmp_path / "c", features=("image",))["build"] == result["build"]


def test_imported_and_perturbed_images_are_compared_too(material: Path, tmp_path: Path) -> None:
    build(material, tmp_path / "c", features=("image",))
    (request,) = build_requests(
        **settings(material, tmp_path / "c"), sources=(), from_cache=True, perturb=("jpeg:75",), features=("image",)
    )
    run_build(request, Silent())
    files = write_distildire(tmp_path / "files", {"train": 2})
    run_import(
        ImportConfig.checked(sources=(files,), cache=tmp_path / "c", dataset="files", kind="distildire"), Silent()
    )
    found = verify_sources(Cache.open(tmp_path / "c"), [material / "images", files], progress=Silent())
    seen = {entry["name"]: entry["seen"] for entry in found["datasets"]}
    assert seen == {"noise": 10, "noise@jpeg-75": 4, "files": 4}
    assert (found["suspects"], found["not_in_cache"]) == ([], 0)


def test_suspects_are_set_aside_in_an_object_store(material: Path, s3_bucket: str) -> None:
    cache = to_path(f"{s3_bucket}/cache")
    with earlier_version(otherwise={keys_of(material)[OTHER]}):
        build(material, cache, features=("image",))
    assert len(checked(material, cache, set_aside=True)["suspects"]) == 1
    assert table(cache).num_rows == 9
    (store,) = Cache.open(cache).features()
    assert list(read_set_aside(store)) == [keys_of(material)[OTHER]]
    assert verify(Cache.open(cache)) == []
