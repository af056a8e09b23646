"""Checkpoints of the reference implementation: strict, bit-exact in both directions, and fit for evaluation."""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from distil_cache.errors import UsageError, UserError
from distil_cache.report import write_report
from distil_cache.train.evaluation.evaluate import run_evaluation
from distil_cache.train.runs.checkpoint import save_weights
from distil_cache.train.runs.folder import RunFolder
from distil_cache.train.runs.forms import BEST
from distil_cache.train.runs.lock import RunLock
from distil_cache.train.runs.reference_checkpoint import export_checkpoint, import_checkpoint
from distil_cache.train.students.pixels import PixelStudent
from safetensors.torch import load_file
from small_cache import make_cache, make_specs, rows, values_of
from torch import Tensor, nn
from torchvision.models import resnet50

Made = tuple[Path, "Reference"]


class Reference(nn.Module):
    """The published student, built from torchvision's network as published."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.student_backbone = nn.Sequential(OrderedDict(list(resnet50(weights=None).named_children())[:-2]))
        self.student_backbone.conv1 = nn.Conv2d(channels, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.student_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1))

    def forward(self, image: Tensor, eps: Tensor) -> Tensor:
        features = self.student_backbone(torch.cat([image, eps], dim=1))
        return self.student_head(features).squeeze(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A file as the reference's trainer saves it, with an optimiser that has stepped, and its student."""
    torch.manual_seed(0)
    student = Reference(6)
    optimiser = torch.optim.Adam(student.student_head.parameters(), lr=1e-4)
    student(torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64)).sum().backward()
    optimiser.step()
    path = tmp_path_factory.mktemp("official") / "imagenet-distil-dire-11e.pth"
    state = {f"module.{name}": value for name, value in student.state_dict().items()}
    torch.save({"model": state, "optimizer": optimiser.state_dict(), "total_steps": 7}, path)
    return path, student.eval()


@pytest.fixture(scope="module")
def imported(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("imported") / "published"
    assert import_checkpoint(made[0], run)["tensors"] == len(made[1].state_dict())
    return run


def test_an_imported_student_gives_the_references_logits(made: Made, imported: Path) -> None:
    best = RunFolder(imported).load_student()
    student, record = best.student, best.record
    x = torch.randn(2, 6, 96, 96)
    with torch.no_grad():
        assert torch.equal(student({"x": x})[0], made[1](x[:, :3], x[:, 3:]))
    assert (record.config.preset, record.train_size, record.fingerprints) == ("official-code", 256, {})


def test_export_gives_back_the_imported_tensors_in_a_file_that_the_reference_loads(
    made: Made, imported: Path, tmp_path: Path
) -> None:
    facts = export_checkpoint(imported, tmp_path / "again.pth")
    assert facts["input"] == "image signed, eps stored, at 256 pixels"
    content = torch.load(tmp_path / "again.pth", weights_only=True)
    expected = made[1].state_dict()
    assert list(content["model"]) == list(expected)
    assert all(torch.equal(content["model"][name], value) for name, value in expected.items())
    reference = Reference(6)
    reference.load_state_dict(content["model"])
    torch.optim.Adam(reference.parameters(), lr=1e-4).load_state_dict(content["optimizer"])
    with pytest.raises(UserError, match=r"again\.pth: exists already"):
        export_checkpoint(imported, tmp_path / "again.pth")


def test_a_file_that_another_command_creates_during_the_export_is_not_overwritten(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, save = tmp_path / "again.pth", torch.save

    def beaten(*arguments: Any) -> None:
        save(*arguments)
        path.write_text("another's")

    monkeypatch.setattr(torch, "save", beaten)
    with pytest.raises(UserError, match=r"again\.pth: exists already"):
        export_checkpoint(imported, path)
    assert path.read_text() == "another's"
    assert [one.name for one in tmp_path.iterdir()] == ["again.pth"]


def test_an_exported_file_holds_its_own_name_and_a_missing_folder_is_a_sentence(imported: Path, tmp_path: Path) -> None:
    export_checkpoint(imported, tmp_path / "again.pth")
    with zipfile.ZipFile(tmp_path / "again.pth") as archive:
        assert {name.partition("/")[0] for name in archive.namelist()} == {"again"}
    with pytest.raises(UserError, match=r"absent/again\.pth: cannot be written \(No such file or directory\)"):
        export_checkpoint(imported, tmp_path / "absent" / "again.pth")


def test_a_checkpoint_is_not_imported_into_a_run_in_use(made: Made, tmp_path: Path) -> None:
    with RunLock(tmp_path / "run") as hold:
        hold.take()
        with pytest.raises(UserError, match="another command is using this run"):
            import_checkpoint(made[0], tmp_path / "run")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / ".tmp-draft").touch()
    (tmp_path / "thesis" / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty"):
        import_checkpoint(made[0], tmp_path / "thesis")
    assert sorted(path.name for path in (tmp_path / "thesis").iterdir()) == [".tmp-draft", "thesis.tex"]


def test_export_leaves_a_projection_behind(imported: Path, tmp_path: Path) -> None:
    record = RunFolder(imported).read().model_copy(update={"teacher_channels": 8})
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    folder.create(record)
    student = PixelStudent.of("resnet50", 6, teacher_channels=8)
    save_weights(folder.checkpoints / BEST, student, {"epoch": "1", "run": record.run})
    export_checkpoint(folder.folder, tmp_path / "out.safetensors")
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == {name for name in student.state_dict() if not name.startswith("projection.")}
    assert len(student.state_dict()) == len(found) + 2


def test_a_checkpoint_of_another_shape_is_refused_naming_its_first_difference(made: Made, tmp_path: Path) -> None:
    state = made[1].state_dict()
    few = {name: state[name] for name in ("student_head.2.weight", "student_head.2.bias")}
    torch.save({"model": few}, tmp_path / "few.pth")
    with pytest.raises(UserError, match=r"few\.pth for method distildire: has no student_backbone\.conv1\.weight"):
        import_checkpoint(tmp_path / "few.pth", tmp_path / "run")
    with pytest.raises(UserError, match=r"conv1\.weight has shape \(64, 6, 7, 7\), this network needs \(64, 3, 7, 7\)"):
        import_checkpoint(made[0], tmp_path / "run", method="eps")
    with pytest.raises(
        UsageError, match="--method dnf: the reference implementation's students are distildire and eps"
    ):
        import_checkpoint(made[0], tmp_path / "run", method="dnf")
    assert not (tmp_path / "run").exists()


class Code:
    """An object that unpickling would construct by calling code."""


def test_a_checkpoint_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "config": Code()}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="loading it could run code"):
        import_checkpoint(tmp_path / "code.pth", tmp_path / "run")


def test_a_nonempty_run_folder_takes_no_import(made: Made, imported: Path) -> None:
    before = (imported / "config.json").read_bytes()
    with pytest.raises(UserError, match="published: is not empty"):
        import_checkpoint(made[0], imported)
    assert (imported / "config.json").read_bytes() == before


def test_an_imported_run_is_evaluated_from_a_cache_and_reported_as_trained_elsewhere(
    made: Made, imported: Path, tmp_path: Path
) -> None:
    cache, _ = make_cache(tmp_path / "cache", rows("test", 1, {"adm": 1}))
    found = run_evaluation(imported, cache.root, "pictures")
    assert "trained elsewhere" in found["notes"][0]
    scores = pq.read_table(imported / "evaluations" / "pictures-test-crop" / "scores.parquet").to_pylist()
    specs = make_specs()
    for row in scores:
        image, eps = (torch.from_numpy(values_of(name, row["key"], row["label"], specs)) for name in ("image", "eps"))
        parts = [
            nn.functional.interpolate(x[None].float(), size=256, mode="bilinear", antialias=True) for x in (image, eps)
        ]
        with torch.no_grad():
            logit = made[1](parts[0] / 127.5 - 1, parts[1]).item()
        np.testing.assert_allclose(row["logit"], logit, rtol=1e-3, atol=1e-4)
    report = write_report([imported], tmp_path / "report")
    assert [one["name"] for one in report["runs"]] == [imported.name]
    text = (tmp_path / "report" / "report.md").read_text()
    assert "its weights were trained elsewhere" in text
    assert "adm (unknown whether seen in training)" in text
    assert "published: its weights are those of" in text
