"""The pass of eps, recon, dire and noise from inversion and sampling, one after the other: an oracle of the pass with taps."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import torch
from distil_cache.models.diffusion.ddim import NoiseModel, dire_image, invert, predict, sample, to_uint8, used_steps
from distil_cache.models.diffusion.noise_schedule import NoiseSchedule
from torch import Tensor

EXTRACTS = frozenset({"eps", "recon", "dire", "noise"})
"""Features of `extract`: ``eps`` takes one call, ``noise`` the inversion, ``recon`` and ``dire`` sampling as well."""


@dataclass(frozen=True)
class Extraction:
    """Result of one pass; a feature that was not requested is None.

    Attributes
    ----------
    calls
        Model calls per image.
    finite : Tensor, shape (B,)
        bool, whether all numbers that the model gave for an image were finite, which 8 bits cannot show.
    eps : Tensor, shape (B, 3, H, W)
        The first step's noise, float32.
    recon : Tensor, shape (B, 3, H, W)
        The reconstruction, float32 in about [-1, 1].
    dire : Tensor, shape (B, 3, H, W)
        The reconstruction error, uint8; see `to_uint8`.
    noise_first, noise_mean : Tensor, shape (B, 3, H, W)
        First and mean noise of the inversion, float32.
    """

    calls: int
    finite: Tensor
    eps: Tensor | None = None
    recon: Tensor | None = None
    dire: Tensor | None = None
    noise_first: Tensor | None = None
    noise_mean: Tensor | None = None


def extract(
    model: NoiseModel, x: Tensor, schedule: NoiseSchedule, wants: Set[str], *, clip: bool = True, real_step: int = 0
) -> Extraction:
    """Compute the requested features of a batch in one pass, with as few model calls as they allow.

    Parameters
    ----------
    model
        The noise model.
    x : Tensor, shape (B, 3, H, W)
        Images, float32 in [-1, 1].
    schedule
        The respaced schedule.
    wants
        Some of `EXTRACTS`.
    clip
        Clip each predicted clean image to [-1, 1].
    real_step
        Use only this many of the schedule's cleanest steps; 0 means all.

    Returns
    -------
    Extraction
        ``calls`` is 1 for eps alone, N for the noise (and eps), 2 N with reconstruction or DIRE, for N steps.

    Raises
    ------
    UserError
        ``real_step`` is negative or larger than the schedule.
    """
    if not wants or not wants <= EXTRACTS:
        raise ValueError(f"wants must be some of {sorted(EXTRACTS)}, got {sorted(wants)}")
    steps = used_steps(schedule, real_step)
    if wants == {"eps"}:
        eps = predict(model, x, next(schedule.ascending()), clip=clip).eps
        return Extraction(calls=1, finite=_finite(eps), eps=eps)
    inversion = invert(model, x, schedule, clip=clip, real_step=real_step)
    noise = "noise" in wants
    back = bool(wants & {"recon", "dire"})
    recon = sample(model, inversion.latent, schedule, clip=clip, real_step=real_step) if back else None
    return Extraction(
        calls=2 * steps if back else steps,
        finite=_finite(inversion.latent if recon is None else recon),
        eps=inversion.eps if "eps" in wants else None,
        recon=recon if "recon" in wants else None,
        dire=to_uint8(dire_image(x, recon)) if recon is not None and "dire" in wants else None,
        noise_first=inversion.eps if noise else None,
        noise_mean=inversion.mean_eps if noise else None,
    )


def _finite(values: Tensor) -> Tensor:
    """Return which rows (B,) contain only finite numbers."""
    return torch.isfinite(values).flatten(1).all(dim=1)
