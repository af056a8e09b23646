"""Run the demo from end to end: images, build, two trainings, evaluation, controls, report, and the build again.

Everything runs on the CPU, so that the numbers do not depend on a GPU. A second run in the same folder reuses images,
features, trainings and evaluations, and writes only the report again.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..cache.store import Cache
from ..pipeline.build import run_build
from ..pipeline.config import BuildConfig
from ..progress import Progress
from ..report import Addition, write_report
from ..storage.atomic import make_folder
from ..storage.locks import FolderLock
from ..train.config import TrainConfig
from ..train.engine.loop import run_training
from ..train.evaluation.evaluate import run_evaluation
from .controls import DireStudy, baseline_scores, metadata_auc, study_dire
from .dataset import BLURRED, DIRE, MAIN, SEEN, make_images
from .recipe import Manifest, Recipe
from .sections import TITLES, baseline_section, dire_section, dire_verdict, images_section, test_rows

_Result = dict[str, Any]

TEACHER = "efficientnet_lite0"
STUDENT = "small32"
INPUT_SIDE = 96
"""Side length of the input of teacher and student in pixels: 3x3 positions in the last feature map of either."""

EPOCHS = 20
BATCH = 32
LEARNING_RATE = 1e-3
KD_WEIGHTS = (0.5, 0.0)

PARTIAL = 5
"""Steps of the partial inversion: up to timestep 200, the middle one of the twins' strengths."""


@dataclass(frozen=True)
class _Build:
    """One build of the demo; ``real_step`` is the number of inverted steps, 0 for all."""

    dataset: str
    features: tuple[str, ...]
    real_step: int = 0


BUILDS = {
    "main": _Build(MAIN, ("train:image,eps,dire,teacher", "test:image,eps")),
    "blurred": _Build(BLURRED, ("image,eps",)),
    "dire": _Build(DIRE, ("image,eps,dire",)),
    "partial dire": _Build(DIRE, ("image,dire",), PARTIAL),
}
"""The builds, in their order."""

PATHS = {"dire": "all steps inverted", "partial dire": f"only the first {PARTIAL} steps inverted"}
"""Builds whose DIRE is compared by class -> description of their inversion."""

CAVEATS = {
    PATHS["partial dire"]: "This depth was chosen among five on crops of the same photographs, and the "
    "intervals do not cover that choice: treat it as a hypothesis, not as a finding."
}


class StageTimer:
    """Records wall and CPU seconds of each stage."""

    def __init__(self) -> None:
        self.stages: list[dict[str, float | str]] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        self.stages.append({"stage": name, "seconds": round(seconds, 1), "cpu_seconds": round(cpu_seconds, 1)})


def run_demo(
    out: Path, progress: Progress, *, seed: int = 0, recipe: Recipe | None = None, epochs: int = EPOCHS
) -> _Result:
    """Run the demo.

    Parameters
    ----------
    out : Path
        Folder for images, cache, runs and report.
    progress : Progress
    seed : int
        Seed of crops, noise, weights and sample order; replaces that of the recipe.
    recipe : Recipe, optional
        Numbers of images.
    epochs : int
        Of each training.

    Returns
    -------
    dict
        Numbers of the demo, for JSON.

    Raises
    ------
    UserError
        If the folder has another demo or one that is running, or if the photographs or the teacher's weights are
        missing.
    """
    make_folder(out)
    with FolderLock(out, f"{out}: another demo is running there. Wait until it ends, or choose another --out."):
        return _run(out, progress, (recipe or Recipe()).model_copy(update={"seed": seed}), epochs)


def _run(out: Path, progress: Progress, recipe: Recipe, epochs: int) -> _Result:
    images, cache, clock, seed = out / "images", out / "cache", StageTimer(), recipe.seed
    with clock.stage("images"):
        manifest, made = make_images(images, recipe, progress)
    with clock.stage("build"):
        builds = _build(images, cache, progress)
    runs = []
    for weight in KD_WEIGHTS:
        runs.append(out / "runs" / f"kd-{weight:g}")
        with clock.stage(f"train, distillation {weight:g}"):
            _train(cache, runs[-1], weight, epochs, seed, progress)
    with clock.stage("evaluate"):
        for run in runs:
            for name in ("main", "blurred", "dire"):
                _evaluate(run, cache, BUILDS[name].dataset, builds[name]["build"], progress)
    with clock.stage("controls and report"):
        report = _report(out, manifest, runs, {path: builds[name]["build"] for name, path in PATHS.items()}, seed)
    with clock.stage("build again"):
        again = _build(images, cache, progress)
    return {
        "out": str(out),
        "seed": seed,
        **_images(manifest, made),
        "adm_calls": {
            "images": manifest.adm_calls if made else 0,
            "features": sum(build["adm_calls"] for build in builds.values()),
            "again": sum(build["adm_calls"] for build in again.values()),
        },
        "features": _features(builds),
        "again": _features(again),
        "cache_bytes": sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()),
        **report,
        "stages": clock.stages,
        "seconds": round(sum(float(stage["seconds"]) for stage in clock.stages), 1),
        "peak_memory_bytes": _peak_memory(),
    }


def _build(images: Path, cache: Path, progress: Progress) -> dict[str, _Result]:
    return {
        name: run_build(
            BuildConfig.checked(
                sources=(images / build.dataset,),
                cache=cache,
                dataset=build.dataset,
                layout="cnndet",
                adm=SEEN,
                features=build.features,
                real_step=build.real_step,
                teacher=TEACHER,
                train_size=INPUT_SIDE,
                device="cpu",
            ),
            progress,
        )
        for name, build in BUILDS.items()
    }


def _train(cache: Path, run: Path, kd_weight: float, epochs: int, seed: int, progress: Progress) -> None:
    config = TrainConfig.checked(
        dataset=MAIN,
        kd_weight=kd_weight,
        backbone=STUDENT,
        epochs=epochs,
        batch_size=BATCH,
        lr=LEARNING_RATE,
        seed=seed,
    )
    run_training(config, cache, run, resume=True, device="cpu", progress=progress)


def _evaluate(run: Path, cache: Path, dataset: str, build: str, progress: Progress) -> None:
    run_evaluation(run, cache, dataset, transform="resize", build=build, device="cpu", progress=progress)


def _report(out: Path, manifest: Manifest, runs: list[Path], dire_builds: dict[str, str], seed: int) -> _Result:
    """Measure the controls and write the report; return the demo's numbers.

    ``dire_builds`` maps the description of an inversion to the build that has its DIRE.
    """
    images = out / "images"
    main, blurred = baseline_scores(
        images, manifest.of(MAIN, "train"), [manifest.of(MAIN, "test"), manifest.of(BLURRED, "test")]
    )
    metadata = metadata_auc(images, manifest.of(MAIN))
    cache = Cache.open(out / "cache")
    studies = {path: study_dire(cache, build, manifest.of(DIRE), seed) for path, build in dire_builds.items()}
    rows = test_rows(runs, manifest.scenes(), {MAIN: main, BLURRED: blurred})
    sections = [
        *(dire_section(path, study, CAVEATS.get(path, "")) for path, study in studies.items()),
        baseline_section(rows, [run.name for run in runs], metadata),
        images_section(manifest),
    ]
    added = Addition("demo", sections)
    content = write_report(runs, out / "report", additions=[added], clusters=manifest.scenes())
    return {
        "test_sets": rows,
        "dire": [_dire(path, study) for path, study in studies.items()],
        "metadata_auc": metadata,
        "report": str(out / "report" / content["files"]["html"]),
    }


def _dire(path: str, study: DireStudy) -> _Result:
    return {
        "path": path,
        "classes": [
            {"images": TITLES[kind], "count": len(mean.values), "mean": mean.mean, "interval": mean.interval}
            for kind, mean in study.classes.items()
        ],
        "differences": [
            {"images": TITLES[one], "minus": TITLES[other], "mean": mean.mean, "interval": mean.interval}
            for (one, other), mean in study.differences.items()
        ],
        "verdict": dire_verdict(path, study),
        "conclusion": dire_verdict(path, study).rpartition("\n")[2],
    }


def _images(manifest: Manifest, made: bool) -> _Result:
    train, test = manifest.of(MAIN, "train"), manifest.of(MAIN, "test")
    return {
        "images": {"train": len(train), "test": len(test), "files": len(manifest.images), "made": made},
        "scenes": {
            split: sorted({record.scene for record in records if record.scene is not None})
            for split, records in (("train", train), ("test", test))
        },
    }


def _features(builds: dict[str, _Result]) -> _Result:
    """Sum the rows that builds computed and reused, and the images they decoded."""
    features = [feature for build in builds.values() for feature in build["features"].values()]
    return {
        "computed": sum(feature["computed"] for feature in features),
        "reused": sum(feature["reused"] for feature in features),
        "decoded": sum(build["decoded"] for build in builds.values()),
    }


def _peak_memory() -> int:
    """Return the peak resident memory of this process in bytes (the system reports KiB on Linux, bytes on macOS)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
