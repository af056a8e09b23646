"""Names and shapes of the official checkpoints, the flags that describe them, and how the network behaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.models.diffusion.blocks import GroupNorm32
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from small_models import TINY_FLAGS

LISTS = ("adm64_cond", "adm128_cond", "adm256_cond", "adm256", "adm512_cond", "lsun_bedroom")


def tiny(**flags: object) -> Adm:
    """A small network with random weights everywhere, so that no branch is silent."""
    torch.manual_seed(0)
    model = Adm(AdmConfig.from_flags(TINY_FLAGS | flags)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", LISTS)
def test_state_dict_has_the_official_names_and_shapes_in_order(shared: Path, name: str) -> None:
    listed = json.loads((shared / "golden" / f"{name}_keys.json").read_text())
    with torch.device("meta"):
        model = Adm(AdmConfig.from_flags(listed["flags"]))
    assert [(k, list(v.shape)) for k, v in model.state_dict().items()] == list(listed["keys"].items())
    assert model.parameter_count() == listed["params"]


def test_the_unconditional_adm_for_256_pixels_has_552814086_parameters() -> None:
    flags = {
        "image_size": 256,
        "num_channels": 256,
        "num_res_blocks": 2,
        "num_head_channels": 64,
        "attention_resolutions": "32,16,8",
        "resblock_updown": True,
        "learn_sigma": True,
    }
    with torch.device("meta"):
        model = Adm(AdmConfig.from_flags(flags))
    assert model.parameter_count() == 552_814_086


@pytest.mark.parametrize("flag", ["use_kl", "predict_xstart", "rescale_timesteps"])
def test_a_flag_that_means_another_model_is_refused_by_name(flag: str) -> None:
    with pytest.raises(UserError, match=flag):
        AdmConfig.from_flags(TINY_FLAGS | {flag: True})


@pytest.mark.parametrize(
    ("flag", "value"),
    [("num_heads", 0), ("noise_schedule", "sqrt"), ("chanel_mult", "1,2"), ("image_size", "big")],
)
def test_a_flag_that_is_invalid_or_unknown_is_refused_by_name(flag: str, value: object) -> None:
    with pytest.raises(UserError, match=flag):
        AdmConfig.from_flags(TINY_FLAGS | {flag: value})


@pytest.mark.parametrize(
    "flags",
    [
        {"channel_mult": "1,x"},
        {"channel_mult": ""},
        {"channel_mult": "0.5,1"},
        {"channel_mult": "1,1,1,1,1,1"},
        {"num_head_channels": 48},
        {"num_head_channels": -1, "num_heads": 5},
        {"attention_resolutions": "0"},
    ],
)
def test_flags_that_do_not_fit_together_are_refused_before_a_network_is_built(flags: dict[str, object]) -> None:
    with pytest.raises(UserError):
        AdmConfig.from_flags(TINY_FLAGS | flags)


def test_flags_that_only_concern_training_and_speed_change_nothing() -> None:
    extra = {"use_checkpoint": True, "use_fp16": True, "timestep_respacing": "ddim20", "use_kl": False}
    assert AdmConfig.from_flags(TINY_FLAGS | extra) == AdmConfig.from_flags(TINY_FLAGS)


def test_a_class_conditional_model_without_classes_is_refused() -> None:
    model, x, t = tiny(class_cond=True), torch.zeros(2, 3, 16, 16), torch.tensor([0, 999])
    with pytest.raises(UserError, match="class"):
        model(x, t)
    assert not torch.equal(model(x, t, torch.tensor([1, 2])), model(x, t, torch.tensor([3, 4])))


def test_classes_for_an_unconditional_model_are_refused() -> None:
    with pytest.raises(UserError, match="unconditional"):
        tiny()(torch.zeros(1, 3, 16, 16), torch.tensor([0]), torch.tensor([1]))


def test_every_parameter_receives_a_gradient() -> None:
    model = tiny(learn_sigma=True, class_cond=True)
    model(torch.randn(2, 3, 16, 16), torch.tensor([3, 700]), torch.tensor([5, 6])).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_in_bfloat16_norms_and_embeddings_stay_float32_and_the_output_stays_close() -> None:
    model, x, t = tiny(), torch.randn(2, 3, 16, 16), torch.tensor([3, 700])
    with torch.inference_mode():
        exact = model(x, t)
        model.to_half(torch.bfloat16)
        rough = model(x, t)
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).norm() / exact.norm()) < 0.05
    kept = [m for m in model.modules() if isinstance(m, GroupNorm32 | torch.nn.Linear)]
    assert {p.dtype for m in kept for p in m.parameters()} == {torch.float32}
    assert model.out[2].weight.dtype == torch.float32
    assert model.input_blocks[1][0].in_layers[2].weight.dtype == torch.bfloat16


def test_a_new_network_starts_by_predicting_zero() -> None:
    model = Adm(AdmConfig.from_flags(TINY_FLAGS))
    assert not model(torch.randn(1, 3, 16, 16), torch.tensor([10])).any()
