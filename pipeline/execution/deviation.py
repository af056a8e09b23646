"""Measure the error of reduced precision against float32 on a few samples of a build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...cache.gather import gather
from ...features.contract import Network
from ...features.registry import make_specs, walk_of
from ...features.walk import Walk
from ...images.spec import ImageSpec
from ...models.device import arithmetic
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


COMPARED = ("eps", "dire")
"""What is compared: floats by their norm, bytes by how many change."""


def compared_pass(image: ImageSpec, settings: Mapping[str, object]) -> Walk:
    """Return the pass that makes what is compared, with settings of a walk; its floats are not rounded."""
    walk = walk_of(make_specs(COMPARED, {**settings, "storage": "float32"}, {"image": image}))
    assert walk is not None
    return walk


def measure_deviation(exact: Network, reduced: Network, walk: Walk, pixels: Tensor, keys: Sequence[str]) -> Deviation:
    """Compare two models in a pass over the same images.

    Parameters
    ----------
    exact, reduced
        The models, on the images' device.
    walk
        The pass, see `compared_pass`.
    pixels : Tensor, shape (B, 3, S, S)
        The images, uint8.
    keys
        Their keys.
    """
    whole = walk.route(frozenset(COMPARED))
    a, b = (walk.queue(model, {"image": pixels}, keys, COMPARED, whole) for model in (exact, reduced))
    changed = (a["dire"].int() - b["dire"].int()).abs() > 1
    return Deviation(
        samples=len(keys),
        eps_relative=float((a["eps"] - b["eps"]).norm() / a["eps"].norm()),
        dire_changed=float(changed.float().mean()),
    )


def deviation_on(context: TaskContext, keys: Sequence[str]) -> Deviation:
    """Compare a build's reduced precision with float32 on the cached images of these keys."""
    context.stores["image"].index(refresh=True)
    config, device, own = context.config, context.models.device, walk_of(context.specs)
    assert own is not None
    walk = compared_pass(own.image, {**own.settings, "steps": config.steps, "real_step": config.real_step})
    pixels = torch.from_numpy(gather(context.stores["image"], keys)).to(device)
    exact, reduced = (adm_on(config, device, reduced=choice) for choice in (False, True))
    with arithmetic(config.precision, device):
        return measure_deviation(exact, reduced, walk, pixels, keys)
