"""Our DDIM against the schedulers of diffusers, an implementation of other hands, on one of diffusers' networks.

Their inverse scheduler names a step by the timestep that it leads to and calls the network with that one; guided-diffusion,
DIRE and we call it with the timestep that the step comes from. So its arithmetic is compared with the timesteps shifted by
one, up to the last step, whose noise level its table does not have. It also clips x0 without deriving the noise anew.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distil_cache.models.diffusion.ddim import NoiseModel, invert, sample
from distil_cache.models.diffusion.noise_schedule import respace
from torch import Tensor

STEPS = 20
STRIDE = 1000 // STEPS
TRAINED: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 2e-2, "beta_schedule": "linear",
    "timestep_spacing": "leading", "set_alpha_to_one": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def network() -> NoiseModel:
    """A tiny DDPM network with drawn weights."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    model = UNet2DModel(
        sample_size=16, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=8,
    ).eval()  # fmt: skip

    def predict(x: Tensor, t: Tensor, /) -> Tensor:
        found: Tensor = model(x, t).sample
        return found

    return predict


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


def at(timestep: int) -> Tensor:
    return torch.full((2,), timestep)


@pytest.mark.parametrize("clip", [True, False])
def test_sampling_is_that_of_the_ddim_scheduler(network: NoiseModel, images: Tensor, clip: bool) -> None:
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**TRAINED, clip_sample=clip)
    scheduler.set_timesteps(STEPS)
    schedule = respace(f"ddim{STEPS}")
    assert scheduler.timesteps.tolist() == list(schedule.timesteps[::-1])
    with torch.no_grad():
        theirs = images
        for t in scheduler.timesteps.tolist():
            noise = network(theirs, at(t))
            theirs = scheduler.step(noise, t, theirs, eta=0.0, use_clipped_model_output=clip).prev_sample
        ours = sample(network, images, schedule, clip=clip)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)
    assert float((theirs - images).abs().max()) > 0.1


def test_inversion_is_that_of_the_inverse_scheduler_with_the_timesteps_shifted_by_one(
    network: NoiseModel, images: Tensor
) -> None:
    from diffusers import DDIMInverseScheduler

    scheduler = DDIMInverseScheduler(**TRAINED, clip_sample=False)
    scheduler.set_timesteps(STEPS)
    schedule = respace(f"ddim{STEPS}")
    with torch.no_grad():
        theirs = images
        for t in schedule.timesteps[: STEPS - 1]:
            theirs = scheduler.step(network(theirs, at(t)), t + STRIDE, theirs).prev_sample
        ours = invert(network, images, schedule, clip=False, real_step=STEPS - 1).latent
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)
    assert float((theirs - images).abs().max()) > 0.1
