"""DDPM folders of diffusers: found, named and loaded; and a build, a training and a prediction with one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from distil_cache.cli import app
from distil_cache.errors import UsageError, UserError
from distil_cache.features.adm import AdmIdentity
from distil_cache.models.diffusion.call_memory import call_memory
from distil_cache.models.diffusion.checkpoints import find_adm, find_flags, load_adm
from distil_cache.models.diffusion.ddim import invert, sample
from distil_cache.models.diffusion.ddpm import WEIGHTS, Ddpm, DdpmConfig, measured
from distil_cache.models.diffusion.noise_schedule import respace
from distil_cache.models.diffusion.unet import AdmConfig
from small_models import SIDE, write_images
from typer.testing import CliRunner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network and its schedule, as diffusers saves each by itself."""
    from diffusers import DDPMScheduler, UNet2DModel

    place = tmp_path_factory.mktemp("ddpm") / "model"
    torch.manual_seed(0)
    UNet2DModel(
        sample_size=SIDE, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(place)  # fmt: skip
    DDPMScheduler(beta_schedule="linear").save_pretrained(place)
    return place


def as_pipeline(folder: Path, target: Path) -> Path:
    """Lay the files out as a pipeline's folder."""
    for within, names in {"unet": ("config.json", WEIGHTS), "scheduler": ("scheduler_config.json",)}.items():
        (target / within).mkdir(parents=True)
        for name in names:
            (target / within / name).write_bytes((folder / name).read_bytes())
    return target


def changed(folder: Path, target: Path, file: str, **values: object) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps({**content, **values}))
    return target


def test_a_folder_gives_the_noise_of_diffusers_and_is_the_same_model_in_a_pipeline(
    folder: Path, tmp_path: Path
) -> None:
    from diffusers import UNet2DModel

    model = load_adm(folder).model
    x, t = torch.randn(2, 3, SIDE, SIDE), torch.tensor([0, 950])
    with torch.no_grad():
        assert torch.equal(model(x, t), UNet2DModel.from_pretrained(folder).eval()(x, t).sample)
    found, other = find_adm(folder), find_adm(as_pipeline(folder, tmp_path / "pipeline"))
    assert (found.digest, found.config) == (other.digest, other.config)
    assert find_flags(folder) == found.config


def test_an_identity_holds_all_that_its_configuration_is_made_of_and_that_of_an_adm_is_as_it_was(folder: Path) -> None:
    found = find_adm(folder)
    identity = AdmIdentity.of(found.digest, found.config)
    assert identity.architecture == "diffusers-unet2d"
    assert AdmIdentity.model_validate(json.loads(identity.model_dump_json())).config == found.config
    adm = AdmIdentity.of("0" * 64, AdmConfig())
    assert set(adm.canonical()) == {"weights", "flags", "class_label"} - (
        {"class_label"} if adm.class_label is None else set()
    )


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_the_schedule_is_that_of_diffusers(folder: Path, tmp_path: Path, schedule: str) -> None:
    from diffusers import DDIMScheduler

    place = changed(folder, tmp_path / "m", "scheduler_config.json", beta_schedule=schedule, beta_end=0.015)
    theirs = DDIMScheduler.from_pretrained(place, timestep_spacing="leading", steps_offset=0)
    theirs.set_timesteps(20)
    ours = find_flags(place).schedule("ddim20")
    assert theirs.timesteps.tolist() == list(ours.timesteps[::-1])
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod[list(ours.timesteps)], rtol=2e-4, atol=1e-7)
    if schedule == "linear":
        assert (
            find_flags(folder).schedule("ddim20").alphas_cumprod.tolist() == respace("ddim20").alphas_cumprod.tolist()
        )


def test_sampling_a_folder_is_what_the_scheduler_of_diffusers_gives(folder: Path) -> None:
    from diffusers import DDIMScheduler

    model, schedule = load_adm(folder).model, find_flags(folder).schedule("ddim10")
    theirs = DDIMScheduler.from_pretrained(folder, timestep_spacing="leading", set_alpha_to_one=True)
    theirs.set_timesteps(10)
    x = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        latent = invert(model, x, schedule).latent
        state = latent
        for t in theirs.timesteps.tolist():
            noise = model(state, torch.full((2,), t))
            state = theirs.step(noise, t, state, eta=0.0, use_clipped_model_output=True).prev_sample
        torch.testing.assert_close(sample(model, latent, schedule), state, rtol=1e-4, atol=2e-4)


def test_half_precision_keeps_the_weights_and_rounds_what_is_computed(folder: Path) -> None:
    model = load_adm(folder).model
    assert isinstance(model, Ddpm)
    x, t = torch.randn(2, 3, SIDE, SIDE), torch.tensor([0, 500])
    with torch.no_grad():
        exact = model(x, t)
        half = model.to_half(torch.bfloat16)(x, t)
    assert half.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert 0 < float((half - exact).norm() / exact.norm()) < 0.05


def test_what_a_call_takes_is_known_without_making_it(folder: Path) -> None:
    config = find_flags(folder)
    assert isinstance(config, DdpmConfig)
    largest = []
    model = load_adm(folder).model
    for layer in model.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda module, inputs, output: largest.append(output.numel()))
    with torch.no_grad():
        model(torch.zeros(1, 3, SIDE, SIDE), torch.zeros(1, dtype=torch.int64))
    assert max(largest) <= config.largest_map(SIDE) <= 4 * max(largest)
    memory = call_memory(config, SIDE, "fp32")
    assert memory.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert 4 * max(largest) < memory.image == measured(config, SIDE).alive < 4 * sum(largest)


@pytest.mark.parametrize(
    ("file", "values", "sentence"),
    [
        ("config.json", {"_class_name": "UNet2DConditionModel"}, "configuration of a UNet2DModel"),
        ("config.json", {"in_channels": 4}, "configuration of a UNet2DModel .in_channels"),
        ("config.json", {"num_class_embeds": 10}, "configuration of a UNet2DModel .num_class_embeds"),
        ("config.json", {"time_embedding_type": "fourier"}, "configuration of a UNet2DModel .time_embedding_type"),
        ("scheduler_config.json", {"prediction_type": "v_prediction"}, "schedule of a DDPM .prediction_type"),
        ("scheduler_config.json", {"trained_betas": [0.1]}, "schedule of a DDPM .trained_betas"),
    ],
)
def test_a_folder_of_another_kind_is_one_sentence(
    folder: Path, tmp_path: Path, file: str, values: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        find_adm(changed(folder, tmp_path / "m", file, **values))


def test_what_does_not_go_with_a_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--adm-config: .* says itself what it is"):
        find_adm(folder, tmp_path / "flags.json")
    with pytest.raises(UsageError, match="is not class-conditional"):
        find_adm(folder, class_label="3")
    place = changed(folder, tmp_path / "m", "config.json")
    (place / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"has no {WEIGHTS}"):
        find_adm(place)


def run(*arguments: object) -> Any:
    """Run a command and return its result."""
    ran = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_a_build_with_a_folder_trains_and_predicts_what_it_evaluates(folder: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "images", {"train": 4, "val": 2, "test": 3})
    built = run("build", tmp_path / "images", "--cache", tmp_path / "c", "--dataset", "d", "--adm", folder, "--steps",
                "ddim4", "--features", "eps,dire,stepwise", "--device", "cpu", "--batch-size", "4")  # fmt: skip
    assert built["adm_calls"] == 18 * 8
    run("train", "--cache", tmp_path / "c", "--dataset", "d", "--run", tmp_path / "r", "--method", "eps", "--backbone",
        "small", "--epochs", "1", "--batch-size", "4", "--device", "cpu")  # fmt: skip
    run("evaluate", tmp_path / "r", "--device", "cpu")
    predicted = run("predict", "--run", tmp_path / "r", tmp_path / "images" / "test", "--adm", folder, "--device", "cpu",
                    "--batch-size", "4")  # fmt: skip
    stored = pq.read_table(tmp_path / "r" / "evaluations" / "d-test-crop" / "scores.parquet")["logit"].to_pylist()
    np.testing.assert_allclose(
        sorted(p["logit"] for p in predicted["predictions"]), sorted(stored), rtol=1e-3, atol=1e-4
    )
    planned = run("build", tmp_path / "images", "--cache", tmp_path / "c", "--dataset", "d", "--adm", folder, "--steps",
                  "ddim4", "--features", "dire", "--device", "cpu", "--dry-run")  # fmt: skip
    assert planned["adm_calls"] == 0
    assert planned["estimate"]["memory"] is None
