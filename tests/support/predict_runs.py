"""A small cache, runs trained on it, and the detectors of these runs, for the tests of prediction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from distil_cache.cache.store import Cache
from distil_cache.inference import Detector
from distil_cache.inference.decode import InputItem
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.progress import Progress, Silent
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import run_evaluation
from run_state import newest
from small_models import STEPS

BATCH = 4

Row = dict[str, Any]


def build(
    folder: Path,
    images: Path,
    features: str,
    *,
    dataset: str = "d",
    progress: Progress | None = None,
    **options: object,
) -> None:
    settings: dict[str, object] = {"batch_size": BATCH, "device": "cpu", **options}
    config = BuildConfig.checked(
        sources=(images,), cache=folder / "cache", dataset=dataset, adm=str(folder / "adm.safetensors"), steps=STEPS,
        features=(features,), **settings,
    )  # fmt: skip
    run_build(config, progress or Silent())


def train(folder: Path, method: str) -> Path:
    config = TrainConfig.checked(
        dataset="d", method=method, backbone="small", epochs=4, batch_size=5, lr=1e-2, kd_weight=0, seed=3
    )
    run_training(config, folder / "cache", folder / method)
    run_evaluation(folder / method, folder / "cache", "d")
    believe(folder / method)
    return folder / method


def believe(run: Path, balanced_accuracy: float = 0.9) -> None:
    """Let a run's record say that its threshold was reached on a hundred images, with this balanced accuracy."""
    saved = newest(run)
    if saved.best is not None and saved.best.calibration is not None:
        changes = {"real": 50, "fake": 50, "balanced_accuracy": balanced_accuracy}
        saved.best.calibration = saved.best.calibration.model_copy(update=changes)
        (run / "checkpoints" / "last.json").write_text(saved.model_dump_json())


def evaluated(run: Path) -> list[Row]:
    """Rows of the run's evaluation, with the file of each."""
    (info,) = (json.loads(path.read_text()) for path in run.glob("evaluations/d-test-crop/evaluation.json"))
    table = Cache.open(run.parent / "cache").datasets().read("d", info["revision"]).to_pylist()
    files = {row["key"]: str(Path(row["source"]) / row["path"]) for row in table}
    scores = pq.read_table(run / "evaluations" / "d-test-crop" / "scores.parquet").to_pylist()
    return [{**row, "file": files[row["key"]]} for row in scores]


def decoded_image(detector: Detector, file: str) -> np.ndarray:
    return detector.decoder.decode_one(InputItem.of(1, file)).images[0]


def detector(folder: Path, method: str = "distildire", **options: Any) -> Detector:
    adm = str(folder / "adm.safetensors")
    return Detector.from_run(folder / method, **{"adm": adm, "device": "cpu", "batch_size": BATCH, **options})
