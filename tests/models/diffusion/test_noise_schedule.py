"""Noise schedules and their respacing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from distil_cache.errors import UserError
from distil_cache.models.diffusion.noise_schedule import betas_of, full_schedule, respace, timesteps_of

ARRAYS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_next",
    "alphas_cumprod_prev",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
)


@pytest.mark.parametrize("text", ["ddim20", "ddim10", "ddim50", "20", "10,10"])
def test_a_respaced_schedule_equals_the_reference_to_the_bit(shared: Path, text: str) -> None:
    golden = json.loads((shared / "golden" / "schedules.json").read_text())[text]
    schedule = respace(text)
    assert list(schedule.timesteps) == golden["timestep_map"]
    assert {name for name in ARRAYS if getattr(schedule, name).tolist() != golden[name]} == set()


@pytest.mark.parametrize(("name", "kind"), [("full_1000", "linear"), ("full_1000_cosine", "cosine")])
def test_a_full_schedule_equals_the_reference_to_the_bit(shared: Path, name: str, kind: str) -> None:
    golden = json.loads((shared / "golden" / "schedules.json").read_text())[name]
    assert full_schedule(kind).alphas_cumprod.tolist() == golden["alphas_cumprod"]


def test_strides_exist_where_the_reference_has_them(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "schedules.json").read_text())["_ddim_ok"]
    for text, expected in golden.items():
        if isinstance(expected, int):
            assert len(timesteps_of(text)) == expected
        else:
            with pytest.raises(UserError, match=text):
                timesteps_of(text)


def test_ddim20_keeps_every_fiftieth_timestep() -> None:
    assert respace("ddim20").timesteps == tuple(range(0, 1000, 50))


def test_parts_are_spread_over_equal_sections() -> None:
    assert timesteps_of("2,3", steps=10) == (0, 4, 5, 7, 9)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_respacing_keeps_the_noise_levels_of_the_timesteps_that_it_keeps(kind: str) -> None:
    full, respaced = full_schedule(kind), respace("ddim25", noise_schedule=kind)
    np.testing.assert_allclose(respaced.alphas_cumprod, full.alphas_cumprod[list(respaced.timesteps)], rtol=1e-12)


def test_linear_betas_scale_with_the_number_of_steps() -> None:
    assert betas_of("linear", 1000)[[0, -1]].tolist() == [1e-4, 2e-2]
    assert betas_of("linear", 500)[[0, -1]].tolist() == [2e-4, 4e-2]


def test_cosine_levels_follow_the_squared_cosine() -> None:
    abar = full_schedule("cosine").alphas_cumprod
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert abar[499] == pytest.approx(math.cos((0.5 + 0.008) / 1.008 * math.pi / 2) ** 2 / start, rel=1e-9)


@pytest.mark.parametrize("text", ["", "ddim", "ddim0", "ddim60", "0", "-3", "1001", "600,600", "10,", "ten", "ddim2.5"])
def test_a_respacing_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        respace(text)


def test_an_unknown_noise_schedule_is_refused() -> None:
    with pytest.raises(UserError, match="sqrt"):
        respace("ddim20", noise_schedule="sqrt")


def test_steps_down_are_the_steps_up_reversed() -> None:
    schedule = respace("ddim20")
    assert list(schedule.descending(7)) == list(schedule.ascending(7))[::-1]
    assert [step.timestep for step in schedule.ascending(3)] == [0, 50, 100]


def test_more_steps_than_timesteps_are_refused_with_an_advice_that_works() -> None:
    with pytest.raises(UserError, match=r"only 1000 timesteps; use ddim20, ddim50 or ddim1000\."):
        respace("ddim2000")
    assert len(respace("ddim1000").timesteps) == 1000
