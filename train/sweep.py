"""A grid of trainings over one cache: ``--sweep kd_weight=0,0.5,1 --sweep seed=0,1,2`` is nine runs.

Each run has its own folder in the sweep's, named by the settings that vary. A finished run with the same configuration
is kept, and an interrupted one is resumed.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cache.local_copy.reader import LocalCopy
from ..errors import DistilCacheError, UsageError
from ..progress import Progress
from ..storage import AnyPath, path_exists
from ..storage.locks import waiting_lock
from .config import TrainConfig
from .data.readers import ReaderPool
from .engine.distributed import join_process_group
from .engine.loop import train_run
from .runs.checkpoint import replace_text
from .runs.forms import SWEEP, read_sweep
from .runs.lock import delete_leftovers

LOCK = "sweep.lock"


def parse_sweep(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse ``["kd_weight=0,0.5", "seed=0,1"]`` to values (text) by setting.

    Raises
    ------
    UsageError
        A text cannot be parsed, or a setting or value occurs twice.
    """
    grid: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        field = name.strip().replace("-", "_")
        chosen = tuple(value.strip() for value in values.split(","))
        if not equals or not field or not all(chosen):
            raise UsageError(f"--sweep {text}: is not of the form setting=value,value.")
        if field not in TrainConfig.model_fields:
            raise UsageError(f"--sweep {text}: unknown training setting {field!r}.")
        if field in grid:
            raise UsageError(f"--sweep {text}: {field} is given twice; separate its values by commas.")
        if len(set(chosen)) < len(chosen):
            raise UsageError(f"--sweep {text}: a value is given twice.")
        grid[field] = chosen
    return grid


def plan_sweep(settings: Mapping[str, Any], grid: Mapping[str, Sequence[str]]) -> dict[str, TrainConfig]:
    """Return the name and configuration of each run of a grid.

    Parameters
    ----------
    settings
        Common settings of the runs, as for ``TrainConfig.checked``.
    grid
        Values by setting.

    Raises
    ------
    UsageError
        A configuration is not valid, or two runs are the same.
    """
    both = sorted(name for name in grid if settings.get(name) is not None)
    if both:
        raise UsageError(f"--sweep {both[0]}=…: --{both[0].replace('_', '-')} is given too. Omit one of them.")
    plan: dict[str, TrainConfig] = {}
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = ",".join(f"{field}={value}" for field, value in chosen.items()).replace("/", "-")
        config = TrainConfig.checked(**{**settings, **chosen})
        same = next((other for other, known in plan.items() if known == config), name if name in plan else None)
        if same is not None:
            raise UsageError(f"--sweep: {name} and {same} are the same training.")
        plan[name] = config
    return plan


def run_sweep(
    settings: Mapping[str, Any],
    grid: Mapping[str, Sequence[str]],
    cache_root: AnyPath | str,
    folder: Path,
    *,
    device: str = "auto",
    workers: int = 0,
    local_copy: LocalCopy | None = None,
    progress: Progress | None = None,
) -> dict[str, object]:
    """Train every run of a grid into ``folder / NAME``.

    The sweep stops at the first run that fails or is interrupted; the same call resumes it.

    Parameters
    ----------
    settings, grid
        See `plan_sweep`.
    cache_root
        The cache.
    folder
        The sweep's folder.
    device, workers, local_copy, progress
        See `engine.loop.run_training`.

    Returns
    -------
    dict
        The results, ready for JSON; empty in all but the first process.

    Raises
    ------
    UserError
        A run failed or was interrupted; the message names it.
    """
    plan = plan_sweep(settings, grid)
    runs = []
    with ReaderPool(workers) as readers, join_process_group(device) as ranks:
        if ranks.first:
            _note(folder, grid, plan)
        for number, (name, config) in enumerate(plan.items(), 1):
            try:
                result = train_run(
                    config,
                    cache_root,
                    folder / name,
                    ranks,
                    readers,
                    resume=True,
                    local_copy=local_copy,
                    progress=progress,
                )
            except DistilCacheError as error:
                error.args = (f"run {number} of {len(plan)}, {name}: {error}",)
                raise
            runs.append({"name": name, "settings": dict(zip(grid, _values(config, grid), strict=True)), **result})
    return {"folder": str(folder), "runs": runs} if ranks.first else {}


def _note(folder: Path, grid: Mapping[str, Sequence[str]], plan: Mapping[str, TrainConfig]) -> None:
    """Record the runs in the sweep's folder, after those of other sweeps, which may start at the same time."""
    path = folder / SWEEP
    folder.mkdir(parents=True, exist_ok=True)
    with waiting_lock(folder / LOCK) as locked:
        if locked:
            delete_leftovers(folder)
        known = read_sweep(path).runs if path_exists(path) else []
        names = dict.fromkeys([*known, *plan])
        record = {"grid": {name: list(values) for name, values in grid.items()}, "runs": list(names)}
        content = json.dumps(record, indent=2)
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            replace_text(path, content)


def _values(config: TrainConfig, grid: Mapping[str, Sequence[str]]) -> list[object]:
    plain = config.model_dump(mode="json")
    return [plain[name] for name in grid]
