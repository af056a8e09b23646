"""The calls of a pass: which are made, and what stands in for those that are not."""

from __future__ import annotations

import math

import pytest
import torch
from distil_cache.models.diffusion.noise_schedule import Step, respace
from distil_cache.models.diffusion.pass_calls import EveryCall, FewerCalls, Predictor, steps_called
from torch import Tensor


class Lines:
    """A model whose noise is a line over log(signal / noise) for each pixel, and the same for every state."""

    def __init__(self, steps: list[Step], slope: float = 0.02) -> None:
        self._positions = {step.timestep: -math.log(step.recipm1) for step in steps}
        self._slope = slope
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return torch.linspace(0.1, 0.5, x[0].numel()).reshape(x.shape[1:]) + self._slope * self._positions[
            int(t[0])
        ] * torch.ones_like(x)


def walked(predictor: Predictor, steps: list[Step], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the latent and the reconstruction."""
    for index, step in enumerate(steps):
        seen = predictor.up(index, x)
        x = step.next_signal * seen.x0 + step.next_noise * seen.eps
    latent = x
    for index, step in reversed(list(enumerate(steps))):
        seen = predictor.down(index, x)
        x = step.prev_signal * seen.x0 + step.prev_noise * seen.eps
    return latent, x


@pytest.fixture
def steps() -> list[Step]:
    return list(respace("ddim20").ascending())


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.2 - 0.1


def test_fewer_calls_are_22_of_40() -> None:
    up, down = steps_called("fewer", 20)
    assert sorted(up) == [0, 1, 3, 5, 7, 9, 11, 13, 14, 15, 16, 17, 18, 19]
    assert sorted(down) == [0, 1, 4, 7, 10, 13, 16, 19]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 10, 50, 1000])
def test_both_ends_of_a_pass_are_called_and_no_two_neighbours_of_the_inversion_are_left_out(steps: int) -> None:
    up, down = steps_called("fewer", steps)
    assert {0, steps - 1} <= up & down
    assert all(index in up or index + 1 in up for index in range(steps - 1))
    assert steps_called("all", steps) == (frozenset(range(steps)), frozenset(range(steps)))


def test_the_calls_are_those_that_are_named(steps: list[Step], images: Tensor) -> None:
    model = Lines(steps)
    walked(FewerCalls(model, steps, clip=True), steps, images)
    assert model.calls == 22


def test_noise_on_a_line_is_met_exactly(steps: list[Step], images: Tensor) -> None:
    every = walked(EveryCall(Lines(steps), steps, clip=False), steps, images)
    fewer = walked(FewerCalls(Lines(steps), steps, clip=False), steps, images)
    for one, other in zip(every, fewer, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_noise_that_is_not_on_a_line_is_not_met(steps: list[Step], images: Tensor) -> None:
    def curved(x: Tensor, t: Tensor) -> Tensor:
        return (x.roll(1, -1) * 3).tanh() + torch.sin(t.float() / 90).reshape(-1, 1, 1, 1)

    every = walked(EveryCall(curved, steps, clip=True), steps, images)
    fewer = walked(FewerCalls(curved, steps, clip=True), steps, images)
    assert (every[1] - fewer[1]).abs().max() > 1e-3


def test_the_sampling_adds_what_its_last_call_differed_from_the_inversion(steps: list[Step], images: Tensor) -> None:
    offset = 0.0

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, 0.1 + offset)

    predictor = FewerCalls(model, steps, clip=False)
    for index in range(20):
        predictor.up(index, images)
    offset = 1.0
    predictor.down(19, images)
    assert 18 not in steps_called("fewer", 20)[1]
    torch.testing.assert_close(predictor.down(18, images).eps, torch.full_like(images, 1.1), rtol=1e-4, atol=1e-4)


def test_what_is_not_finite_stays_so(steps: list[Step], images: Tensor) -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        return torch.full_like(x, torch.inf if int(t[0]) == steps[1].timestep else 0.1)

    latent, recon = walked(FewerCalls(broken, steps, clip=True), steps, images)
    assert not latent.isfinite().any()
    assert not recon.isfinite().any()
