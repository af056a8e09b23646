"""Methods without code: from a TOML file, of any features; and the methods that learn nothing, through the whole path."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from distil_cache.cli import app
from distil_cache.errors import UsageError, UserError
from distil_cache.train.config import TrainConfig, without_unused
from distil_cache.train.runs.folder import RunFolder
from small_models import STEPS, write_material
from typer.testing import CliRunner

METHOD = """
title = "Embedding, spectrum and DIRE"
student = "linear"
flips = false
[inputs]
embedding = "stored"
bands = "standard"
trajectory = "standard"
dire = "stored"
[defaults]
epochs = 2
lr = 0.01
"""


def run(*arguments: object) -> Any:
    """Run a command and return its result."""
    ran = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with images, networks and a cache ``c`` of every feature that the methods here read."""
    folder = write_material(tmp_path_factory.mktemp("built"), {"train": 6, "val": 4, "test": 4})
    run("build", folder / "images", "--cache", folder / "c", "--dataset", "d", "--adm", folder / "adm.safetensors",
        "--steps", STEPS, "--features", "image,dire,stepwise,trajectory,bands,embedding", "--embedding", "small",
        "--embedding-weights", folder / "teacher.safetensors", "--device", "cpu", "--batch-size", "4")  # fmt: skip
    (folder / "both.toml").write_text(METHOD)
    return folder


def train(built: Path, method: object, *more: object) -> Any:
    folder = built / "runs" / Path(str(method)).stem
    return run("train", "--cache", built / "c", "--dataset", "d", "--run", folder, "--method", method,
               "--device", "cpu", "--batch-size", "4", *more)  # fmt: skip


@pytest.mark.parametrize("method", ["probe", "mean_dire", "sedid", "both.toml"])
def test_a_method_of_other_features_trains_evaluates_and_predicts_what_it_evaluates(built: Path, method: str) -> None:
    name = method.removesuffix(".toml")
    trained = train(built, built / method if name == "both" else method, *(["--epochs", 2] if name == "probe" else []))
    steps = {"mean_dire": (1, 0), "sedid": (1, 0)}.get(name, (2, 6))
    assert (trained["epochs"], trained["steps"], trained["ended"]) == (*steps, "all epochs done")
    assert all(trained["val"][measure] is not None for measure in ("ap", "acc", "bce"))

    folder = built / "runs" / name
    record = RunFolder(folder).read()
    assert (record.config.backbone, record.title != "") == ("none", True)
    run("evaluate", folder, "--device", "cpu")
    table = pq.read_table(folder / "evaluations" / "d-test-crop" / "scores.parquet").to_pydict()
    predicted = run("predict", "--run", folder, built / "images" / "test", "--adm", built / "adm.safetensors",
                    "--device", "cpu", "--batch-size", "4", "--weights-of",
                    f"embedding={built / 'teacher.safetensors'}")  # fmt: skip
    logits = [entry["logit"] for entry in predicted["predictions"]]
    np.testing.assert_allclose(sorted(logits), sorted(table["logit"]), rtol=1e-4, atol=1e-5)
    assert predicted["adm_calls_per_image"] == {"probe": 0, "sedid": 4}.get(name, 8)


def test_a_score_is_the_definition_s_number_and_its_training_is_one_validated_line(built: Path) -> None:
    folder = built / "runs" / "mean_dire"
    if not folder.exists():
        train(built, "mean_dire")
        run("evaluate", folder, "--device", "cpu")
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    scores = pq.read_table(folder / "evaluations" / "d-test-crop" / "scores.parquet").to_pydict()
    means = pq.read_table(folder / "evaluations" / "d-test-crop" / "dire.parquet").to_pydict()
    by_key = dict(zip(means["key"], means["mean_dire"], strict=True))
    order = np.argsort(scores["logit"])
    assert np.all(np.diff([by_key[scores["key"][place]] for place in order]) <= 1e-6), "a small DIRE means generated"
    assert RunFolder(folder).load_student().calibration is not None


def test_a_run_of_a_file_needs_the_file_no_more_and_a_changed_file_is_another_training(
    built: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(METHOD)
    train(built, file)
    file.unlink()
    folder = built / "runs" / "mine"
    assert run("train", "--run", folder, "--resume", "--device", "cpu")["epochs"] == 2
    assert RunFolder(folder).read().method.title == "Embedding, spectrum and DIRE"
    file.write_text(METHOD.replace('bands = "standard"\ntrajectory', 'trajectory = "stored"\nbands'))
    with pytest.raises(UserError, match=r"holds a training of another mine\.toml"):
        train(built, file, "--resume")


def test_a_training_that_would_mirror_what_has_no_mirrored_view_is_refused(built: Path, tmp_path: Path) -> None:
    file = tmp_path / "mirrors.toml"
    file.write_text(METHOD.replace("flips = false", "flips = true"))
    with pytest.raises(UsageError, match="mirrors images, and bands is a vector"):
        train(built, file)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("inputs = 3", r"inputs: write a table, \[inputs\], with a line"),
        ("[inputs]\n", "inputs: write a table"),
        ('inputs = ["eps"]', "inputs: write a table"),
        ("title = 'x'", "inputs: is missing"),
        ("flips = 'perhaps'\n[inputs]\neps = 'stored'", "flips: Input should be a valid boolean"),
        (
            "[inputs]\nimage = 'zoom'",
            "inputs: image = 'zoom' is no scale. There are imagenet, signed, stored, standard",
        ),
        ("[inputs]\nimage = 'standard'", "inputs: only linear students take the scale standard"),
        ("student = 'linear'\ntarget = 'teacher'\n[inputs]\neps = 'stored'", "target: only the student pixels has a"),
        ("colour = 1\n[inputs]\neps = 'stored'", "colour: there is no such setting"),
        ("[inputs]\neps = 'stored'\n[defaults]\nrate = 1", "defaults.rate: there is no such setting"),
        ("[inputs]\neps = 'stored'\n[defaults]\nepochs = 0", "defaults: a student needs at least one epoch"),
        ("[inputs", "is no TOML"),
    ],
)
def test_what_a_file_cannot_say_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UsageError, match=r"^--method .*mine\.toml: .*" + sentence):
        TrainConfig.checked(dataset="d", method=str(tmp_path / "mine.toml"))


def test_a_file_may_not_take_the_name_of_a_method_that_there_is(tmp_path: Path) -> None:
    (tmp_path / "dire.toml").write_text(METHOD)
    with pytest.raises(UsageError, match="dire is the name of a method that there is"):
        TrainConfig.checked(dataset="d", method=str(tmp_path / "dire.toml"))
    with pytest.raises(UsageError, match=r"--method .*absent\.toml"):
        TrainConfig.checked(dataset="d", method=str(tmp_path / "absent.toml"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "probe", "backbone": "small"}, "backbone: the student of method probe has no backbone"),
        ({"method": "sedid", "initial_weights": "imagenet"}, "initial_weights: the student of method sedid has no"),
        ({"method": "sedid", "epochs": 3}, "epochs: method sedid has nothing to learn by steps"),
        ({"method": "dire", "epochs": 0}, "epochs: method dire learns by steps"),
    ],
)
def test_a_setting_that_a_method_has_no_use_for_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        TrainConfig.checked(dataset="d", **settings)


def test_a_profile_fills_in_only_what_the_method_uses() -> None:
    filled = {"backbone": "small32", "epochs": 40, "batch_size": 16}
    assert without_unused({"method": "sedid", **filled}, filled) == {"method": "sedid", "batch_size": 16}
    assert without_unused({"method": "probe", **filled}, filled) == {"method": "probe", "epochs": 40, "batch_size": 16}
    assert without_unused({"method": "sedid", **filled}, ()) == {"method": "sedid", **filled}
    assert without_unused({**filled}, filled) == filled
