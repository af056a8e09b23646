"""Generate the demo's images with a small diffusion model: twins of real crops, and samples from pure noise.

A twin is a crop noised to a timestep (Ho et al. 2020, eq. 4) and denoised from there with deterministic DDIM steps, as
in SDEdit (Meng et al. 2022): it keeps content and composition, and has the model's detail. The noise of each image
comes from a generator seeded for that image, so neither the batch nor torch's global state matters.

The noise of each colour channel is standardised to mean 0 and standard deviation 1. A network with 32 channels
normalises each of them separately (GroupNorm has 32 groups), so mean and scale of its prediction are fixed. White noise
of 1024 pixels deviates from them by a few per cent, which would be amplified a hundredfold into a colour cast and
grain. For the same reason such a network cannot choose the mean colour of a sample; it is given as the mean of the
noisiest state, where a noised photograph has it.
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
    """A diffusion model that generates images.

    Attributes
    ----------
    adm : str
        Name of a shipped ADM.
    steps : str
        DDIM respacing.
    progress : Progress
    calls : int
        Images x ADM calls so far.

    Raises
    ------
    UserError
        If the ADM has another image size.
    """

    adm: str
    steps: str
    progress: Progress
    calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        loaded = load_adm(self.adm)
        if loaded.config.image_size != SIDE:
            raise UserError(
                f"demo: the ADM {self.adm} generates images of {loaded.config.image_size} pixels, not of {SIDE}."
            )
        self.digest = loaded.digest
        self._model = loaded.model
        self._schedule = loaded.config.schedule(self.steps)

    def twins(self, images: Pixels, strengths: Sequence[int], names: Sequence[str]) -> Pixels:
        """Noise each image to a timestep and denoise it.

        Parameters
        ----------
        images : ndarray of uint8, (N, 3, 32, 32)
        strengths : sequence of int
            Timestep of each image.
        names : sequence of str
            Seed of each image's noise.

        Returns
        -------
        ndarray of uint8, (N, 3, 32, 32)

        Raises
        ------
        UserError
            If a timestep is not in the schedule.
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
        """Generate images from noise, with all steps.

        Parameters
        ----------
        names : sequence of str
            Seed of each image's noise.
        colours : ndarray of float32, (N, 3)
            Mean of each channel in [-1, 1], which the images meet approximately.

        Returns
        -------
        ndarray of uint8, (N, 3, 32, 32)
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
    """Return the weights of image and noise at a timestep. UserError if the timestep is not in the schedule."""
    if timestep not in schedule.timesteps:
        kept = ", ".join(map(str, schedule.timesteps))
        raise UserError(f"demo: strength {timestep} is not among the schedule's timesteps {kept}.")
    signal = float(schedule.alphas_cumprod[schedule.timesteps.index(timestep)])
    return signal**0.5, (1 - signal) ** 0.5


def noise_of(name: str) -> Tensor:
    """Draw standardised white noise, (3, 32, 32) float32, seeded by a name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    return standardised(torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)))


def standardised(noise: Tensor) -> Tensor:
    """Scale noise (..., H, W) to mean 0 and standard deviation 1 in each channel of each image."""
    centred = noise - noise.mean(dim=(-2, -1), keepdim=True)
    return centred / centred.std(dim=(-2, -1), keepdim=True)
