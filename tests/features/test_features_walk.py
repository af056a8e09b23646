"""Features that see the states of a pass: equal to their definitions, at no call more than the pass has anyway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.cache.spec import Spec
from distil_cache.errors import UserError
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.registry import layout_of, make_specs, walk_of
from distil_cache.images.spec import ImageSpec
from distil_cache.models.diffusion.checkpoints import load_adm
from distil_cache.models.diffusion.noise_schedule import respace
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.execution import networks
from distil_cache.pipeline.planning.host_memory import host_memory
from plain_pass import plain_stepwise, plain_trajectory
from safetensors import safe_open
from safetensors.torch import load_file
from small_models import CONFIG, SIDE, write_adm
from torch import Tensor

GOLDEN = Path(__file__).parent / "data" / "golden_rows.json"
SMALL = Path(__file__).parents[1] / "models" / "diffusion" / "golden" / "small.safetensors"
BATCH = 3
STATES = ("stepwise", "trajectory")


class Counted:
    """A network that counts its calls."""

    def __init__(self, network: Adm) -> None:
        self.network, self.calls = network, 0

    def __call__(self, x: Tensor, t: Tensor, *classes: Tensor) -> Tensor:
        self.calls += 1
        found: Tensor = self.network(x, t, *classes)
        return found


@pytest.fixture(scope="module")
def adm(tmp_path_factory: pytest.TempPathFactory) -> Adm:
    """A small ADM with drawn weights."""
    return load_adm(write_adm(tmp_path_factory.mktemp("adm") / "adm.safetensors")).model


def specs(*wanted: str, config: AdmConfig = CONFIG, size: int = SIDE, **settings: Any) -> dict[str, Spec]:
    given = {"steps": "ddim10", **settings, "adm": AdmIdentity.of("0" * 64, config)}
    return make_specs(wanted, given, {"image": ImageSpec(size=size)})


def rows_of(network: Any, pixels: Tensor, made: dict[str, Spec]) -> dict[str, Tensor]:
    walk = walk_of(made)
    assert walk is not None
    return walk.queue(network, {"image": pixels}, [""] * len(pixels), list(made), walk.route(frozenset(made)))


def images(count: int = BATCH, side: int = SIDE) -> Tensor:
    drawn = torch.randint(-40, 296, (count, 3, side, side), generator=torch.Generator().manual_seed(7))
    return drawn.clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("clip", [True, False])
def test_stepwise_equals_the_definition_of_two_calls_an_error(adm: Adm, clip: bool) -> None:
    pixels = images()
    counted = Counted(adm)
    found = rows_of(counted, pixels, specs("stepwise", clip=clip))["stepwise"]
    assert counted.calls == 10
    with torch.inference_mode():
        plain = [plain_stepwise(adm, row.numpy(), respace("ddim10"), BATCH, clip=clip) for row in pixels]
    assert plain[0][1] == 18
    np.testing.assert_array_equal(found.numpy(), np.stack([errors for errors, _ in plain]))
    assert (found > 0).all()


def test_trajectory_equals_the_states_compared_level_by_level_and_begins_with_the_mean_dire(adm: Adm) -> None:
    pixels = images()
    counted = Counted(adm)
    found = rows_of(counted, pixels, specs("trajectory", "recon", "dire", "eps"))
    assert counted.calls == 20
    with torch.inference_mode():
        plain = np.stack([plain_trajectory(adm, row.numpy(), respace("ddim10"), BATCH) for row in pixels])
    np.testing.assert_array_equal(found["trajectory"].numpy(), plain)
    stored = found["dire"].double().flatten(1).mean(1) / 127.5
    assert ((found["trajectory"][:, 0] - stored).abs() < 1 / 127.5).all()
    assert (found["trajectory"][:, 0] > stored).all(), "DIRE is truncated when it is stored"


def test_the_states_that_a_row_names_stay_those_of_a_shortened_path(adm: Adm) -> None:
    pixels = images()
    whole = rows_of(adm, pixels, specs(*STATES))
    short = rows_of(adm, pixels, specs(*STATES, real_step=4))
    assert (short["stepwise"].shape, short["trajectory"].shape) == ((BATCH, 3), (BATCH, 4))
    assert torch.equal(short["stepwise"], whole["stepwise"][:, :3])
    assert not torch.equal(short["trajectory"], whole["trajectory"][:, :4]), "sampling begins where inversion ended"


def test_a_single_step_has_no_neighbour_to_be_compared_with(adm: Adm) -> None:
    assert rows_of(adm, images(), specs("trajectory", real_step=1))["trajectory"].shape == (BATCH, 1)
    with pytest.raises(UserError, match=r"stepwise: .* at least two steps"):
        layout_of(specs("stepwise", real_step=1)["stepwise"])


def test_states_that_are_held_count_in_the_memory_of_a_build_and_in_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BuildConfig.checked(
        sources=(tmp_path,), cache=tmp_path / "c", dataset="d", adm=str(write_adm(tmp_path / "adm.safetensors")),
        steps="ddim10", device="cpu",
    )  # fmt: skip
    plain, held = (host_memory(config, specs("image", *more)) for more in (("dire",), ("dire", "trajectory")))
    assert plain.call is not None
    assert held.call is not None
    assert held.call.image - plain.call.image == 10 * 3 * SIDE**2 * 4

    asked = []
    monkeypatch.setattr(networks, "remembered_size", lambda identity, *_: asked.append(identity))
    model = networks.adm_on(config, torch.device("cpu"))
    for more in (("dire",), ("dire", "trajectory")):
        networks.adm_batch(config, torch.device("cpu"), model, SIDE, specs("image", *more))
    assert ["held" in identity for identity in asked] == [False, True], "sizes found without states stay remembered"


@pytest.mark.parametrize("feature", STATES)
def test_rows_of_the_golden_network_stay_what_they_were_released_as(feature: str) -> None:
    tensors = load_file(SMALL)
    with safe_open(SMALL, "pt") as file:
        config = AdmConfig.from_flags(json.loads(file.metadata()["flags"]))
    network = Adm(config).eval().requires_grad_(False)
    network.load_state_dict({name[2:]: value.float() for name, value in tensors.items() if name.startswith("w.")})
    made = specs(feature, config=config, size=config.image_size)
    rows = rows_of(network, images(2, config.image_size), made)[feature]
    np.testing.assert_allclose(rows.numpy(), json.loads(GOLDEN.read_text())[feature], rtol=2e-4)
