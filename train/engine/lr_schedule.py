"""The learning rate of each step, and when a training ends before its last epoch.

Both follow from the configuration and the training's state alone, so that a training that goes on needs nothing else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config import TrainConfig
from ..runs.checkpoint import State


@dataclass(frozen=True)
class LrSchedule:
    """How the rate moves from ``config.lr`` on.

    constant; cosine: half a cosine down to ``min_lr`` at the last step; step: times ``lr_factor`` every ``drop_every``
    epochs; plateau: times ``lr_factor`` when the validation has not improved for ``patience`` epochs, until the rate would
    fall below ``min_lr``. Any of them starts with ``warmup_steps`` steps of a rising rate.
    steps : of one epoch.
    """

    config: TrainConfig
    steps: int

    def rate(self, state: State) -> float:
        """The rate of the next step."""
        config, step = self.config, state.step
        if step < config.warmup_steps:
            return config.lr * (step + 1) / config.warmup_steps
        if config.schedule == "cosine":
            floor, last = config.min_lr or 0.0, config.epochs * self.steps - 1
            done = (step - config.warmup_steps) / max(1, last - config.warmup_steps)
            return floor + (config.lr - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        return self._dropped(state)

    def after_epoch(self, state: State) -> None:
        """Note a drop of the rate if the validation has been no better for long enough; ``state`` is past the epoch."""
        waited = state.epoch - max([state.best_epoch, *state.drops])
        if self.config.schedule == "plateau" and waited >= (self.config.patience or 1):
            state.drops.append(state.epoch)

    def ended(self, state: State) -> str | None:
        """Why the training is over, in words; None while it is not."""
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
