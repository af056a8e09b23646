"""The swap test of a run: a detector that reads the codec is found out, and what cannot be measured is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from distil_cache.cli import app
from distil_cache.errors import UsageError, UserError
from distil_cache.images.file import ImageRejected, Limits
from distil_cache.images.upright import load_rgb
from distil_cache.inference import swap
from distil_cache.inference.swap import History, SwapImage, lend, run_swap
from distil_cache.metrics.swap import SWAP, read_swap
from distil_cache.pipeline.sources.file import SourceFile
from PIL import Image
from predict_runs import build
from small_models import SIDE, write_adm
from typer.testing import CliRunner

QUALITY = 15


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of images of noise, real ones saved as JPEG, generated ones as PNG: nothing but the codec differs."""
    folder = tmp_path_factory.mktemp("swap")
    rng = np.random.default_rng(0)
    for split, images in (("train", 16), ("test", 8)):
        for name in ("real", "fake"):
            place = folder / "images" / split / name
            place.mkdir(parents=True)
            for number in range(images):
                picture = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))
                if name == "real":
                    picture.save(place / f"{number}.jpg", quality=QUALITY)
                else:
                    picture.save(place / f"{number}.png")
    write_adm(folder / "adm.safetensors")
    build(folder, folder / "images", "image")
    train_cnndet(folder)
    return folder


def train_cnndet(folder: Path) -> None:
    from distil_cache.train.config import TrainConfig
    from distil_cache.train.engine.loop import run_training

    config = TrainConfig.checked(
        dataset="d", method="cnndet", backbone="small", epochs=8, batch_size=8, lr=1e-2, seed=3
    )
    run_training(config, folder / "cache", folder / "cnndet")


def test_a_detector_of_the_codec_alone_changes_its_verdict_with_the_codec(folder: Path) -> None:
    found = run_swap(folder / "cnndet", sample=100, device="cpu")

    assert (found["real"], found["fake"]) == (8, 8)
    assert (found["moved_real"], found["moved_fake"]) == (0, 8)  # a JPEG's traces cannot be taken away
    assert found["auc_own"] > 0.9
    assert found["auc_swapped"] < found["auc_own"] - 0.2
    assert found["carried"] > 0.5
    low, high = found["interval"]
    assert 0 < low <= found["carried"] <= high
    assert [(one["label"], one["history"], one["images"]) for one in found["histories"]] == [
        (0, f"jpeg of quality {QUALITY}", 8),
        (1, "png", 8),
    ]
    stored = read_swap(folder / "cnndet" / SWAP)
    assert stored is not None
    assert stored.model_dump(mode="json").items() <= found.items()


def test_the_command_prints_the_share_and_stores_it(folder: Path) -> None:
    printed = CliRunner().invoke(app, ["audit", "--swap", str(folder / "cnndet")])
    assert printed.exit_code == 0, printed.output
    assert "The files' history carries" in printed.output.replace("\n", " ")

    answered = CliRunner().invoke(app, ["audit", "--swap", str(folder / "cnndet"), "--json"])
    assert json.loads(answered.stdout)["carried"] > 0.5


def test_a_detector_of_the_codec_alone_fails_on_images_of_one_history(folder: Path) -> None:
    found = run_swap(folder / "cnndet", sample=100, harmonize=f"jpeg:{QUALITY}", device="cpu")["one_history"]

    assert found["history"] == f"jpeg:{QUALITY}"
    assert found["auc"] < 0.8
    assert found["change"][1] < 0  # the AUC falls by more than chance
    assert found["accuracy"] < found["accuracy_own"]
    printed = CliRunner().invoke(app, ["audit", "--swap", str(folder / "cnndet"), "--harmonize", f"jpeg:{QUALITY}"])
    assert f"All compressed as jpeg:{QUALITY}: AUC {found['auc']:.3f}" in printed.output.replace("\n", " ")
    assert read_swap(folder / "cnndet" / SWAP).one_history.auc == found["auc"]
    assert run_swap(folder / "cnndet", sample=100, device="cpu")["one_history"] is None


def test_a_run_that_was_trained_on_one_history_needs_no_other(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "cnndet", tmp_path / "run")
    record = json.loads((tmp_path / "run/config.json").read_text())
    record["specs"]["image"]["harmonize"] = {"codec": "jpeg", "quality": 90}
    (tmp_path / "run/config.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="all compressed as jpeg:90 first"):
        run_swap(tmp_path / "run", sample=100, harmonize="jpeg:95", device="cpu")


def test_options_of_sources_are_refused_beside_a_run(folder: Path) -> None:
    refused = CliRunner().invoke(app, ["audit", str(folder / "images"), "--swap", str(folder / "cnndet")])
    assert isinstance(refused.exception, UsageError)


def test_images_that_are_gone_are_named(folder: Path, tmp_path: Path) -> None:
    moved = (folder / "images/test").rename(folder / "images/away")
    try:
        with pytest.raises(UserError, match=r"needs usable test images of both classes.*missing"):
            run_swap(folder / "cnndet", sample=100, device="cpu")
    finally:
        moved.rename(folder / "images/test")


def test_each_image_is_decoded_once_and_one_that_cannot_be_is_set_aside(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []

    def counted(data: bytes, limits: Limits) -> np.ndarray:
        decoded.append(data)
        if len(decoded) == 3:
            raise ImageRejected("damaged", "broken")
        return load_rgb(data, limits)

    monkeypatch.setattr(swap, "load_rgb", counted)
    found = run_swap(folder / "cnndet", sample=100, device="cpu")

    assert len(decoded) == 16
    assert found["real"] + found["fake"] == 15
    assert [one["detail"] for one in found["set_aside"]] == ["broken"]


def image(label: int, number: int, history: History) -> SwapImage:
    return SwapImage(SourceFile("root", f"{number}", label, "test", "", "", ""), f"{label}{number}", history)


def test_histories_of_a_class_are_lent_in_equal_shares_to_the_other_and_in_turn_to_the_own() -> None:
    jpegs = [History("jpeg", 75), History("jpeg", 95)]
    images = [*(image(0, n, jpegs[n]) for n in range(2)), *(image(1, n, History("png")) for n in range(4))]

    assert lend(images, of_other=True) == [History("png")] * 2 + [jpegs[0]] * 2 + [jpegs[1]] * 2
    assert lend(images, of_other=False) == [jpegs[1], jpegs[0]] + [History("png")] * 4
