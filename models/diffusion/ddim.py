"""DDIM inversion and sampling, and the arithmetic of one step.

The steps are the deterministic DDIM (Song et al. 2021, eq. 12 with eta = 0), run forwards and backwards. DIRE is Wang
et al. 2023, eq. 6. The noise is DNF's (Zhang and Xu 2023), reduced over the inversion. As in the papers' code, the
image counts as the state of the first timestep (abar = 0.9999), so the inversion ends one level above the one where
sampling starts.

All arithmetic outside the network is float32, whatever the network's precision, with a schedule computed in float64:
at the first step the noise is a difference divided by about 0.01. Nothing in the loops waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...errors import UserError
from .noise_schedule import NoiseSchedule, Step


class NoiseModel(Protocol):
    """A network that predicts noise."""

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Predict the noise.

        Parameters
        ----------
        x : Tensor, shape (B, 3, H, W)
            float32 in about [-1, 1].
        t : Tensor, shape (B,)
            Original timesteps, int64.

        Returns
        -------
        Tensor, shape (B, 3, H, W) or (B, 6, H, W)
            The noise is in channels 0..2.
        """
        ...


@dataclass(frozen=True)
class NoisePrediction:
    """Noise and clean image at one step, (B, 3, H, W) float32. The noise is derived from x0, so the two fit exactly."""

    eps: Tensor
    x0: Tensor


@dataclass(frozen=True)
class Inversion:
    """Result of `invert`, (B, 3, H, W) float32 each: the latent, the first noise, the mean noise over all steps."""

    latent: Tensor
    eps: Tensor
    mean_eps: Tensor


def used_steps(schedule: NoiseSchedule, real_step: int) -> int:
    """Return the number of steps of a pass: ``real_step``, or all for 0. Raises UserError if the schedule has fewer."""
    if not 0 <= real_step <= len(schedule):
        raise UserError(
            f"real_step {real_step}: the schedule has {len(schedule)} steps; use 0 (all) to {len(schedule)}."
        )
    return real_step or len(schedule)


def predict(model: NoiseModel, x: Tensor, step: Step, *, clip: bool = True) -> NoisePrediction:
    """Call the model once for the state x (B, 3, H, W) float32 at a step.

    NaN propagates to all later states. So does Inf, which clipping would hide.
    """
    t = torch.full((len(x),), step.timestep, dtype=torch.int64, device=x.device)
    return denoised(x, model(x, t)[:, :3].float(), step, clip=clip)


def denoised(x: Tensor, noise: Tensor, step: Step, *, clip: bool = True) -> NoisePrediction:
    """Return the clean image that noise (B, 3, H, W) float32 leaves of the state x at a step, and the noise that fits it.

    NaN and Inf are kept as in `predict`.
    """
    scaled = step.recip * x
    x0 = scaled - step.recipm1 * noise
    if clip:
        x0 = x0.clamp(-1.0, 1.0).where(noise.isfinite(), torch.nan)
    return NoisePrediction(eps=(scaled - x0) / step.recipm1, x0=x0)


def invert(
    model: NoiseModel, x: Tensor, schedule: NoiseSchedule, *, clip: bool = True, real_step: int = 0
) -> Inversion:
    """Follow the path from images x (B, 3, H, W) float32 in [-1, 1] towards noise, one model call per step."""
    steps = used_steps(schedule, real_step)
    first = None
    total = torch.zeros_like(x)
    for step in schedule.ascending(steps):
        predicted = predict(model, x, step, clip=clip)
        first = predicted.eps if first is None else first
        total += predicted.eps
        x = step.next_signal * predicted.x0 + step.next_noise * predicted.eps
    assert first is not None
    return Inversion(latent=x, eps=first, mean_eps=total / steps)


def sample(
    model: NoiseModel, latent: Tensor, schedule: NoiseSchedule, *, clip: bool = True, real_step: int = 0
) -> Tensor:
    """Denoise latents (B, 3, H, W) float32 along the same steps back to images, deterministically (eta = 0)."""
    x = latent
    for step in schedule.descending(used_steps(schedule, real_step)):
        predicted = predict(model, x, step, clip=clip)
        x = step.prev_signal * predicted.x0 + step.prev_noise * predicted.eps
    return x


def dire_image(x: Tensor, recon: Tensor) -> Tensor:
    """Return the reconstruction error abs(x - recon), float32, 0 to 2 for images in [-1, 1]."""
    return (x - recon).abs()


def to_uint8(error: Tensor) -> Tensor:
    """Quantise 0 to 2 to 8 bits: 127.5 levels per unit, truncated (not rounded) as in the papers' code."""
    return (error * 127.5).clamp(0.0, 255.0).to(torch.uint8)
