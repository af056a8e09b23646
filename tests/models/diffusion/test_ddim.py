"""The features of one pass, and the model calls they cost."""

from __future__ import annotations

import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.models.diffusion.ddim import dire_image, invert, predict, sample, to_uint8
from distil_cache.models.diffusion.noise_schedule import NoiseSchedule, respace
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from plain_extract import EXTRACTS, extract
from torch import Tensor

FLAGS = {
    "image_size": 8,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,1",
    "attention_resolutions": "4",
    "learn_sigma": True,
}


class Counted:
    """A real small ADM with random weights that counts its calls and the timesteps of the calls."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.model = Adm(AdmConfig.from_flags(FLAGS)).eval().requires_grad_(False)
        for parameter in self.model.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
        self.timesteps: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        """Predict and count."""
        self.timesteps.append(int(t[0]))
        answer: Tensor = self.model(x, t)
        return answer


@pytest.fixture
def model() -> Counted:
    """A fresh counting model."""
    return Counted()


@pytest.fixture
def x() -> Tensor:
    """Two images on the 8-bit grid, some values saturated."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(-40, 296, (2, 3, 8, 8), generator=generator).clamp(0, 255) / 255 * 2 - 1


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    """The papers' 20 steps."""
    return respace("ddim20")


def walk(model: Counted, x: Tensor, path: list[int], abar: Tensor, *, clip: bool) -> tuple[Tensor, list[Tensor]]:
    """The textbook, in float64: from level path[i] predict x0, go to path[i + 1]. Level -1 is clean, len(abar) noise."""
    levels = torch.cat([abar, torch.tensor([0.0, 1.0], dtype=torch.float64)])
    noises = []
    x = x.double()
    for i in range(len(path) - 1):
        here, there = levels[path[i]], levels[path[i + 1]]
        t = torch.full((len(x),), 50 * path[i])
        raw = model(x.float(), t)[:, :3].double()
        x0 = (x - (1 - here).sqrt() * raw) / here.sqrt()
        x0 = x0.clamp(-1, 1) if clip else x0
        noises.append((x - here.sqrt() * x0) / (1 - here).sqrt())
        x = there.sqrt() * x0 + (1 - there).sqrt() * noises[-1]
    return x, noises


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("real_step", [0, 6])
def test_the_fused_pass_equals_the_textbook_walk(
    model: Counted, x: Tensor, schedule: NoiseSchedule, clip: bool, real_step: int
) -> None:
    count = real_step or 20
    abar = torch.from_numpy(schedule.alphas_cumprod)
    latent, noises = walk(model, x, list(range(count + 1)), abar, clip=clip)
    recon, _ = walk(model, latent, [*range(count - 1, -1, -1), -1], abar, clip=clip)
    made = extract(model, x, schedule, EXTRACTS, clip=clip, real_step=real_step)
    assert made.eps is not None
    assert made.recon is not None
    assert made.noise_mean is not None
    assert made.noise_first is not None
    torch.testing.assert_close(made.eps.double(), noises[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.noise_first, made.eps, rtol=0, atol=0)
    torch.testing.assert_close(made.noise_mean.double(), torch.stack(noises).mean(0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.recon.double(), recon, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("wants", "calls"),
    [
        ({"eps"}, 1),
        ({"noise"}, 20),
        ({"eps", "noise"}, 20),
        ({"recon"}, 40),
        ({"dire"}, 40),
        ({"eps", "dire"}, 40),
        (set(EXTRACTS), 40),
    ],
)
def test_a_pass_makes_as_few_calls_as_its_features_allow(
    model: Counted, x: Tensor, schedule: NoiseSchedule, wants: set[str], calls: int
) -> None:
    made = extract(model, x, schedule, wants)
    assert made.calls == len(model.timesteps) == calls
    present = {name for name in ("eps", "recon", "dire") if getattr(made, name) is not None}
    assert present == wants - {"noise"}
    assert (made.noise_mean is not None) == ("noise" in wants)


def test_eps_is_the_same_alone_and_beside_dire(model: Counted, x: Tensor, schedule: NoiseSchedule) -> None:
    alone = extract(model, x, schedule, {"eps"}).eps
    beside = extract(model, x, schedule, {"eps", "dire"}).eps
    assert alone is not None
    assert beside is not None
    assert torch.equal(alone, beside)


def test_the_path_goes_up_and_comes_down_over_the_same_timesteps(
    model: Counted, x: Tensor, schedule: NoiseSchedule
) -> None:
    made = extract(model, x, schedule, {"dire"}, real_step=3)
    assert model.timesteps == [0, 50, 100, 100, 50, 0]
    assert made.calls == 6


def test_a_model_of_a_single_image_reconstructs_that_image(x: Tensor, schedule: NoiseSchedule) -> None:
    believed = torch.full_like(x, 0.25)
    abar = dict(zip(schedule.timesteps, schedule.alphas_cumprod.tolist(), strict=True))

    def model(state: Tensor, t: Tensor, /) -> Tensor:
        level = abar[int(t[0])]
        return (state - level**0.5 * believed) / (1 - level) ** 0.5

    made = extract(model, x, schedule, {"recon", "dire"})
    assert made.recon is not None
    assert made.dire is not None
    torch.testing.assert_close(made.recon, believed, rtol=0, atol=1e-4)
    assert (made.dire.float() - (x - believed).abs() * 127.5).abs().max() <= 1.01


def test_noise_explains_the_state_exactly_after_clipping(model: Counted, x: Tensor, schedule: NoiseSchedule) -> None:
    step = next(schedule.ascending())
    seen = predict(model, x, step)
    assert seen.x0.abs().max() <= 1
    torch.testing.assert_close((seen.x0 + step.recipm1 * seen.eps) / step.recip, x, rtol=0, atol=1e-6)


def test_dire_on_8_bits_is_truncated_and_capped() -> None:
    error = torch.tensor([0.0, 1.99 / 127.5, 2.0, 3.5])
    assert to_uint8(error).tolist() == [0, 1, 255, 255]
    assert dire_image(torch.tensor([-1.0]), torch.tensor([1.0])).item() == 2


def test_the_latent_samples_back_to_the_reconstruction_of_the_pass(
    model: Counted, x: Tensor, schedule: NoiseSchedule
) -> None:
    recon = extract(model, x, schedule, {"recon"}).recon
    assert recon is not None
    assert torch.equal(sample(model, invert(model, x, schedule).latent, schedule), recon)


@pytest.mark.parametrize("real_step", [-1, 21])
def test_more_steps_than_the_schedule_has_are_refused(
    model: Counted, x: Tensor, schedule: NoiseSchedule, real_step: int
) -> None:
    with pytest.raises(UserError, match="real_step"):
        extract(model, x, schedule, {"dire"}, real_step=real_step)


def test_an_unknown_feature_is_a_programming_error(model: Counted, x: Tensor, schedule: NoiseSchedule) -> None:
    with pytest.raises(ValueError, match="wants"):
        extract(model, x, schedule, {"teacher"})
