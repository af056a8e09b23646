"""Flags of an ADM inferred from the shapes of its tensors, and checkpoints of other networks."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.models.diffusion.checkpoints import OFFICIAL, find_adm, load_adm
from distil_cache.models.diffusion.infer_flags import infer_flags
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.models.weights import weights_digest
from recorded_progress import Recorded
from safetensors.torch import save_file
from small_models import TINY_FLAGS
from torch import Tensor

FLAGS: dict[str, Any] = {**TINY_FLAGS, "learn_sigma": True}
UNTOLD = {"image_size": 16, "num_head_channels": 32, "use_new_attention_order": False}


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def state_of(flags: dict[str, Any] = FLAGS) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return Adm(AdmConfig.from_flags(flags)).state_dict()


def shapes_of(config: AdmConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in Adm(config).state_dict().items()}


def saved(path: Path, content: object, flags: object = None) -> Path:
    torch.save(content, path)
    if flags is not None:
        path.with_suffix(".json").write_text(json.dumps(flags))
    return path


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_flags_of_every_official_model_follow_from_its_shapes(name: str) -> None:
    config = OFFICIAL[name].config
    found = infer_flags(shapes_of(config))
    assert found is not None
    assert found.only_size() == config.image_size
    told = found.at_size(config.image_size)
    assert told == {flag: getattr(config, flag) for flag in told}


SWITCHES = list(product([False, True], repeat=4))


@pytest.mark.parametrize(("scale_shift", "updown", "sigma", "classes"), SWITCHES)
@pytest.mark.parametrize(("levels", "blocks", "attend"), [("1", 2, ""), ("1,1", 1, "16"), ("1,2,3", 3, "8,4")])
def test_small_networks_of_all_kinds_are_recognised(
    scale_shift: bool, updown: bool, sigma: bool, classes: bool, levels: str, blocks: int, attend: str
) -> None:
    config = AdmConfig(
        image_size=16, num_channels=32, num_res_blocks=blocks, channel_mult=levels, attention_resolutions=attend,
        use_scale_shift_norm=scale_shift, resblock_updown=updown and levels != "1", learn_sigma=sigma,
        class_cond=classes, num_heads=1,
    )  # fmt: skip
    found = infer_flags(shapes_of(config))
    assert found is not None
    told = AdmConfig.from_flags({**found.at_size(16), "num_heads": 1})
    assert told.attention_factors() == config.attention_factors()
    assert shapes_of(told) == shapes_of(config)
    assert told == config.model_copy(update={"attention_resolutions": told.attention_resolutions})


def test_what_shapes_cannot_tell_is_asked_for_in_one_sentence(tmp_path: Path) -> None:
    message = (
        r"tiny\.pt: not all .* tell num_channels 32, num_res_blocks 1, .*channel_mult 1,2; they cannot tell "
        r"image_size, num_head_channels or num_heads, use_new_attention_order\. .*tiny\.json .*--adm-config\.$"
    )
    with pytest.raises(UserError, match=message):
        find_adm(saved(tmp_path / "tiny.pt", state_of()))


@pytest.mark.parametrize("left_out", UNTOLD)
def test_only_what_is_missing_is_asked_for(left_out: str, tmp_path: Path) -> None:
    stated = {name: value for name, value in UNTOLD.items() if name != left_out}
    with pytest.raises(UserError, match=rf"they cannot tell {left_out}( or num_heads)?\. Write"):
        find_adm(saved(tmp_path / "tiny.pt", state_of(), stated))


def test_with_what_shapes_cannot_tell_the_rest_is_inferred_and_said(tmp_path: Path) -> None:
    path = saved(tmp_path / "tiny.pt", state_of(), UNTOLD)
    progress = Recorded()
    assert find_adm(path, progress=progress).config == AdmConfig.from_flags(FLAGS)
    (said,) = progress.said
    assert "flags inferred from the shapes of the tensors: num_channels 32, num_res_blocks 1" in said
    assert "guided-diffusion's defaults for noise_schedule linear, diffusion_steps 1000" in said
    assert load_adm(path).digest == weights_digest(state_of())


def test_flags_that_fit_are_taken_as_they_are_written(tmp_path: Path) -> None:
    progress = Recorded()
    path = saved(tmp_path / "tiny.pt", state_of(), {**FLAGS, "channel_mult": "1, 2"})
    assert find_adm(path, progress=progress).config.channel_mult == "1, 2"
    assert progress.said == []


def test_one_head_needs_no_order_of_attention(tmp_path: Path) -> None:
    flags = {**FLAGS, "num_head_channels": -1, "num_heads": 1}
    stated = {"image_size": 16, "num_heads": 1}
    assert find_adm(saved(tmp_path / "tiny.pt", state_of(flags), stated)).config == AdmConfig.from_flags(flags)


def test_flags_that_contradict_the_tensors_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "tiny.pt", state_of(), {**FLAGS, "learn_sigma": False, "resblock_updown": "False"})
    message = r"tiny\.json: does not fit .*resblock_updown False \(the tensors: True\), learn_sigma False \(the tensors: True\)"
    with pytest.raises(UserError, match=message):
        find_adm(path)


TEXT = {name: str(value) for name, value in FLAGS.items()} | {
    "use_kl": "False", "predict_xstart": "no", "rescale_timesteps": "0", "class_cond": "f", "learn_sigma": "True",
    "use_fp16": "True", "dropout": "0.1",
}  # fmt: skip


@pytest.mark.parametrize("where", ["json", "nested json", "metadata flags", "metadata", "entry", "option"])
def test_flags_as_text_are_read_as_on_the_command_line(where: str, tmp_path: Path) -> None:
    path, option = tmp_path / "tiny.pt", None
    if where == "entry":
        saved(path, {"model": state_of(), "args": TEXT})
    elif where.startswith("metadata"):
        path = tmp_path / "tiny.safetensors"
        save_file(state_of(), path, {"flags": json.dumps(TEXT)} if where == "metadata flags" else TEXT)
    elif where == "option":
        option = saved(path, state_of()).with_name("option.json")
        option.write_text(json.dumps(TEXT))
    else:
        saved(path, state_of(), {"flags": TEXT} if where == "nested json" else TEXT)
    assert find_adm(path, option).config == AdmConfig.from_flags({**FLAGS, "dropout": 0.1})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"predict_xstart": "True"}, "predict_xstart=True"),
        ({"use_kl": "1"}, "use_kl=1"),
        ({"learn_sigma": "maybe"}, "learn_sigma=maybe: is neither true nor false"),
        ({"num_channels": "many"}, "ADM flag num_channels"),
    ],
)
def test_text_that_means_something_else_is_refused(flags: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        find_adm(saved(tmp_path / "tiny.pt", state_of(), {**FLAGS, **flags}))


def test_lists_of_numbers_are_read_as_text() -> None:
    config = AdmConfig.from_flags({**FLAGS, "channel_mult": [1, 2], "attention_resolutions": 8})
    assert config == AdmConfig.from_flags(FLAGS)


def with_stem(channels: int) -> dict[str, Tensor]:
    return {**state_of(), "input_blocks.0.0.weight": torch.zeros(32, channels, 3, 3)}


SD = {"model.diffusion_model.time_embed.0.weight": torch.zeros(8, 2),
      "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(2, 2),
      "first_stage_model.encoder.conv_in.weight": torch.zeros(2, 3, 3, 3)}  # fmt: skip
OTHERS = {
    "Stable Diffusion": ({"state_dict": SD}, "is a Stable Diffusion checkpoint"),
    "Stable Diffusion as safetensors": (SD, "is a Stable Diffusion checkpoint"),
    "UNet of Stable Diffusion": (
        {"time_embed.0.weight": torch.zeros(8, 2), "input_blocks.1.1.transformer_blocks.0.norm1.bias": torch.zeros(2)},
        "is the UNet of a text-to-image model",
    ),
    "latent diffusion": (
        {"state_dict": {**{f"model.diffusion_model.{name}": value for name, value in state_of().items()},
                        "first_stage_model.encoder.conv_in.weight": torch.zeros(2, 3, 3, 3)}},
        "is a latent diffusion model",
    ),
    "diffusers": ({"time_embedding.linear_1.weight": torch.zeros(2, 2)}, "is a network of the library diffusers"),
    "DDIM": ({"temb.dense.0.weight": torch.zeros(2, 2), "conv_in.weight": torch.zeros(2)}, "is a UNet of DDPM or DDIM"),
    "classifier": (
        {name: value for name, value in state_of().items() if not name.startswith("output_blocks")},
        "is the classifier of guided-diffusion",
    ),
    "upsampler": (with_stem(6), "is an upsampler of guided-diffusion"),
    "grey": (with_stem(1), "takes inputs of 1 channels, not RGB images"),
    "ResNet": ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, r"holds the weights of another network \(conv1\.weight, …\)"),
    "numbers": ({"epoch": 3, "loss": 0.5}, r"holds 'epoch', 'loss' and no weights"),
    "torch_ema": ({"decay": 0.9, "shadow_params": [torch.zeros(1)]}, "holds lists of weights without names"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_another_network_has_its_own_sentence(name: str, tmp_path: Path) -> None:
    content, message = OTHERS[name]
    with pytest.raises(UserError, match=rf"other\.pt: {message}"):
        find_adm(saved(tmp_path / "other.pt", content, FLAGS))


def test_a_wrapper_is_named_and_changes_nothing(tmp_path: Path) -> None:
    progress = Recorded()
    wrapped = {"state_dict": {f"model.module.{name}": value for name, value in state_of().items()}, "epoch": 1}
    path = saved(tmp_path / "tiny.ckpt", wrapped, FLAGS)
    loaded = load_adm(path)
    assert loaded.digest == weights_digest(state_of())
    assert all(torch.equal(value, loaded.model.state_dict()[name]) for name, value in state_of().items())
    find_adm(path, progress=progress)
    assert progress.said == [f"{path}: weights read from state_dict.model.module; passed over: epoch."]


def test_the_set_is_chosen_behind_a_hash(tmp_path: Path) -> None:
    average = {name: value + 1 for name, value in state_of().items()}
    path = saved(tmp_path / "tiny.pt", {"model": state_of(), "model_ema": average}, FLAGS)
    with pytest.raises(UserError, match=r"sets of weights: model and model_ema\. Published .*tiny\.pt#model_ema\.$"):
        find_adm(path)
    for choice, state in (("model", state_of()), ("model_ema", average), ("ema", average)):
        loaded = load_adm(f"{path}#{choice}")
        assert loaded.digest == weights_digest(state)
        assert torch.equal(loaded.model.state_dict()["out.2.bias"], state["out.2.bias"])


@pytest.mark.parametrize("name", [name for name in OFFICIAL if name.endswith("-cond")])
def test_a_class_conditional_name_is_refused_before_its_download(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distil_cache.models.diffusion.checkpoints.download", lambda *_: pytest.fail("downloads"))
    with pytest.raises(UserError, match=f"{name}: is class-conditional.*--class-label random:SEED"):
        find_adm(name)


def test_flags_for_a_network_without_end_are_refused_before_it_is_built() -> None:
    with pytest.raises(UserError, match="num_res_blocks"):
        AdmConfig.from_flags({"image_size": 32, "num_res_blocks": 10**8})
