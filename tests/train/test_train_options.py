"""Options of a training beyond its method: schedules, precision, gradient accumulation, balance, several datasets."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.store import Cache
from distil_cache.errors import UsageError, UserError
from distil_cache.train.config import TrainConfig
from distil_cache.train.data.select import held_out
from distil_cache.train.engine.loop import run_training
from distil_cache.train.engine.lr_schedule import LrSchedule
from distil_cache.train.evaluation.evaluate import run_evaluation
from distil_cache.train.runs.folder import RunFolder
from distil_cache.train.runs.forms import EpochMetrics, State
from recorded_progress import Signalling
from run_state import best, best_file
from safetensors.torch import load_file
from small_cache import make_cache, rows
from torch import Tensor

Made = tuple[Cache, BuildRecord]

EVERYTHING = {
    "amp": "bf16",
    "accumulate": 2,
    "clip_grad": 0.5,
    "schedule": "cosine",
    "warmup_steps": 3,
    "pos_weight": "balanced",
    "epochs": 3,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    table = [*rows("train", 16, {"adm": 24}), *rows("val", 6, {"adm": 6}), *rows("test", 4, {"adm": 4})]
    return make_cache(tmp_path_factory.mktemp("made") / "cache", table)


def settings(**changes: object) -> TrainConfig:
    return TrainConfig.checked(
        **{"dataset": "pictures", "backbone": "small", "epochs": 1, "batch_size": 8, "lr": 1e-3} | changes
    )


def train(made: Made, run: Path, **changes: object) -> dict[str, object]:
    return run_training(settings(**changes), made[0].root, run)


def newest(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints" / json.loads((run / "checkpoints" / "last.json").read_text())["weights"])


def lines(run: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in found]


def test_sigterm_in_an_epoch_saves_and_a_training_with_every_option_resumes_bit_for_bit(
    made: Made, tmp_path: Path
) -> None:
    train(made, tmp_path / "whole", **EVERYTHING)
    in_the_second_epoch = Signalling(0.4, signal.SIGTERM)
    with pytest.raises(UserError, match=r"stopped in epoch 2 and saved"):
        run_training(settings(**EVERYTHING), made[0].root, tmp_path / "parts", progress=in_the_second_epoch)
    saved = json.loads((tmp_path / "parts" / "checkpoints" / "last.json").read_text())["progress"]
    assert saved["batch"] > 0
    run_training(settings(**EVERYTHING), made[0].root, tmp_path / "parts", resume=True)
    whole, parts = newest(tmp_path / "whole"), newest(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_the_loss_scale_of_an_fp16_training_survives_a_stop(tmp_path: Path) -> None:
    table = [*rows("train", 4, {"adm": 6}), *rows("val", 1, {"adm": 1})]  # fp16 is slow on a CPU
    few, batches_of_two = make_cache(tmp_path / "cache", table), {"amp": "fp16", "batch_size": 2}
    train(few, tmp_path / "whole", **batches_of_two, epochs=2)
    train(few, tmp_path / "parts", **batches_of_two)
    run_training(settings(**batches_of_two, epochs=2), few[0].root, tmp_path / "parts", resume=True)
    scalers = [
        json.loads((tmp_path / name / "checkpoints" / "last.json").read_text())["scaler"] for name in ("whole", "parts")
    ]
    assert scalers[0] == scalers[1]
    assert scalers[0]["_growth_tracker"] == 10
    whole, parts = newest(tmp_path / "whole"), newest(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_comes_close_to_full_and_keeps_weights_in_float32(made: Made, tmp_path: Path, amp: str) -> None:
    full = train(made, tmp_path / "full", kd_weight=0)
    mixed = train(made, tmp_path / "mixed", kd_weight=0, amp=amp)
    assert mixed["first_loss"] == pytest.approx(full["first_loss"], rel=2e-2)
    assert mixed["first_loss"] != full["first_loss"]
    assert newest(tmp_path / "mixed")["student_backbone.0.weight"].dtype == torch.float32


def test_accumulated_gradients_equal_those_of_the_whole_batch(made: Made, tmp_path: Path) -> None:
    """Batch normalisation sees the parts, so the losses are close and not equal; the number of steps is the same."""
    whole = train(made, tmp_path / "whole")
    parts = train(made, tmp_path / "parts", accumulate=3)
    assert parts["steps"] == whole["steps"] == 5
    assert parts["first_loss"] == pytest.approx(whole["first_loss"], rel=0.1)
    assert parts["first_loss"] != whole["first_loss"]


def test_clipping_limits_the_size_of_a_step(made: Made, tmp_path: Path) -> None:
    """With Adam's second moment at its start, a gradient far below its epsilon hardly moves a weight."""
    train(made, tmp_path / "free")
    train(made, tmp_path / "clipped", clip_grad=1e-9)
    torch.manual_seed(0)
    moved = {}
    for name in ("free", "clipped"):
        weights = newest(tmp_path / name)["student_head.2.weight"]
        moved[name] = weights
    start = newest_of_no_training(made, tmp_path)
    assert (moved["clipped"] - start).abs().max() < 0.1 * (moved["free"] - start).abs().max()


def newest_of_no_training(made: Made, tmp_path: Path) -> Tensor:
    """The head's weights before any step: those of a training with a learning rate that moves nothing."""
    train(made, tmp_path / "still", lr=1e-30)
    return newest(tmp_path / "still")["student_head.2.weight"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"schedule": "constant"}, [1.0] * 8),
        ({"schedule": "constant", "warmup_steps": 4}, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ({"schedule": "step", "drop_every": 1, "lr_factor": 0.5}, [1.0, 1.0, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]),
        ({"schedule": "cosine", "min_lr": 0.1}, [0.1 + 0.45 * (1 + math.cos(math.pi * step / 7)) for step in range(8)]),
    ],
)
def test_the_learning_rate_follows_its_schedule(options: dict[str, object], expected: list[float]) -> None:
    schedule = LrSchedule(settings(lr=1.0, epochs=4, **options), steps=2)
    line: EpochMetrics = dict.fromkeys(("epoch", "step", "loss", "val_bce", "val_ap", "val_acc", "seconds"), 1)
    rates = [schedule.rate(State(step=step, epoch=step // 2, history=[line] * (step // 2))) for step in range(8)]
    assert rates == pytest.approx(expected)


def test_a_plateau_lowers_the_rate_after_its_patience_and_ends_the_training_below_the_least_rate() -> None:
    schedule = LrSchedule(settings(lr=1e-4, epochs=100, schedule="plateau", patience=2), steps=1)
    state, rates = State(), []
    while not schedule.ended(state):
        state.epoch += 1
        state.best_epoch = min(state.epoch, 3)
        schedule.after_epoch(state)
        rates.append(schedule.rate(state))
    assert rates == pytest.approx([1e-4] * 4 + [1e-5] * 2 + [1e-6] * 2 + [1e-7])
    assert schedule.ended(state) == "the learning rate fell below 1e-06"


def accuracy_plateau(accuracies: list[float]) -> tuple[list[int], list[int], str | None]:
    """Follow the schedule of CNNDet's code: the epochs that were the best of their time, the drops, and the end."""
    schedule = LrSchedule(settings(lr=1e-4, epochs=400, schedule="accuracy-plateau", patience=5, min_lr=1e-6), steps=1)
    state, best = State(), []
    for accuracy in accuracies:
        state.epoch += 1
        line: EpochMetrics = {"epoch": state.epoch, "val_bce": 1.0, "val_ap": 1.0, "val_acc": accuracy}
        state.history.append(line)
        if schedule.is_best(state, line):
            state.best_epoch = state.epoch
            best.append(state.epoch)
        schedule.after_epoch(state)
        if schedule.ended(state):
            break
    return best, state.drops, schedule.ended(state)


def test_an_accuracy_counts_only_if_it_rises_by_a_thousandth() -> None:
    assert accuracy_plateau([0.5, 0.5009, 0.501, 0.5015, 0.5021])[:2] == ([1, 3, 5], [])


def test_after_a_drop_the_search_for_the_best_epoch_begins_again_and_needs_two_thousandths() -> None:
    high = [0.9] + [0.9005] * 5
    best, drops, ended = accuracy_plateau([*high, 0.7, 0.7015, 0.702, 0.702, 0.702, 0.702, 0.702, 0.702])
    assert (best, drops, ended) == ([1, 7, 9], [6, 14], None)


def test_the_plateau_of_accuracy_ends_the_training_below_the_least_rate() -> None:
    best, drops, ended = accuracy_plateau([0.5] * 40)
    assert (best, drops) == ([1, 7, 13], [6, 12, 18])
    assert ended == "the learning rate fell below 1e-06"


def test_a_training_stops_when_the_validation_has_not_improved_and_keeps_the_best_epoch(
    made: Made, tmp_path: Path
) -> None:
    result = train(made, tmp_path / "run", lr=1e-30, epochs=9, stop_after=2)
    assert result["ended"] == "no better validation in 2 epochs"
    assert result["epochs"] == int(str(result["best_epoch"])) + 2 < 9
    again = run_training(settings(lr=1e-30, epochs=9, stop_after=2), made[0].root, tmp_path / "run", resume=True)
    assert again == result


def test_the_best_checkpoint_is_chosen_on_the_validation_whatever_the_test_says(tmp_path: Path) -> None:
    table = [*rows("train", 16, {"adm": 16}), *rows("val", 8, {"adm": 8}), *rows("test", 8, {"adm": 8})]
    wrong = [{**row, "label": 1 - row["label"], "generator": ""} if row["split"] == "test" else row for row in table]
    results = []
    for name, of in (("right", table), ("wrong", wrong)):
        cache, _ = make_cache(tmp_path / name / "cache", of)
        run_training(settings(epochs=3), cache.root, tmp_path / name / "run")
        results.append((lines(tmp_path / name / "run"), load_file(best_file(tmp_path / name / "run"))))
    assert results[0][0] == results[1][0]
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in results[0][1])


def test_balanced_weighs_the_rarer_class_as_much_as_the_other(made: Made, tmp_path: Path) -> None:
    plain = train(made, tmp_path / "plain", kd_weight=0)
    balanced = train(made, tmp_path / "balanced", kd_weight=0, pos_weight="balanced")
    assert RunFolder(tmp_path / "balanced").read().pos_weight == pytest.approx(16 / 24)
    by_hand = train(made, tmp_path / "by-hand", kd_weight=0, pos_weight=16 / 24)
    assert balanced["first_loss"] == by_hand["first_loss"] != plain["first_loss"]


def test_fine_tuning_begins_as_the_best_student_with_a_fresh_optimiser_and_the_rate_that_was_asked_for(
    made: Made, tmp_path: Path
) -> None:
    train(made, tmp_path / "first", epochs=2)
    result = train(made, tmp_path / "second", init_from=str(tmp_path / "first"), lr=3e-5)
    best = load_file(best_file(tmp_path / "first"))
    still = tmp_path / "still"
    train(made, still, init_from=str(tmp_path / "first"), lr=1e-30)
    assert torch.equal(newest(still)["student_backbone.0.weight"], best["student_backbone.0.weight"])
    assert lines(tmp_path / "second")[0]["lr"] == 3e-5
    assert (
        result["first_loss"]
        < json.loads((tmp_path / "first" / "checkpoints/last.json").read_text())["progress"]["first_loss"]
    )
    begun = RunFolder(tmp_path / "second").read().begun_as
    assert begun is not None
    assert begun["run"] == RunFolder(tmp_path / "first").read().run
    with pytest.raises(UserError, match=r"its student's input is image imagenet, eps stored, this one's eps stored"):
        train(made, tmp_path / "other", init_from=str(tmp_path / "first"), method="eps")
    with pytest.raises(UserError, match=r"its student is small, not small32"):
        train(made, tmp_path / "other", init_from=str(tmp_path / "first"), backbone="small32", kd_weight=0)


def test_several_datasets_are_joined_without_the_test_rows_of_any(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    first = [*rows("train", 14, {"adm": 14}), *rows("val", 4, {"adm": 4}), *rows("test", 6, {"adm": 6})]
    cache, _ = make_cache(root, first, name="first")
    leaked = [{**row, "split": "train"} for row in first if row["split"] != "train"][:10]
    second = [*rows("train", 10, {"sd": 12}, group="other"), *leaked]
    _, build = make_cache(root, second, name="second")
    config = settings(dataset=("first", "second"), build=(build.id,), val_fraction=0.2)
    run_training(config, root, tmp_path / "run")
    record = RunFolder(tmp_path / "run").read()
    assert [one.dataset for one in record.trained_on] == ["first", "second"]
    assert record.seen_generators == ("adm", "sd")
    shown = Cache.open(root).datasets().read("second")
    own = [
        key
        for key, group in zip(*(shown[name].to_pylist() for name in ("key", "group")), strict=True)
        if group == "other"
    ]
    held = int(held_out(np.array(own), 0.2).sum())
    leaked_val = [row["key"] for row in leaked if row["key"] in {r["key"] for r in first if r["split"] == "val"}]
    carved_again = int(held_out(np.array(leaked_val), 0.2).sum())
    assert 0 < held < 22
    assert record.samples == {
        "train": 28 + 22 - held,
        "val": 8 + held + carved_again,
        "left_out": 10 - carved_again,
    }
    assert record.validation == "split val; 20% of train, by key"
    assert {ref.build for ref in cache.builds().refs() if ref.run.startswith(record.run)} == {
        one.build for one in record.trained_on
    }
    assert run_evaluation(tmp_path / "run", root, "first")["counts"] == {"real": 6, "fake": 6}


def test_datasets_with_contradictory_labels_or_other_settings_are_not_joined(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    table = rows("train", 8, {"adm": 8})
    make_cache(root, table, name="first")
    make_cache(root, [{**row, "label": 1 - row["label"]} for row in table[:10]], name="contrary")
    make_cache(root, rows("train", 8, {"sd": 8}), name="otherwise", adm="c")
    with pytest.raises(UserError, match="first and contrary: 10 images are real in one and generated in the other"):
        run_training(settings(dataset=("first", "contrary"), val_fraction=0), root, tmp_path / "run")
    with pytest.raises(UserError, match=r"otherwise: its features .* were built with other settings"):
        run_training(settings(dataset=("first", "otherwise")), root, tmp_path / "run")


def test_a_run_of_version_one_loads_as_it_was_trained(made: Made, tmp_path: Path) -> None:
    train(made, tmp_path / "run", method="dire", schedule="constant")
    path = tmp_path / "run" / "config.json"
    record = json.loads(path.read_text())
    kept = (
        "select",
        "method",
        "kd_weight",
        "backbone",
        "epochs",
        "batch_size",
        "lr",
        "weight_decay",
        "seed",
        "train_size",
        "val_fraction",
    )
    record["config"] = {name: record["config"][name] for name in kept} | {"dataset": "pictures", "build": None}
    record["version"] = 1
    for name in ("initial_weights", "teacher", "imported", "others", "pos_weight", "begun_as"):
        del record[name]
    path.write_text(json.dumps(record))
    read = RunFolder(tmp_path / "run").read()
    assert (read.config.dataset, read.config.build, read.config.schedule) == (("pictures",), (), "constant")
    assert run_evaluation(tmp_path / "run", made[0].root, "pictures")["counts"] == {"real": 4, "fake": 4}


def test_a_finished_cosine_cannot_be_given_more_epochs(made: Made, tmp_path: Path) -> None:
    train(made, tmp_path / "run", schedule="cosine")
    with pytest.raises(UserError, match="holds a training with epochs 1, not 2"):
        run_training(settings(schedule="cosine", epochs=2), made[0].root, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"drop_every": 3}, r"^drop_every: is only used by the schedule step, not by constant\.$"),
        ({"schedule": "step"}, r"^drop_every: the schedule step needs"),
        (
            {"patience": 3, "schedule": "cosine"},
            r"^patience: is only used by the schedule plateau or accuracy-plateau, not by cosine\.$",
        ),
        ({"accumulate": 9}, r"^accumulate: a batch of 8 cannot be split into 9 parts\.$"),
        ({"dataset": ("a", "a")}, r"^dataset: a, a contains a name twice"),
        ({"build": ("0" * 16, "1" * 16)}, r"^build: at most one build"),
        ({"amp": "int8"}, r"^amp: Input should be 'off', 'bf16' or 'fp16' \(got 'int8'\)\.$"),
        ({"pos_weight": "even"}, r"^pos_weight"),
        ({"init_from": "x", "initial_weights": "scratch"}, r"^init_from: "),
    ],
)
def test_options_that_do_not_fit_together_are_refused_in_one_sentence(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        settings(**values)


@pytest.mark.parametrize("changes", [{"stop_after": 2}, {"schedule": "plateau"}, {"schedule": "accuracy-plateau"}])
def test_options_that_use_the_validation_require_validation_rows(tmp_path: Path, changes: dict[str, object]) -> None:
    cache, _ = make_cache(tmp_path / "cache", rows("train", 6, {"adm": 6}))
    with pytest.raises(UsageError, match=r"and none are held out\. Raise --val-fraction"):
        run_training(settings(val_fraction=0, **changes), cache.root, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_numbers_take_the_defaults_of_the_method() -> None:
    plateau = TrainConfig.checked(dataset="d", method="dire")
    assert (plateau.schedule, plateau.min_lr, plateau.lr_factor) == ("accuracy-plateau", 1e-6, 0.1)
    assert (plateau.patience, plateau.drop_every) == (5, None)
    constant = TrainConfig.checked(dataset="d", kd_weight=None)
    assert (constant.schedule, constant.patience, constant.kd_weight) == ("constant", None, 0.5)
    code = TrainConfig.checked(dataset="d", preset="official-code", lr=1e-3)
    assert (code.pos_weight, code.lr, code.batch_size) == (0.5, 1e-3, 256)
    assert np.isclose(TrainConfig.checked(dataset="d", pos_weight="0.25").pos_weight, 0.25)


def test_a_batch_of_one_image_is_refused_where_batch_normalisation_has_no_variance(made: Made, tmp_path: Path) -> None:
    message = (
        r"--batch-size 1: a batch of one image of \d+ pixels leaves batch normalisation a single value per channel"
    )
    with pytest.raises(UserError, match=message):
        train(made, tmp_path / "run", batch_size=1, backbone="small32")
    assert train(made, tmp_path / "wide", batch_size=1, backbone="small")["epochs"] == 1


def test_a_run_of_an_earlier_record_keeps_the_validation_that_it_began_with(tmp_path: Path) -> None:
    cache, _ = make_cache(tmp_path / "cache", [*rows("train", 20, {"adm": 20}), *rows("val", 4, {"adm": 4})])
    run_training(settings(val_from="train"), cache.root, tmp_path / "run")
    before = RunFolder(tmp_path / "run").read()
    assert before.validation == "10% of train, by key"
    carved = best(tmp_path / "run").calibration
    assert carved is not None
    assert carved.origin == f"{before.samples['val']} images of 10% of train, by key"
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    del content["config"]["val_from"]
    (tmp_path / "run" / "config.json").write_text(json.dumps({**content, "version": 2}))
    run_training(settings(epochs=2), cache.root, tmp_path / "run", resume=True)
    after = RunFolder(tmp_path / "run").read()
    assert (after.version, after.validation, after.samples) == (2, before.validation, before.samples)

    run_training(settings(), cache.root, tmp_path / "new")
    new = RunFolder(tmp_path / "new").read()
    assert (new.validation, new.samples) == ("split val", {"train": 40, "val": 8})
    of_best = best(tmp_path / "new").calibration
    assert of_best is not None
    assert of_best.split == "val"
    notes = run_evaluation(tmp_path / "new", cache.root, "pictures", split="val")["notes"]
    assert any("chose its epoch and its threshold on these images" in note for note in notes)
