"""The demo's generated images: twins of real crops, and samples from pure noise, by a small diffusion model.

A twin is a crop noised to a timestep (Ho et al. 2020, eq. 4) and denoised from there with deterministic DDIM steps, as
in SDEdit (Meng et al. 2022): the same content and composition, the model's own detail. Each picture has its own noise,
drawn from a generator that is seeded for it alone: neither the batch nor torch's global state has an influence.

The noise of each colour channel is brought to mean 0 and standard deviation 1. A network of 32 channels normalises each of
them by itself (GroupNorm has 32 groups), so the mean and the scale of what it predicts are always the same, and the few
per cent by which white noise of 1024 pixels misses them would come back a hundredfold: as a colour cast, and as grain.
For the same reason such a network cannot choose the mean colour of a sample; it is given one, where a noised photograph
has it: in the mean of the noisiest state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from ..models.diffusion.checkpoints import load_adm
from ..models.diffusion.ddim import sample
from ..models.diffusion.noise_schedule import NoiseSchedule
from ..progress import Progress
from .scenes import SIDE, Pixels

BATCH = 16
STAGE = "generating"


@dataclass
class Generator:
    """A diffusion model that makes pictures. ``calls`` counts images x ADM calls so far."""

    adm: str
    steps: str
    progress: Progress
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        loaded = load_adm(self.adm)
        if loaded.config.image_size != SIDE:
            raise UserError(
                f"demo: the ADM {self.adm} makes images of {loaded.config.image_size} pixels, not of {SIDE}."
            )
        self.digest = loaded.digest
        self._model = loaded.model
        self._schedule = loaded.config.schedule(self.steps)

    def twins(self, images: Pixels, strengths: Sequence[int], names: Sequence[str]) -> Pixels:
        """Noise each image to its timestep and denoise it: (N, 3, 32, 32) uint8 to the same.

        names : one an image, from which its noise follows. Raises UserError for a timestep that the steps do not keep.
        """
        result = np.empty_like(images)
        for strength in sorted(set(strengths)):
            rows = [row for row, value in enumerate(strengths) if value == strength]
            signal, noise = noise_level(self._schedule, strength)
            clean = torch.from_numpy(images[rows]).float() / 127.5 - 1
            noisy = signal * clean + noise * self._noise([names[row] for row in rows])
            result[rows] = self._denoised(noisy, self._schedule.timesteps.index(strength) + 1)
        return result

    def samples(self, names: Sequence[str], colours: NDArray[np.float32]) -> Pixels:
        """Make one picture a name from noise, by all steps: (N, 3, 32, 32) uint8.

        colours : (N, 3), the mean that each channel of a picture is to have, in [-1, 1]; met about.
        """
        signal, noise = noise_level(self._schedule, self._schedule.timesteps[-1])
        start = signal * torch.from_numpy(colours)[:, :, None, None] + noise * self._noise(names)
        return self._denoised(start, len(self._schedule))

    def _noise(self, names: Sequence[str]) -> Tensor:
        return torch.stack([noise_of(f"{self.adm} {name}") for name in names])

    def _denoised(self, noisy: Tensor, steps: int) -> Pixels:
        done = []
        with torch.inference_mode():
            for batch in torch.split(noisy, BATCH):
                done.append(sample(self._model, batch, self._schedule, real_step=steps))
                self.calls += len(batch) * steps
                self.progress.advance(STAGE, len(batch))
        pixels = ((torch.cat(done) + 1) * 127.5).round().clamp(0, 255)
        return pixels.to(torch.uint8).numpy()


def noise_level(schedule: NoiseSchedule, timestep: int) -> tuple[float, float]:
    """Return how much of the image and of the noise a noised image holds. UserError if no step has that timestep."""
    if timestep not in schedule.timesteps:
        kept = ", ".join(map(str, schedule.timesteps))
        raise UserError(f"demo: strength {timestep} is none of the schedule's timesteps {kept}.")
    signal = float(schedule.alphas_cumprod[schedule.timesteps.index(timestep)])
    return signal**0.5, (1 - signal) ** 0.5


def noise_of(name: str) -> Tensor:
    """Standardised white noise (3, 32, 32) float32 that follows from a name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    return standardised(torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)))


def standardised(noise: Tensor) -> Tensor:
    """Noise (..., H, W) with mean 0 and standard deviation 1 over each channel of each image."""
    centred = noise - noise.mean(dim=(-2, -1), keepdim=True)
    return centred / centred.std(dim=(-2, -1), keepdim=True)
