"""The newest state of a training and its best student, as their record names them."""

from __future__ import annotations

from pathlib import Path

from distil_cache.train.runs.forms import Best, Saved, read_saved


def newest(run: Path) -> Saved:
    saved = read_saved(run / "checkpoints")
    assert saved is not None
    return saved


def best(run: Path) -> Best:
    found = newest(run).best
    assert found is not None
    return found


def best_file(run: Path) -> Path:
    """The file of the best student."""
    return run / "checkpoints" / best(run).weights.name


def as_of_before(run: Path) -> None:
    """Make of a run what an earlier version left: the best student and its threshold in files of their own."""
    saved, of_best = newest(run), best(run)
    (run / "checkpoints" / "best.safetensors").write_bytes(best_file(run).read_bytes())
    if of_best.calibration is not None:
        (run / "calibration.json").write_text(of_best.calibration.model_dump_json())
    for old, new in (
        (saved.weights, f"last-{saved.progress.step:08d}.safetensors"),
        (saved.optimiser, f"last-{saved.progress.step:08d}.optim.safetensors"),
    ):
        (run / "checkpoints" / old).rename(run / "checkpoints" / new)
        saved.sha256[new] = saved.sha256.pop(old)
    saved.weights, saved.optimiser, saved.best = *sorted(saved.sha256, key=len), None
    for path in (run / "checkpoints").glob("step-*"):
        path.unlink()
    (run / "checkpoints" / "last.json").write_text(saved.model_dump_json(exclude={"best"}))
