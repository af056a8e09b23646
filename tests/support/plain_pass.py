"""The features of one image in plain Python, step by step from the papers: what any faster or fused pass must give.

Each image is computed by itself, repeated to a batch of the build's size, since kernels may round by the size of their
batch but not by the neighbours of an image.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from distil_cache.models.diffusion.noise_schedule import NoiseSchedule
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.generic]


def plain_features(
    model: Callable[[Tensor, Tensor], Tensor], image: Array, schedule: NoiseSchedule, batch: int, *, clip: bool = True
) -> dict[str, Array]:
    """Return eps, recon, dire, and noise with both reductions, of a uint8 image (3, S, S), as a cache stores them."""
    x = torch.from_numpy(np.stack([image] * batch)).float() / 255 * 2 - 1
    state, noises = x, []
    for step in schedule.ascending():
        noise, clean = _predicted(model, state, step.timestep, step.recip, step.recipm1, clip)
        noises.append(noise)
        state = step.next_signal * clean + step.next_noise * noise
    for step in schedule.descending():
        noise, clean = _predicted(model, state, step.timestep, step.recip, step.recipm1, clip)
        state = step.prev_signal * clean + step.prev_noise * noise
    total = torch.zeros_like(x)
    for noise in noises:
        total = total + noise
    rows = {
        "eps": noises[0].half(),
        "recon": ((state + 1) * 127.5).clamp(0, 255).to(torch.uint8),
        "dire": ((x - state).abs() * 127.5).clamp(0, 255).to(torch.uint8),
        "noise mean": (total / len(noises)).half(),
        "noise first": noises[0].half(),
    }
    return {name: row[0].numpy() for name, row in rows.items()}


def plain_stepwise(
    model: Callable[[Tensor, Tensor], Tensor], image: Array, schedule: NoiseSchedule, batch: int, *, clip: bool = True
) -> tuple[Array, int]:
    """Return SeDID's errors by their definition, two calls each beside those of the states, and the calls; (N - 1,)."""
    x, calls = torch.from_numpy(np.stack([image] * batch)).float() / 255 * 2 - 1, 0
    errors = []
    steps = list(schedule.ascending())
    for step, above in itertools.pairwise(steps):
        noise, clean = _predicted(model, x, step.timestep, step.recip, step.recipm1, clip)
        there = step.next_signal * clean + step.next_noise * noise
        noise, clean = _predicted(model, there, above.timestep, above.recip, above.recipm1, clip)
        back = above.prev_signal * clean + above.prev_noise * noise
        errors.append(((back - x) ** 2).flatten(1).mean(1)[0])
        x, calls = there, calls + 2
    return torch.stack(errors).numpy(), calls


def plain_trajectory(
    model: Callable[[Tensor, Tensor], Tensor], image: Array, schedule: NoiseSchedule, batch: int, *, clip: bool = True
) -> Array:
    """Return the mean absolute differences of the states of both ways by noise level, the clean one first; (N,)."""
    x = torch.from_numpy(np.stack([image] * batch)).float() / 255 * 2 - 1
    steps = list(schedule.ascending())
    up, state = {-1: x, 0: x}, x  # the image is both the clean state and that of the first timestep
    for level, step in enumerate(steps):
        noise, clean = _predicted(model, state, step.timestep, step.recip, step.recipm1, clip)
        state = step.next_signal * clean + step.next_noise * noise
        up[level + 1] = state
    down = {}
    for level, step in reversed(list(enumerate(steps))):
        noise, clean = _predicted(model, state, step.timestep, step.recip, step.recipm1, clip)
        state = step.prev_signal * clean + step.prev_noise * noise
        down[level - 1] = state
    return torch.stack([(up[level] - down[level]).abs().flatten(1).mean(1)[0] for level in sorted(down)]).numpy()


def _predicted(
    model: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: int, recip: float, recipm1: float, clip: bool
) -> tuple[Tensor, Tensor]:
    raw = model(x, torch.full((len(x),), t))[:, :3]
    clean = recip * x - recipm1 * raw
    if clip:
        clean = clean.clamp(-1, 1)
    return (recip * x - clean) / recipm1, clean


def plain_teacher(
    model: nn.Module, dire: Array, size: int, mean: Sequence[float], std: Sequence[float], batch: int
) -> Array:
    """Return the teacher's maps of both views of a uint8 DIRE (3, S, S), float16 (2, C, h, w)."""
    x = torch.from_numpy(np.stack([dire] * batch)).float() / 255
    x = nn.functional.interpolate(x, size=(size, size), mode="bilinear", antialias=True)
    centre, spread = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return torch.stack([model((view - centre) / spread).half()[0] for view in (x, x.flip(-1))]).numpy()
