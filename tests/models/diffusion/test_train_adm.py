"""The training tool on a few images: it resumes, it learns, and its export can be loaded."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tool_module import load_tool

FLAGS = {"image_size": 8, "num_channels": 32, "num_res_blocks": 1, "channel_mult": "1", "attention_resolutions": "8"}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    """tools/train_adm.py as a module."""
    return load_tool("train_adm")


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve noisy gradients, not square, in a folder with a subfolder."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    rng = np.random.default_rng(0)
    for number in range(12):
        pixels = rng.integers(0, 60, (10, 14, 3)) + np.arange(14)[None, :, None] * 12
        Image.fromarray(pixels.astype(np.uint8)).save(folder / ("sub" if number % 2 else ".") / f"{number}.png")
    return folder


def run(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, image_folder: Path, out: Path, steps: int) -> None:
    """Train as the command line does, at a constant learning rate."""
    arguments = [
        str(image_folder),
        "--out",
        str(out),
        "--flags",
        json.dumps(FLAGS),
        "--steps",
        str(steps),
        "--batch",
        "8",
    ]
    arguments += ["--warmup", "1", "--lr", "2e-3", "--decay-share", "0.001", "--seed", "4"]
    monkeypatch.setattr(sys, "argv", ["train_adm.py", *arguments])
    tool.main()


def test_a_run_that_goes_on_ends_with_the_weights_of_an_undisturbed_one(
    tool: ModuleType, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tool, monkeypatch, image_folder, tmp_path / "whole", 6)
    run(tool, monkeypatch, image_folder, tmp_path / "parts", 3)
    run(tool, monkeypatch, image_folder, tmp_path / "parts", 6)
    whole, parts = (load_file(tmp_path / name / "final.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_the_loss_falls_and_the_export_loads_by_its_own_flags(
    tool: ModuleType, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tool, monkeypatch, image_folder, tmp_path / "run", 100)
    curve = json.loads((tmp_path / "run" / "loss.json").read_text())["loss"]
    assert [step for step, _ in curve] == [50, 100]
    assert curve[-1][1] < curve[0][1]
    exported = tmp_path / "run" / "final.safetensors"
    with safe_open(exported, "pt") as file:
        config = AdmConfig.from_flags(json.loads(file.metadata()["flags"]))
    Adm(config).load_state_dict(load_file(exported))


def test_only_images_with_the_key_prefix_are_read(tool: ModuleType, image_folder: Path) -> None:
    digests = [hashlib.sha256(path.read_bytes()).hexdigest()[0] for path in image_folder.rglob("*.png")]
    chosen = digests[0]
    images = tool.load_images(image_folder, 8, chosen)
    assert images.shape == (digests.count(chosen), 3, 8, 8)
    assert images.dtype == torch.uint8


def test_a_folder_without_images_is_refused(tool: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image"):
        tool.load_images(tmp_path, 8, "0")
