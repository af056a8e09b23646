"""The learning rate of each step, and when a training ends before its last epoch.

Both depend only on the configuration and the training's state, so a resumed training needs nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import TrainConfig
from ..runs.checkpoint import State


@dataclass(frozen=True)
class LrSchedule:
    """How the rate changes from ``config.lr`` on.

    ``constant`` keeps it. ``cosine`` follows half a cosine down to ``min_lr`` at the last step. ``step`` multiplies it
    by ``lr_factor`` every ``drop_every`` epochs. ``plateau`` multiplies it by ``lr_factor`` when the validation has not
    improved for ``patience`` epochs, until it would fall below ``min_lr``. Each starts with ``warmup_steps`` steps of a
    linearly rising rate.

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
        if self.config.schedule == "plateau" and waited >= (self.config.patience or 1):
            state.drops.append(state.epoch)

    def ended(self, state: State) -> str | None:
        """Return why the training is over; None while it is not."""
        config = self.config
        if state.epoch == 0:
            return None
        if config.stop_after and state.epoch - state.best_epoch >= config.stop_after:
            return f"no better validation in {config.stop_after} epochs"
        if config.schedule == "plateau" and self._dropped(state) < (config.min_lr or 0.0) * (1 - 1e-9):
            return f"the learning rate fell below {config.min_lr:g}"
        return "all epochs done" if state.epoch >= config.epochs else None

    def _dropped(self, state: State) -> float:
        config = self.config
        drops = len(state.drops) if config.drop_every is None else state.epoch // config.drop_every
        return config.lr * (config.lr_factor or 1.0) ** drops
