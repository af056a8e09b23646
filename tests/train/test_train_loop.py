"""The training loop: first loss, repeatability, end, errors."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.store import Cache
from distil_cache.errors import UsageError, UserError
from distil_cache.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from distil_cache.train.config import TrainConfig
from distil_cache.train.data.augment import train_input
from distil_cache.train.data.dataset import Batch, FeatureDataset
from distil_cache.train.data.select import split_rows
from distil_cache.train.engine.loop import run_training
from distil_cache.train.loss import losses
from distil_cache.train.methods.registry import METHODS
from distil_cache.train.runs.checkpoint import seed_everything
from distil_cache.train.students.pixels import PixelStudent
from recorded_progress import Signalling
from run_state import newest
from safetensors.torch import load_file
from small_cache import TRAIN_SIDE, make_cache, make_specs, rows, teacher_network, values_of
from torch import Tensor

Made = tuple[Cache, BuildRecord]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    table = [*rows("train", 45, {"adm": 30, "sd": 20}), *rows("test", 10, {"adm": 10})]
    return make_cache(tmp_path_factory.mktemp("made") / "cache", table)


def settings(**changes: object) -> TrainConfig:
    return TrainConfig.checked(
        **{"dataset": "pictures", "backbone": "small", "epochs": 2, "batch_size": 16, "lr": 1e-3} | changes
    )


def training_part(made: Made, features: tuple[str, ...]) -> FeatureDataset:
    cache, build = made
    table = split_rows(cache.datasets().read("pictures"), "train", "pictures")
    return FeatureDataset(cache, build, table, features, split="train", purpose="the test")


def newest_weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / json.loads((run / "checkpoints" / "last.json").read_text())["weights"])


def metrics(run: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_loss_of_the_first_batch_is_what_the_formula_gives_by_hand(made: Made, tmp_path: Path) -> None:
    config = settings(epochs=1, seed=3, kd_weight=0.7, val_fraction=0)
    found = run_training(config, made[0].root, tmp_path / "run")["first_loss"]

    part = training_part(made, ("image", "eps", "teacher"))
    first = next(part.epoch(seed=3, epoch=1, batch_size=16))
    keys = [part.table["key"][int(row)].as_py() for row in first.rows]
    label = torch.tensor([float(part.label[row]) for row in first.rows])
    specs = make_specs()
    image, eps, dire = (
        torch.from_numpy(np.stack([values_of(name, key, int(y), specs) for key, y in zip(keys, label, strict=True)]))
        for name in ("image", "eps", "dire")
    )

    def resize_and_flip(x: Tensor) -> Tensor:
        small = F.interpolate(x, size=(TRAIN_SIDE, TRAIN_SIDE), mode="bilinear", antialias=True)
        return torch.stack([one.flip(-1) if turn else one for one, turn in zip(small, first.flip, strict=True)])

    mean, std = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    x = torch.cat([(resize_and_flip(image.float() / 255) - mean) / std, resize_and_flip(eps.float())], dim=1)
    with torch.no_grad():
        target = teacher_network()((resize_and_flip(dire.float() / 255) - 0.5) / 0.5)
    torch.manual_seed(3)
    student = PixelStudent.of("small", 6)
    features = student.student_backbone(x)
    logit = student.student_head[2](features.mean(dim=(2, 3))).squeeze(1)
    bce = -(label * torch.log(torch.sigmoid(logit)) + (1 - label) * torch.log(1 - torch.sigmoid(logit))).mean()
    expected = bce + 0.7 * ((features - target) ** 2).mean()
    assert 0 < int(first.flip.sum()) < 16
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_two_trainings_with_one_seed_give_identical_weights_and_another_seed_does_not(
    made: Made, tmp_path: Path
) -> None:
    for name, seed in (("one", 0), ("two", 0), ("other", 1)):
        run_training(settings(seed=seed), made[0].root, tmp_path / name)
    assert_same(newest_weights(tmp_path / "one"), newest_weights(tmp_path / "two"))
    assert metrics(tmp_path / "one") == metrics(tmp_path / "two")
    one, other = newest_weights(tmp_path / "one"), newest_weights(tmp_path / "other")
    assert not torch.equal(one["student_head.2.weight"], other["student_head.2.weight"])


def test_training_stopped_between_epochs_resumes_as_if_uninterrupted(made: Made, tmp_path: Path) -> None:
    whole = run_training(settings(epochs=3), made[0].root, tmp_path / "whole")
    run_training(settings(epochs=1), made[0].root, tmp_path / "parts")
    parts = run_training(settings(epochs=3), made[0].root, tmp_path / "parts", resume=True)
    assert_same(newest_weights(tmp_path / "whole"), newest_weights(tmp_path / "parts"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    differing = {"run", "seconds"}
    assert {k: v for k, v in whole.items() if k not in differing} == {
        k: v for k, v in parts.items() if k not in differing
    }


def test_ctrl_c_in_the_middle_of_an_epoch_saves_and_resuming_leads_to_the_same_weights(
    made: Made, tmp_path: Path
) -> None:
    config = settings(epochs=4)
    run_training(config, made[0].root, tmp_path / "whole")
    run = tmp_path / "parts"
    in_the_third_epoch = Signalling(0.55, signal.SIGINT)
    with pytest.raises(UserError, match=r"stopped in epoch 3 and saved\. Continue with --resume"):
        run_training(config, made[0].root, run, progress=in_the_third_epoch)
    assert json.loads((run / "checkpoints" / "last.json").read_text())["progress"]["batch"] > 0
    run_training(config, made[0].root, run, resume=True)
    assert_same(newest_weights(tmp_path / "whole"), newest_weights(run))
    assert metrics(tmp_path / "whole") == metrics(run)


def test_training_lowers_the_loss_and_the_validation_finds_the_generated_images(made: Made, tmp_path: Path) -> None:
    result = run_training(settings(epochs=8), made[0].root, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    assert result["last_loss"] < 0.6 * result["first_loss"]
    assert lines[-1]["kd"] < lines[0]["kd"]
    assert result["val"]["ap"] > 0.9


def test_a_run_holds_its_configuration_logs_checkpoints_and_is_known_to_the_cache(made: Made, tmp_path: Path) -> None:
    cache, build = made
    run_training(settings(), cache.root, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"] == settings().model_dump(mode="json")
    assert (record["build"], record["revision"]) == (build.id, build.revision)
    assert record["seen_generators"] == ["adm", "sd"]
    assert record["fingerprints"].keys() == {"image", "eps", "teacher"}
    assert build.id in {ref.build for ref in cache.builds().refs() if ref.run == record["run"]}
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    assert len(metrics(tmp_path / "run")) == 2
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"last.json", *newest(tmp_path / "run").files}
    assert len(names) >= 3


def test_a_run_folder_is_not_overwritten(made: Made, tmp_path: Path) -> None:
    run_training(settings(epochs=1), made[0].root, tmp_path / "run")
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(UserError, match=r"holds a training with lr 0\.001, not 0\.01"):
        run_training(settings(epochs=1, lr=1e-2), made[0].root, tmp_path / "run", resume=True)
    with pytest.raises(UserError, match="holds this training already"):
        run_training(settings(epochs=1), made[0].root, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").read_text() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(UserError, match="neither empty nor a run"):
        run_training(settings(epochs=1), made[0].root, tmp_path / "other")


def test_a_finished_training_resumed_returns_the_same_result(made: Made, tmp_path: Path) -> None:
    first = run_training(settings(epochs=1), made[0].root, tmp_path / "run")
    assert run_training(settings(epochs=1), made[0].root, tmp_path / "run", resume=True) == first


def test_a_diverged_loss_stops_with_a_sentence_and_keeps_the_last_good_checkpoint(made: Made, tmp_path: Path) -> None:
    run_training(settings(epochs=1), made[0].root, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    record["config"]["lr"] = 1e38
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    state = json.loads((tmp_path / "run" / "checkpoints" / "last.json").read_text())
    state["param_groups"][0]["lr"] = 1e38
    (tmp_path / "run" / "checkpoints" / "last.json").write_text(json.dumps(state))
    good = newest_weights(tmp_path / "run")
    with pytest.raises(UserError, match=r"no longer a finite number in epoch 2.*The checkpoint of epoch 1 is kept"):
        run_training(settings(epochs=2, lr=1e38), made[0].root, tmp_path / "run", resume=True)
    assert_same(newest_weights(tmp_path / "run"), good)


@pytest.mark.parametrize(
    ("method", "channels", "options", "size"),
    [("distildire", 6, {"kd_weight": 0}, TRAIN_SIDE), ("eps", 3, {}, TRAIN_SIDE), ("dire", 3, {"train_size": 24}, 24)],
)
def test_without_a_teacher_only_the_inputs_are_read(
    made: Made, tmp_path: Path, method: str, channels: int, options: dict[str, object], size: int
) -> None:
    run_training(settings(epochs=1, method=method, **options), made[0].root, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert newest_weights(tmp_path / "run")["student_backbone.0.weight"].shape[1] == channels
    assert tuple(record["fingerprints"]) == METHODS[method].inputs
    assert record["train_size"] == size
    assert all(line["kd"] == 0 for line in metrics(tmp_path / "run"))


def test_a_student_of_another_width_is_projected_to_the_teachers(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"its map at 28 pixels is 1x1, the teacher's is 4x4"):
        run_training(settings(epochs=1, backbone="efficientnet_lite0"), made[0].root, tmp_path / "run")
    student = PixelStudent.of("small", 6, teacher_channels=256)
    features = student({"x": torch.randn(2, 6, 28, 28)})[1]
    assert student.projection(features).shape == (2, 256, 4, 4)


def test_training_from_cached_teacher_equals_training_with_the_teacher_online(made: Made) -> None:
    """More than twenty steps, flips included, on the same cached DIRE: equal but for the features' float16 rounding."""
    part = training_part(made, ("image", "eps", "dire", "teacher"))
    teacher = teacher_network()

    def online(batch: Batch) -> Tensor:
        dire = F.interpolate(batch.features["dire"].float() / 255, size=(28, 28), mode="bilinear", antialias=True)
        turned = torch.where(batch.flip[:, None, None, None], dire.flip(-1), dire)
        with torch.no_grad():
            found: Tensor = teacher((turned - 0.5) / 0.5)
        torch.testing.assert_close(batch.features["teacher"].float(), found, rtol=2**-11, atol=1e-4)
        return found

    start = student_after(0, part, online)[1]
    cached_losses, cached = student_after(4, part, lambda batch: batch.features["teacher"])
    online_losses, trained = student_after(4, part, online)
    assert len(cached_losses) >= 20
    np.testing.assert_allclose(cached_losses, online_losses, rtol=5e-4)
    moved, apart = (trained - start).norm(), (trained - cached).norm()
    assert apart < 0.05 * moved


def student_after(epochs: int, part: FeatureDataset, target: Callable[[Batch], Tensor]) -> tuple[list[float], Tensor]:
    """The losses, and all weights as one vector, of a student trained against ``target`` of each batch."""
    seed_everything(0)
    student = PixelStudent.of("small", 6)
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-3)
    totals = []
    for batch in (batch for epoch in range(1, epochs + 1) for batch in part.epoch(0, epoch, 16)):
        logit, features = student(train_input(batch.features, batch.flip, METHODS["distildire"], 28))
        loss = losses(logit, batch.label, features, target(batch), 0.5)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
        totals.append(loss.total.item())
    return totals, torch.nn.utils.parameters_to_vector(student.parameters()).detach()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lr": 0}, r"^lr: Input should be greater than 0 \(got 0\)"),
        ({"method": "magic"}, "^method: unknown method 'magic'; use distildire, dire, dnf, cnndet, eps"),
        ({"kd_weight": float("nan")}, "^kd_weight: Input should be a finite number"),
        ({"momentum": 0.9}, "^momentum: unknown training setting"),
    ],
)
def test_a_bad_setting_is_refused_with_its_name(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        settings(**values)


def test_training_and_evaluation_load_nothing_of_stage_one() -> None:
    code = (
        "import sys, distil_cache.train.engine.loop, distil_cache.train.evaluation.evaluate\n"
        "sys.exit(any(name.startswith('distil_cache.pipeline') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
