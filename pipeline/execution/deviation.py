"""Measure the error of reduced precision against float32 on a few samples of a build."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...cache.gather import gather
from ...features.registry import walk_of
from ...features.walk import to_signal
from ...models.device import arithmetic
from ...models.diffusion.conditioning import with_classes
from ...models.diffusion.ddim import NoiseModel, extract
from ...models.diffusion.noise_schedule import NoiseSchedule
from .context import TaskContext
from .networks import adm_on

SAMPLES = 4


@dataclass(frozen=True)
class Deviation:
    """Difference between a feature pass in reduced precision and the same pass in float32.

    Attributes
    ----------
    samples
        Number of images.
    eps_relative
        Norm of the difference of eps / norm of eps.
    dire_changed
        Fraction of uint8 DIRE values that differ by more than 1.
    """

    samples: int
    eps_relative: float
    dire_changed: float


def measure_deviation(
    exact: NoiseModel, reduced: NoiseModel, x: Tensor, schedule: NoiseSchedule, *, clip: bool, real_step: int
) -> Deviation:
    """Compare two models on the same images, x float32 (B, 3, S, S) in [-1, 1], on their device."""
    with torch.inference_mode():
        a = extract(exact, x, schedule, {"eps", "dire"}, clip=clip, real_step=real_step)
        b = extract(reduced, x, schedule, {"eps", "dire"}, clip=clip, real_step=real_step)
    assert a.eps is not None
    assert b.eps is not None
    assert a.dire is not None
    assert b.dire is not None
    changed = (a.dire.int() - b.dire.int()).abs() > 1
    return Deviation(
        samples=len(x),
        eps_relative=float((a.eps - b.eps).norm() / a.eps.norm()),
        dire_changed=float(changed.float().mean()),
    )


def deviation_on(context: TaskContext, keys: Sequence[str]) -> Deviation:
    """Compare a build's reduced precision with float32 on the cached images of these keys."""
    context.stores["image"].index(refresh=True)
    config, device, walk = context.config, context.models.device, walk_of(context.specs)
    assert walk is not None
    schedule = walk.adm.config.schedule(config.steps)
    pixels = torch.from_numpy(gather(context.stores["image"], keys)).to(device)
    exact, reduced = (
        with_classes(adm_on(config, device, reduced=choice), config.class_label, keys, device)
        for choice in (False, True)
    )
    with arithmetic(config.precision, device):
        return measure_deviation(
            exact, reduced, to_signal(pixels), schedule, clip=config.clip, real_step=config.real_step
        )
