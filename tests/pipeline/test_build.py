"""A build from end to end, on a small random ADM: what is computed, reused, rejected, and what changes a fingerprint."""

from __future__ import annotations

import json
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.cache.gather import gather
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.errors import UsageError, UserError
from distil_cache.features.walk import to_signal
from distil_cache.models.backbones import load_teacher
from distil_cache.models.diffusion.checkpoints import load_adm
from distil_cache.models.diffusion.noise_schedule import respace
from distil_cache.models.weights import read_metadata, read_state_dict
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.execution.context import TaskContext
from distil_cache.pipeline.execution.networks import placed
from distil_cache.pipeline.planning.prepare import prepare
from distil_cache.progress import Silent
from image_bytes import bad_files, noise, saved
from maintained_cache import checksums
from plain_extract import extract
from small_models import STEPS, write_adm, write_images, write_material, write_teacher

PER_CLASS = 5


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ADM, a small teacher, and 10 train and 10 test images."""
    return write_material(tmp_path_factory.mktemp("material"), {"train": PER_CLASS, "test": PER_CLASS})


@pytest.fixture(scope="module")
def built(material: Path) -> tuple[Path, dict[str, Any]]:
    """A cache that nothing disturbed, and what its build returned."""
    return material / "cache", build(material, material / "cache")


def build(material: Path, cache: Path, *, dry_run: bool = False, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "sources": (material / "images",),
        "cache": cache,
        "dataset": "noise",
        "adm": str(material / "adm.safetensors"),
        "teacher": "small",
        "teacher_weights": material / "teacher.safetensors",
        "steps": STEPS,
        "batch_size": 4,
        "shard_size": 4,
        "decode_threads": 2,
        "device": "cpu",
    }
    return run_build(BuildConfig.checked(**{**values, **changes}), Silent(), dry_run=dry_run)


def features_of(result: dict[str, Any]) -> dict[str, str]:
    return {name: row["fingerprint"] for name, row in result["features"].items()}


def store(cache: Path, feature: str) -> FeatureStore:
    (found,) = [store for store in Cache.open(cache).features() if store.feature == feature]
    return found


def test_a_build_makes_what_was_asked_with_one_call_for_eps_and_a_whole_path_for_dire(built: Any) -> None:
    _, result = built
    assert result["samples"] == 4 * PER_CLASS
    assert result["adm_calls"] == 2 * PER_CLASS * 8 + 2 * PER_CLASS
    computed = {name: (row["computed"], row["reused"]) for name, row in result["features"].items()}
    assert computed == {"image": (20, 0), "eps": (20, 0), "dire": (10, 0), "teacher": (10, 0)}


def test_a_second_build_makes_no_call_and_opens_and_decodes_no_image(material: Path, built: Any) -> None:
    cache, first = built
    again = build(material, cache)
    assert (again["adm_calls"], again["decoded"], again["opened"]) == (0, 0, 0)
    assert (again["build"], again["revision"]) == (first["build"], first["revision"])
    assert {name: row["reused"] for name, row in again["features"].items()} == {
        "image": 20, "eps": 20, "dire": 10, "teacher": 10,
    }  # fmt: skip


def test_cached_features_are_those_of_the_plain_procedure_on_the_cached_image(material: Path, built: Any) -> None:
    cache, _ = built
    keys = store(cache, "dire").markers()[0].keys
    x = to_signal(torch.from_numpy(gather(store(cache, "image"), keys)))
    # the network with the kernels of a build: a random one amplifies their rounding, see test_adm_golden.py
    adm = placed(load_adm(material / "adm.safetensors").model, "fp32", torch.device("cpu"))
    with torch.inference_mode():
        plain = extract(adm, x, respace(STEPS), {"eps", "dire"})
    assert plain.eps is not None
    assert plain.dire is not None
    eps = torch.from_numpy(gather(store(cache, "eps"), keys)).float()
    assert float((eps - plain.eps).norm() / plain.eps.norm()) < 3e-4
    dire = torch.from_numpy(gather(store(cache, "dire"), keys)).int()
    assert float(((dire - plain.dire.int()).abs() > 0).float().mean()) < 1e-3
    teacher = load_teacher("small", material / "teacher.safetensors").model
    seen = torch.from_numpy(gather(store(cache, "dire"), keys)).float() / 255
    seen = torch.nn.functional.interpolate(seen, size=(14, 14), mode="bilinear", antialias=True)
    with torch.inference_mode():
        views = [teacher((view - 0.5) / 0.5) for view in (seen, seen.flip(-1))]
    cached = torch.from_numpy(gather(store(cache, "teacher"), keys)).float()
    for number, view in enumerate(views):
        assert float((cached[:, number] - view).norm() / view.norm()) < 1e-3


def test_dire_for_images_whose_eps_is_there_costs_the_whole_path_again_and_nothing_else(
    material: Path, tmp_path: Path
) -> None:
    build(material, tmp_path / "c", features=("image,eps",))
    more = build(material, tmp_path / "c", features=("image,eps,dire",))
    assert more["adm_calls"] == 20 * 8
    assert more["features"]["eps"] == {**more["features"]["eps"], "computed": 0, "reused": 20}
    assert more["decoded"] == 0


def test_noise_costs_the_inversion_alone_and_gives_eps_for_nothing(material: Path, tmp_path: Path) -> None:
    result = build(material, tmp_path / "c", features=("eps,noise",))
    assert result["adm_calls"] == 20 * 4
    assert result["features"]["eps"]["computed"] == 20


def test_the_first_noise_of_dnf_is_eps_and_costs_one_call(material: Path, tmp_path: Path) -> None:
    result = build(material, tmp_path / "c", features=("eps,noise",), noise="first")
    assert result["adm_calls"] == 20
    keys = store(tmp_path / "c", "eps").markers()[0].keys
    eps, noise = (gather(store(tmp_path / "c", feature), keys) for feature in ("eps", "noise"))
    np.testing.assert_array_equal(eps, noise)


def test_fewer_calls_make_another_dire_and_the_same_eps(material: Path, built: Any, tmp_path: Path) -> None:
    plan = build(material, tmp_path / "c", features=("image,eps,dire",), calls="fewer", dry_run=True)
    result = build(material, tmp_path / "c", features=("image,eps,dire",), calls="fewer")
    assert plan["adm_calls"] == result["adm_calls"] == 20 * 6  # of four steps all but the third are called, both ways
    features = features_of(result)
    assert features["eps"] == features_of(built[1])["eps"]
    keys = store(tmp_path / "c", "dire").markers()[0].keys
    fewer, every = (gather(store(cache, "dire"), keys) for cache in (tmp_path / "c", built[0]))
    assert not np.array_equal(fewer, every)


@pytest.mark.parametrize("features", ["recon", "eps,recon", "eps,noise,recon", "eps,noise"])
def test_a_partial_inversion_is_partial_whatever_else_is_made_in_the_same_pass(
    material: Path, tmp_path: Path, features: str
) -> None:
    result = build(material, tmp_path / "c", features=(features,), real_step=2)
    assert result["adm_calls"] == 20 * (4 if "recon" in features else 2)
    name = "recon" if "recon" in features else "noise"
    keys = store(tmp_path / "c", name).markers()[0].keys
    x = to_signal(torch.from_numpy(gather(store(tmp_path / "c", "image"), keys)))
    with torch.inference_mode():
        plain = extract(load_adm(material / "adm.safetensors").model, x, respace(STEPS), {name}, real_step=2)
    cached = torch.from_numpy(gather(store(tmp_path / "c", name), keys)).float()
    if plain.recon is not None:  # truncated
        above = (plain.recon + 1) * 127.5 - cached
        assert float(above.min()) > -0.01
        assert 0.9 < float(above.max()) < 1.01
        return
    assert plain.noise_mean is not None
    assert float((cached - plain.noise_mean).abs().max()) < 0.05


def test_a_build_of_images_alone_needs_no_diffusion_model_and_gives_the_same_images(
    material: Path, built: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Path:
        raise AssertionError("nothing is to be fetched")

    monkeypatch.setattr("distil_cache.models.diffusion.checkpoints.download", refuse)
    result = build(material, tmp_path / "c", adm="adm256", features=("image",), image_size=16, steps="ddim20")
    assert result["adm_calls"] == 0
    assert features_of(result)["image"] == features_of(built[1])["image"]
    assert checksums(tmp_path / "c").items() <= checksums(built[0]).items()
    with pytest.raises(AssertionError, match="nothing is to be fetched"):
        build(material, tmp_path / "d", adm="adm256", features=("train:image",), image_size=32, steps="ddim20")


def test_another_teacher_reuses_dire_and_makes_no_call(material: Path, built: Any, tmp_path: Path) -> None:
    cache = shutil.copytree(built[0], tmp_path / "c")
    other = build(material, cache, teacher_weights=write_teacher(tmp_path / "other.safetensors", seed=1))
    assert other["adm_calls"] == 0
    assert other["features"]["teacher"]["computed"] == 10


def test_a_dry_run_predicts_what_the_build_then_does_and_writes_nothing(
    material: Path, built: Any, tmp_path: Path
) -> None:
    _, result = built
    plan = build(material, tmp_path / "none", dry_run=True)
    assert not (tmp_path / "none").exists()
    assert plan["adm_calls"] == result["adm_calls"]
    assert {name: row["missing"] for name, row in plan["features"].items()} == {
        name: row["computed"] for name, row in result["features"].items()
    }
    assert features_of(plan) == features_of(result)
    assert plan["features"]["eps"]["bytes"] == 20 * 3 * 16 * 16 * 2


def test_each_kind_of_bad_file_is_rejected_with_its_reason_and_the_build_goes_on(
    material: Path, tmp_path: Path
) -> None:
    images = shutil.copytree(material / "images", tmp_path / "images")
    fakes = images / "train" / "gen" / "1_fake"
    for name, (data, _, _) in bad_files().items():
        (fakes / name).write_bytes(data)
    both = saved(noise(seed=99))
    (fakes / "both.png").write_bytes(both)
    (images / "train" / "gen" / "0_real" / "both.png").write_bytes(both)
    leak = next((images / "test" / "gen" / "1_fake").iterdir())
    shutil.copy(leak, fakes / "leak.png")

    result = build(material, tmp_path / "c", sources=(images,))
    found = {Path(reject["path"]).name: reject["reason"] for reject in result["rejects"]}
    assert found == {name: reason for name, (_, reason, _) in bad_files().items()} | {"both.png": "label-conflict"}
    assert (result["rejected"], result["label_conflicts"], result["leaked"]) == (len(bad_files()) + 2, 2, 1)
    assert result["samples"] == 20
    assert verify(Cache.open(tmp_path / "c")) == []
    again = build(material, tmp_path / "c", sources=(images,))
    assert (again["adm_calls"], again["decoded"]) == (0, 0)
    assert sorted(map(str, again["rejects"])) == sorted(map(str, result["rejects"]))
    rejects = list(Cache.open(tmp_path / "c").datasets().rejects("noise"))
    assert len(rejects) == result["rejected"] + result["leaked"]


def test_moving_renaming_and_another_batch_size_compute_nothing_new(material: Path, built: Any, tmp_path: Path) -> None:
    cache = shutil.copytree(built[0], tmp_path / "c")
    images = shutil.copytree(material / "images", tmp_path / "elsewhere")
    for number, path in enumerate(sorted(images.rglob("*.png"))):
        path.rename(path.with_name(f"renamed {number}.tar.png"))
    result = build(material, cache, sources=(images,), batch_size=3, shard_size=7)
    assert (result["adm_calls"], result["decoded"], result["revision"]) == (0, 0, built[1]["revision"])


def test_pt_and_safetensors_of_the_same_weights_are_the_same_adm(material: Path, built: Any, tmp_path: Path) -> None:
    torch.save(read_state_dict(material / "adm.safetensors"), tmp_path / "adm.pt")
    flags = tmp_path / "flags.json"
    flags.write_text(read_metadata(material / "adm.safetensors")["flags"])
    plan = build(material, built[0], dry_run=True, adm=str(tmp_path / "adm.pt"), adm_config=flags)
    assert features_of(plan) == features_of(built[1])
    assert plan["adm_calls"] == 0


@pytest.mark.parametrize(
    ("change", "touched"),
    [
        ({"adm": "other"}, {"eps", "recon", "dire", "noise", "teacher"}),
        ({"steps": "ddim2"}, {"recon", "dire", "noise", "teacher"}),
        ({"real_step": 2}, {"recon", "dire", "noise", "teacher"}),
        ({"calls": "fewer"}, {"recon", "dire", "noise", "teacher"}),
        ({"clip": False}, {"eps", "recon", "dire", "noise", "teacher"}),
        ({"image_size": 32}, {"image", "eps", "recon", "dire", "noise", "teacher"}),
        ({"image_preset": "dire"}, {"image", "eps", "recon", "dire", "noise", "teacher"}),
        ({"precision": "bf16"}, {"eps", "recon", "dire", "noise", "teacher"}),
        ({"noise": "first"}, {"noise"}),
        ({"preset": "official-code"}, {"teacher"}),
        ({"train_size": 24}, {"teacher"}),
        ({"teacher_weights": "other"}, {"teacher"}),
        ({"batch_size": 1, "shard_size": 9, "decode_threads": 1}, set()),
    ],
)
def test_a_setting_changes_just_the_fingerprints_that_depend_on_it(
    material: Path, tmp_path: Path, change: dict[str, Any], touched: set[str]
) -> None:
    if change.get("adm") == "other":
        change = {"adm": str(write_adm(tmp_path / "other.safetensors", seed=1))}
    if change.get("teacher_weights") == "other":
        change = {"teacher_weights": write_teacher(tmp_path / "other-teacher.safetensors", seed=1)}
    every = ("image,eps,recon,dire,noise,teacher",)
    before = features_of(build(material, tmp_path / "none", dry_run=True, features=every))
    after = features_of(build(material, tmp_path / "none", dry_run=True, features=every, **change))
    assert {name for name in before if before[name] != after[name]} == touched


def test_a_file_that_changed_after_the_scan_is_rejected_and_wanted_again(material: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", {"train": 2})
    config = BuildConfig.checked(
        sources=(images,), cache=tmp_path / "c", dataset="d", adm=str(material / "adm.safetensors"), steps=STEPS,
        features=("image",),
    )  # fmt: skip
    with ExitStack() as held:
        ready = prepare(config, Silent(), held, dry_run=False)
    files = ready.files()
    changed = ready.plan.tasks[0].keys[0]
    Path(files[changed].location).write_bytes(saved(noise(seed=7)))
    loaded = TaskContext.of(config, ready, files, Silent()).images.load(ready.plan.tasks[0])
    assert list(loaded.gone) == [changed]
    assert loaded.bad == {}
    assert len(loaded.keys) == 3


def test_half_precision_records_how_far_it_is_from_float32(material: Path, tmp_path: Path) -> None:
    build(material, tmp_path / "c", precision="bf16", features=("image,eps,dire",))
    log = (store(tmp_path / "c", "dire").folder / "log.jsonl").read_text()
    deviation = json.loads(log.splitlines()[-1])["deviation_from_float32"]
    assert deviation["samples"] == 4
    assert 0 < deviation["eps_relative"] < 0.1


def test_nothing_usable_is_one_sentence_and_leaves_no_dataset(material: Path, tmp_path: Path) -> None:
    place = tmp_path / "images" / "train" / "gen"
    for name in ("0_real", "1_fake"):
        (place / name).mkdir(parents=True)
        (place / name / "x.jpg").write_bytes(name.encode())
    with pytest.raises(UserError, match="none of the 2 images can be used"):
        build(material, tmp_path / "c", sources=(tmp_path / "images",))
    assert Cache.open(tmp_path / "c").datasets().names() == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dataset": "a/b"}, "--dataset a/b"),
        ({"steps": "ddim60"}, "ddim60"),
        ({"image_size": 17}, "multiple of 2"),
        ({"device": "cuda:99"}, "--device cuda:99"),
        ({"device": "tpu"}, "--device tpu"),
        ({"precision": "tf32"}, "tf32 needs a CUDA device"),
        ({"real_step": 9}, "real_step 9|--real-step 9"),
        ({"teacher": "vgg"}, "backbone vgg"),
        ({"adm": "nowhere.pt"}, "nowhere.pt: no such file"),
    ],
)
def test_a_bad_setting_is_one_sentence_before_any_work(
    material: Path, tmp_path: Path, change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        build(material, tmp_path / "none", dry_run=True, **change)


def test_an_interrupted_feature_is_made_with_the_very_bytes_of_an_undisturbed_build(
    material: Path, built: Any, tmp_path: Path
) -> None:
    """Remove the markers of single shards, as if a kill had come before each, and build again."""
    whole = checksums(built[0])
    for feature in ("image", "eps", "dire", "teacher"):
        cache = shutil.copytree(built[0], tmp_path / feature)
        held = store(cache, feature)
        shard = held.marker_ids()[0]
        (held.shards / f"{shard}.json").unlink()
        assert build(material, cache)["features"][feature]["computed"] == len(
            store(built[0], feature).marker(shard).keys
        )
        assert checksums(cache) == whole
        assert len(list_garbage(Cache.open(cache))) == 1


def test_every_row_of_the_cache_is_finite_and_sound(built: Any) -> None:
    assert verify(Cache.open(built[0])) == []
    for feature in ("eps", "teacher"):
        for marker in store(built[0], feature).markers():
            assert np.isfinite(store(built[0], feature).read(marker.shard)).all()


def test_a_value_of_the_wrong_kind_is_named_with_its_option() -> None:
    with pytest.raises(UsageError, match="--shard-size 0"):
        BuildConfig.checked(sources=("a",), cache="c", dataset="d", shard_size=0)
