"""The learning rate of each step, which epoch is the best, and when a training ends before its last epoch.

All of it depends only on the configuration and the training's state, so a resumed training needs nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import PLATEAUS, TrainConfig
from ..runs.forms import EpochMetrics, State

RISE, RISE_AFTER_DROP = 0.001, 0.002
"""By how much the accuracy must rise under ``accuracy-plateau``, before and after the first drop of the rate."""


@dataclass(frozen=True)
class LrSchedule:
    """How the rate changes from ``config.lr`` on.

    ``constant`` keeps it. ``cosine`` follows half a cosine down to ``min_lr`` at the last step. ``step`` multiplies it
    by ``lr_factor`` every ``drop_every`` epochs. ``plateau`` multiplies it by ``lr_factor`` when the validation has not
    improved for ``patience`` epochs, until it would fall below ``min_lr``. ``accuracy-plateau`` is the plateau of
    CNNDet's code, which those of DIRE and DNF keep: see `is_best`. Each starts with ``warmup_steps`` steps of a linearly
    rising rate.

    Attributes
    ----------
    config
        The configuration of the training.
    steps
        Steps per epoch.
    """

    config: TrainConfig
    steps: int

    def rate(self, state: State) -> float:
        """Return the rate of the next step."""
        config, step = self.config, state.step
        if step < config.warmup_steps:
            return config.lr * (step + 1) / config.warmup_steps
        if config.schedule == "cosine":
            floor, last = config.min_lr or 0.0, config.epochs * self.steps - 1
            done = (step - config.warmup_steps) / max(1, last - config.warmup_steps)
            return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self._dropped(state)

    def after_epoch(self, state: State) -> None:
        """Record a drop of the rate if the validation has not improved for long enough; ``state`` is past the epoch."""
        waited = state.epoch - max([state.best_epoch, *state.drops])
        if self.config.schedule in PLATEAUS and waited >= (self.config.patience or 1):
            state.drops.append(state.epoch)

    def is_best(self, state: State, line: EpochMetrics) -> bool:
        """Return whether the epoch of ``line`` is the best so far; ``state`` is past that epoch.

        The best epoch has the highest validation AP (`rank`). Under ``accuracy-plateau`` it is the last whose accuracy
        was at least 0.001 above that of the best before it. After a drop of the rate the search begins again: the next
        epoch is the best whatever its accuracy, and from then on the accuracy must rise by 0.002.
        """
        if self.config.schedule != "accuracy-plateau":
            return state.best_rank is None or rank(line) > state.best_rank
        if state.best_epoch <= max(state.drops, default=0):
            return True
        accuracy, best = line["val_acc"], state.history[state.best_epoch - 1]["val_acc"]
        assert accuracy is not None
        assert best is not None
        return accuracy >= best + (RISE_AFTER_DROP if state.drops else RISE)

    def ended(self, state: State) -> str | None:
        """Return why the training is over; None while it is not."""
        config = self.config
        if state.epoch == 0:
            return None
        if config.stop_after and state.epoch - state.best_epoch >= config.stop_after:
            return f"no better validation in {config.stop_after} epochs"
        if config.schedule in PLATEAUS and self._dropped(state) < (config.min_lr or 0.0) * (1 - 1e-9):
            return f"the learning rate fell below {config.min_lr:g}"
        return "all epochs done" if state.epoch >= config.epochs else None

    def _dropped(self, state: State) -> float:
        config = self.config
        drops = len(state.drops) if config.drop_every is None else state.epoch // config.drop_every
        return config.lr * (config.lr_factor or 1.0) ** drops


def rank(line: EpochMetrics) -> tuple[float, float]:
    """Return an epoch's rank: validation AP, then low BCE; the number of the epoch without validation rows."""
    if line["val_bce"] is None:
        return float(line["epoch"] or 0), 0.0
    return -1.0 if line["val_ap"] is None else line["val_ap"], -line["val_bce"]
