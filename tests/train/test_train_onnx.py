"""A student as ONNX: the same logits, nothing but the graph, and the example that uses it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from distil_cache.commands.checkpoint import checkpoint_app
from distil_cache.errors import UserError
from distil_cache.models.backbones import resize
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import run_evaluation
from distil_cache.train.runs.onnx_export import OPSET, TOLERANCE, export_onnx, resize_weights
from small_cache import make_cache, rows
from typer.testing import CliRunner

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

Made = tuple[Path, Path, Path]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A cache, a run with an evaluation, and the run's ONNX file."""
    folder = tmp_path_factory.mktemp("onnx")
    table = [*rows("train", 20, {"adm": 20}), *rows("test", 8, {"a | <b>": 9})]
    cache, _ = make_cache(folder / "cache", table)
    config = TrainConfig.checked(dataset="pictures", backbone="small", epochs=1, batch_size=8, lr=1e-3)
    run_training(config, cache.root, folder / "run", device="cpu")
    run_evaluation(folder / "run", cache.root, "pictures", device="cpu")
    done = CliRunner().invoke(checkpoint_app, ["export", str(folder / "run"), str(folder / "student.onnx"), "--card"])
    assert done.exit_code == 0, done.output
    return cache.root, folder / "run", folder / "student.onnx"


def test_the_logits_of_an_evaluation_come_out_of_the_file(made: Made) -> None:
    import distil_cache as dc

    root, run, file = made
    scores = pq.read_table(run / "evaluations" / "pictures-test-crop" / "scores.parquet")
    rows_of = dc.open(root).dataset("pictures")
    keys = scores["key"].to_pylist()
    image, eps = (rows_of.feature(name).numpy(keys) for name in ("image", "eps"))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 2, len(keys)):
        given = {"image": image[:count], "eps": eps[:count].astype(np.float32)}
        logit, score = session.run(["logit", "score"], given)
        assert np.abs(logit - scores["logit"].to_numpy()[:count]).max() < TOLERANCE
        assert np.abs(score - scores["score"].to_numpy()[:count]).max() < TOLERANCE


def test_the_file_names_its_opset_its_run_and_its_features_and_refers_to_no_other_file(made: Made) -> None:
    _, run, file = made
    model = onnx.load(file, load_external_data=False)
    onnx.checker.check_model(model)
    assert [one.version for one in model.opset_import if one.domain == ""] == [OPSET]
    assert not [one.name for one in model.graph.initializer if one.external_data]
    assert [one.type.tensor_type.shape.dim[0].dim_param for one in model.graph.input] == ["batch", "batch"]
    record = json.loads((run / "config.json").read_text())
    facts = {one.key.removeprefix("distil_cache."): one.value for one in model.metadata_props}
    assert facts["run"] == record["run"]
    assert json.loads(facts["fingerprints"])["eps"] == record["fingerprints"]["eps"]


@pytest.mark.parametrize(("stored", "size"), [(32, 32), (28, 96)])
def test_resizing_by_matrices_is_the_resizing_of_training(stored: int, size: int) -> None:
    images = torch.rand(2, 3, stored, stored)
    weights = resize_weights(stored, size)
    assert torch.allclose(weights @ images @ weights.T, resize(images, size), atol=1e-6)


def test_an_existing_file_is_kept(made: Made) -> None:
    _, run, file = made
    before = file.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        export_onnx(run, file)
    assert file.read_bytes() == before


def test_a_file_whose_logits_differ_is_not_written(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = SimpleNamespace(model=SimpleNamespace(metadata_props={}), model_proto=onnx.ModelProto())
    monkeypatch.setattr("distil_cache.train.runs.onnx_export._program", lambda *_: program)
    monkeypatch.setattr("distil_cache.train.runs.onnx_export._difference", lambda *_: 2 * TOLERANCE)
    with pytest.raises(UserError, match=r"differ from the student's by up to 0.0002, so it is not written"):
        export_onnx(made[1], tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_example_scores_a_split(made: Made) -> None:
    root, _, file = made
    example = Path(__file__).resolve().parents[2] / "examples" / "score_onnx.py"
    command = [sys.executable, str(example), str(file), str(root), "pictures", "test"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert len(lines) == 17
    assert {line.rpartition("  ")[2] for line in lines} <= {"real", "generated"}


def test_the_command_writes_a_card_beside_the_file(made: Made) -> None:
    _, run, file = made
    text = (file.parent / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert "license" not in front
    assert "license: choose one" in text
    assert front["datasets"] == ["pictures"]
    (result,) = front["model-index"][0]["results"]
    assert {one["type"] for one in result["metrics"]} == {"accuracy", "average_precision"}
    assert all("95 % interval" in one["name"] for one in result["metrics"])
    record = json.loads((run / "config.json").read_text())
    assert record["fingerprints"]["eps"] in text
    assert record["specs"]["eps"]["adm"]["weights"] in text
    assert "a \\| &lt;b&gt;" in text
    assert "<b>" not in text
    again = CliRunner().invoke(checkpoint_app, ["export", str(run), str(file.parent / "other.onnx"), "--card"])
    assert isinstance(again.exception, UserError)
    assert not (file.parent / "other.onnx").exists()


def test_a_card_that_cannot_be_written_leaves_no_file(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made[1], tmp_path / "run")
    (tmp_path / "run" / "evaluations" / "pictures-test-crop" / "scores.parquet").write_bytes(b"PAR1 no more PAR1")
    (tmp_path / "out").mkdir()
    command = ["export", str(tmp_path / "run"), str(tmp_path / "out" / "student.onnx"), "--card"]
    refused = CliRunner().invoke(checkpoint_app, command)
    assert isinstance(refused.exception, UserError)
    assert "scores.parquet: unreadable" in str(refused.exception)
    assert list((tmp_path / "out").iterdir()) == []
