"""Methods in the real training loop: the cached teacher against one that runs online, and each method from shards."""

from __future__ import annotations

import functools
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.store import Cache
from distil_cache.errors import UserError
from distil_cache.models.backbones import HALF, build_backbone
from distil_cache.report import write_report
from distil_cache.train.config import TrainConfig
from distil_cache.train.data.augment import VALIDATION, Degrader, mix_draws
from distil_cache.train.data.dataset import Batch, FeatureDataset
from distil_cache.train.data.examples import OnlineTeacher
from distil_cache.train.data.rows import find_rows
from distil_cache.train.data.select import split_rows
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import run_evaluation
from distil_cache.train.evaluation.score import predict
from distil_cache.train.methods.method import Degradation
from distil_cache.train.methods.registry import METHODS, find_method
from distil_cache.train.runs.folder import RunFolder
from distil_cache.train.students.pixels import PixelStudent
from run_state import best
from safetensors.torch import load_file, save_file
from small_cache import TRAIN_SIDE, make_cache, rows, teacher_network
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

Made = tuple[Cache, BuildRecord, Path]
FEATURES = ("image", "eps", "dire", "noise")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A cache with all features, its build, and the file of its teacher's weights."""
    folder = tmp_path_factory.mktemp("methods")
    table = [*rows("train", 45, {"adm": 30, "sd": 20}), *rows("test", 8, {"adm": 8})]
    features = {**dict.fromkeys(FEATURES, ("train", "test")), "teacher": ("train",)}
    cache, build = make_cache(folder / "cache", table, features=features)
    save_file(teacher_network().state_dict(), folder / "teacher.safetensors")
    return cache, build, folder / "teacher.safetensors"


def settings(**changes: object) -> TrainConfig:
    return TrainConfig.checked(
        **{"dataset": "pictures", "backbone": "small", "epochs": 1, "batch_size": 16, "lr": 1e-3} | changes
    )


def steps(run: Path, name: str) -> list[float]:
    """A value of every step of a run."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.value for event in events.Scalars(f"batch/{name}")]


def newest_weights(run: Path) -> Tensor:
    """All weights of a student, running statistics included, as one vector."""
    saved = load_file(run / "checkpoints" / json.loads((run / "checkpoints" / "last.json").read_text())["weights"])
    return torch.cat([value.flatten() for name, value in sorted(saved.items()) if value.is_floating_point()])


def test_training_from_cached_teacher_equals_training_with_the_teacher_online(made: Made, tmp_path: Path) -> None:
    """Thirty steps of the real loop over both views: equal but for the float16 in which features are cached, 2^-11."""
    cache = made[0]
    online = {"teacher_online": True, "teacher_weights": str(made[2])}
    trainings = {"cached": {}, "online": online, "alone": {"kd_weight": 0}, "start": {"epochs": 1, "lr": 1e-12}}
    for name, changes in trainings.items():
        run_training(settings(**({"epochs": 5, "kd_weight": 2.0, "lr": 1e-4} | changes)), cache.root, tmp_path / name)
    for what in ("loss", "kd"):
        cached, online_too = (np.array(steps(tmp_path / name, what)) for name in ("cached", "online"))
        assert len(cached) == 30
        np.testing.assert_allclose(cached, online_too, rtol=2**-11)
        assert cached[0] == pytest.approx(online_too[0], rel=1e-5)
    weights = {name: newest_weights(tmp_path / name) for name in trainings}
    moved, apart = (weights["online"] - weights[name] for name in ("start", "cached"))
    assert apart.norm() < 0.005 * moved.norm()
    assert apart.norm() < 0.05 * (weights["online"] - weights["alone"]).norm()
    record = json.loads((tmp_path / "online" / "config.json").read_text())
    assert record["teacher"]["backbone"] == "small"
    assert "teacher" not in record["fingerprints"]


@pytest.mark.parametrize("views", [("identity", "hflip"), ("hflip", "identity")])
def test_the_online_teacher_gives_the_cached_view_of_each_sample(tmp_path: Path, views: tuple[str, ...]) -> None:
    cache, build = make_cache(tmp_path / "cache", rows("train", 20, {"adm": 20}), views=views)
    table = cache.datasets().read("pictures")
    part = FeatureDataset(cache, build, table, ("dire", "teacher"), split="train", purpose="the test")
    teacher = OnlineTeacher(teacher_network(), TRAIN_SIDE, HALF, HALF, {})
    for batch in part.epoch(seed=0, epoch=1, batch_size=16):
        found = teacher(batch.features["dire"], batch.flip)
        torch.testing.assert_close(found, batch.features["teacher"].float(), rtol=2**-11, atol=1e-4)
        unflipped = teacher(batch.features["dire"], torch.zeros_like(batch.flip))
        apart = (unflipped - batch.features["teacher"].float()).abs().flatten(1).max(dim=1).values
        assert torch.equal(apart > 0.1, batch.flip)


def test_the_first_loss_of_official_code_is_what_its_formula_gives_by_hand(made: Made, tmp_path: Path) -> None:
    """JPEG of the image only, CutMix of image, eps and DIRE, teacher on the mixed DIRE, all in [-1, 1], full size."""
    seed = next(seed for seed in range(100) if _first_batch_is_mixed(made, seed))
    config = settings(preset="official-code", teacher="small", teacher_weights=str(made[2]), seed=seed, val_fraction=0)
    found = run_training(config, made[0].root, tmp_path / "run")

    method = find_method("distildire", "official-code")
    batch = _first_batch(made, seed)
    assert method.degradation is not None
    image = Degrader(method.degradation, seed)(batch.features["image"], batch.rows, 1)
    drawn = mix_draws(seed, 1, int(batch.rows[0]))
    side = int((1 - drawn.keep) ** 0.5 * 32)
    top, left = int(drawn.top * 32), int(drawn.left * 32)
    parts = []
    for x in (image / 127.5 - 1, batch.features["eps"].float(), batch.features["dire"] / 127.5 - 1):
        mixed = x.clone()
        mixed[:, :, top : top + side, left : left + side] = x[0, :, top : top + side, left : left + side]
        parts.append(mixed)
    label = drawn.keep * batch.label + (1 - drawn.keep) * batch.label[0]

    torch.manual_seed(seed)
    student = PixelStudent.of("small", 6)
    logit, features = student(dict(zip(("image", "eps"), parts, strict=False)))
    bce = -(0.5 * label * F.logsigmoid(logit) + (1 - label) * F.logsigmoid(-logit)).mean()
    with torch.no_grad():
        kd = ((features - teacher_network()(parts[2])) ** 2).mean()
    assert found["first_loss"] == pytest.approx((bce + kd).item(), rel=1e-4)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (record["train_size"], record["pos_weight"], record["config"]["kd_weight"]) == (32, 0.5, 1.0)
    assert set(record["fingerprints"]) == {"image", "eps", "dire"}


def _first_batch(made: Made, seed: int) -> Batch:
    cache, build, _ = made
    table = split_rows(cache.datasets().read("pictures"), "train", "pictures")
    part = FeatureDataset(cache, build, table, ("image", "eps", "dire"), split="train", purpose="the test")
    return next(iter(part.epoch(seed=seed, epoch=1, batch_size=16)))


def _first_batch_is_mixed(made: Made, seed: int) -> bool:
    drawn = mix_draws(seed, 1, int(_first_batch(made, seed).rows[0]))
    return drawn.mix < 0.5 and drawn.keep < 0.5 and max(drawn.top, drawn.left) < 0.6


@pytest.mark.parametrize(
    ("method", "read"),
    [
        ("dire", {"dire"}),
        ("dnf", {"noise"}),
        ("cnndet", {"image"}),
        ("eps", {"eps"}),
        ("distildire", {"image", "eps", "teacher"}),
    ],
)
def test_each_method_trains_from_its_own_features_and_is_evaluated(
    made: Made, tmp_path: Path, method: str, read: set[str]
) -> None:
    run = tmp_path / "run"
    result = run_training(settings(method=method), made[0].root, run)
    record: dict[str, Any] = json.loads((run / "config.json").read_text())
    assert set(record["fingerprints"]) == read
    assert record["train_size"] == (32 if method == "dnf" else TRAIN_SIDE)
    assert result["last_loss"] == json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    starts = "scratch: method" if METHODS[method].initial == "imagenet" else "scratch"
    assert record["initial_weights"].startswith(starts)
    found = run_evaluation(run, made[0].root, "pictures")
    assert found["counts"] == {"real": 8, "fake": 8}
    assert (len(found["notes"]) > 0) == (METHODS[method].initial == "imagenet" or method == "dnf")
    if method in ("cnndet", "dnf"):
        write_report([run], tmp_path / "report")
        report = (tmp_path / "report" / "report.md").read_text()
    if method == "cnndet":
        assert "CNNDet's own test crops the original" in found["notes"][0]
        assert "run: the cached image is resized before it is tested" in report
    if method == "dnf":
        assert "run: its noise is that of an ADM" in report
        assert "dnf on an ADM's noise, seed 0" in report


def test_cnndet_chooses_its_epoch_on_degraded_images_and_keeps_the_scores_of_clean_ones(
    made: Made, tmp_path: Path
) -> None:
    run_training(settings(method="cnndet", aug_prob=1.0, epochs=1), made[0].root, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    found = folder.load_student()
    student, record = found.student, found.record
    table = pq.read_table(folder.checkpoints / best(folder.folder).scores.name)
    labels = torch.tensor(table["label"].to_pylist(), dtype=torch.float32)
    cache, build, _ = made
    rows = find_rows(record.config, cache, ("image",), {}, "the test").val
    part = FeatureDataset(cache, build, rows, ("image",), split="train", purpose="the test")
    of_training = record.method.degradation
    assert of_training is not None
    settings_of_validation = of_training.of_validation()
    assert settings_of_validation is not None
    degrade = Degrader(settings_of_validation, record.config.seed, VALIDATION)
    given = {"size": TRAIN_SIDE, "transform": "crop", "batch_size": 16, "device": torch.device("cpu")}
    clean = predict(student, part, record.method, **given)  # type: ignore[arg-type]
    degraded = predict(student, part, record.method, **given, change=functools.partial(degrade, epoch=1))  # type: ignore[arg-type]
    assert np.abs(clean - degraded).max() > 1e-3
    assert torch.sigmoid(torch.from_numpy(clean)).tolist() == pytest.approx(table["score"].to_pylist(), abs=1e-6)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    bce = F.binary_cross_entropy_with_logits(torch.from_numpy(degraded), labels).item()
    assert line["val_bce"] == pytest.approx(bce, rel=1e-5)


def test_augmentation_reaches_the_training_and_a_copy_of_it_in_a_worker_process_does_the_same(
    made: Made, tmp_path: Path
) -> None:
    losses = {
        probability: run_training(
            settings(method="cnndet", aug_prob=probability), made[0].root, tmp_path / str(probability)
        )["first_loss"]
        for probability in (0.0, 1.0)
    }
    assert losses[0.0] != losses[1.0]
    degrade = Degrader(Degradation(1.0, (0.0, 3.0), (30, 100), adjustable=True), seed=3)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    there = pickle.loads(pickle.dumps(degrade))
    assert torch.equal(there(images, np.arange(4), 1), degrade(images, np.arange(4), 1))


def as_version_1(run: Path) -> None:
    """Remove the fields that the first version of a run's record did not have."""
    path = run / "config.json"
    record = json.loads(path.read_text())
    names = (
        "dataset select build method kd_weight backbone epochs batch_size lr weight_decay seed train_size val_fraction"
    )
    config = {name: record["config"][name] for name in names.split()}
    old = config | {"dataset": config["dataset"][0], "build": None, "kd_weight": 0.5}
    added = ("initial_weights", "teacher", "imported", "others", "pos_weight", "begun_as")
    kept = {name: value for name, value in record.items() if name not in added}
    path.write_text(json.dumps(kept | {"version": 1, "config": old}))


def test_a_run_of_the_first_version_is_evaluated_but_its_dire_does_not_resume_with_another_window(
    made: Made, tmp_path: Path
) -> None:
    config = {"method": "dire", "schedule": "constant", "kd_weight": 0.5}
    run_training(settings(**config), made[0].root, tmp_path / "run")
    as_version_1(tmp_path / "run")
    found = run_evaluation(tmp_path / "run", made[0].root, "pictures")
    assert found["metrics"]["average_precision"] is not None
    with pytest.raises(UserError, match="was started when method dire resized its images instead of cropping them"):
        run_training(settings(**config | {"epochs": 2}), made[0].root, tmp_path / "run", resume=True)


def test_another_teacher_than_the_cached_one_is_refused_online(made: Made, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_file(build_backbone("small").state_dict(), tmp_path / "other.safetensors")
    config = settings(teacher_online=True, teacher_weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(UserError, match=r"teacher small: the weights of .*other\.safetensors have the digest"):
        run_training(config, made[0].root, tmp_path / "run")
    with pytest.raises(UserError, match=r"teacher small32: this build's teacher is small"):
        run_training(settings(teacher_online=True, teacher="small32"), made[0].root, tmp_path / "run")


def test_an_online_teacher_needs_no_teacher_feature_in_the_cache(made: Made, tmp_path: Path) -> None:
    features = dict.fromkeys(("image", "eps", "dire"), ("train",))
    cache, _ = make_cache(tmp_path / "cache", rows("train", 12, {"adm": 12}), features=features)
    config = settings(teacher_online=True, teacher="small", teacher_weights=str(made[2]))
    run_training(config, cache.root, tmp_path / "run")
    assert min(steps(tmp_path / "run", "kd")) > 0
