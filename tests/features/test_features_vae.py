"""The way through an autoencoder, and how far it leads from the image: against diffusers and the formulas themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.cache.spec import Spec
from distil_cache.cli import app
from distil_cache.errors import IntegrityError, UsageError, UserError
from distil_cache.features.contract import FINITE, Hidden, Single
from distil_cache.features.registry import FEATURES, layout_of, make_specs, networks_of, producers_of
from distil_cache.images.spec import ImageSpec
from distil_cache.models.autoencoder import AutoencoderSource
from distil_cache.models.lpips import SCALE, SHIFT, LpipsSource
from safetensors.torch import load_file, save_file
from small_autoencoder import FACTOR, write_autoencoder, write_lpips
from small_models import SIDE, write_material
from torch import Tensor
from torch.nn import functional
from torchvision.models import vgg16
from typer.testing import CliRunner

GOLDEN = Path(__file__).parent / "data" / "golden_rows.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``vae``, an autoencoder, and ``lpips.safetensors``."""
    place = tmp_path_factory.mktemp("networks")
    write_autoencoder(place / "vae")
    write_lpips(place / "lpips.safetensors")
    return place


def images(seed: int = 3, side: int = SIDE) -> Tensor:
    return torch.randint(0, 256, (2, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def specs(folder: Path, lpips: bool, side: int = SIDE) -> dict[str, Spec]:
    options = {
        "autoencoder": str(folder / "vae"),
        "lpips": str(folder / "lpips.safetensors") if lpips else None,
        "sha256": (),
    }
    own = {name: source.fields(source.digest()) for name, source in networks_of(["vae", "vae_error"], options).items()}
    return make_specs(["vae", "vae_error"], {}, {"image": ImageSpec(size=side)}, own)


def made(folder: Path, lpips: bool) -> dict[str, Tensor]:
    rows = {"image": images()}
    networks = {
        "vae": AutoencoderSource(str(folder / "vae")).load(),
        "vae_error": LpipsSource(str(folder / "lpips.safetensors")).load() if lpips else None,
    }
    for producer in producers_of(specs(folder, lpips)):
        wanted = list(producer.specs)
        queued = producer.queue(networks[producer.unit], rows, [""] * 2, wanted, producer.route(frozenset(wanted)))
        found = producer.checked(["a", "b"], {name: value.numpy() for name, value in queued.items()})
        rows |= {name: torch.from_numpy(value) for name, value in found.items()}
    for name, spec in specs(folder, lpips).items():
        assert (tuple(rows[name].shape[1:]), rows[name].dtype) == (
            layout_of(spec).shape, getattr(torch, layout_of(spec).dtype),
        )  # fmt: skip
    return rows


def test_the_way_through_the_autoencoder_is_that_of_diffusers_truncated_to_8_bits(folder: Path) -> None:
    from diffusers import AutoencoderKL

    theirs = AutoencoderKL.from_pretrained(folder / "vae").eval()
    x = images().float() / 255 * 2 - 1
    with torch.no_grad():
        decoded = theirs.decode(theirs.encode(x).latent_dist.mode(), return_dict=False)[0]
    expected = ((decoded / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8)
    assert torch.equal(made(folder, False)["vae"], expected)


def test_the_errors_are_l1_and_l2_of_the_stored_images_and_lpips_by_its_definition(folder: Path) -> None:
    rows = made(folder, True)
    a, b = (rows[name].numpy().astype(np.float64) / 255 for name in ("image", "vae"))
    numbers = rows["vae_error"].numpy()
    np.testing.assert_allclose(numbers[:, 0], np.abs(a - b).mean((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(numbers[:, 1], ((a - b) ** 2).mean((1, 2, 3)), rtol=1e-5)

    state = load_file(folder / "lpips.safetensors")
    network = vgg16(weights=None).features.eval()
    network.load_state_dict({
        ".".join(name.split(".")[2:]): value for name, value in state.items() if name.startswith("net.slice")
    })  # fmt: skip
    shift, scale = (torch.tensor(values)[:, None, None] for values in (SHIFT, SCALE))
    features = []
    for image in (rows["image"], rows["vae"]):
        x, found = (image.float() / 255 * 2 - 1 - shift) / scale, []
        with torch.no_grad():
            for number, layer in enumerate(network[:30]):
                x = layer(x)
                if number in (3, 8, 15, 22, 29):  # relu1_2 to relu5_3
                    found.append(functional.normalize(x, dim=1))
        features.append(found)
    layers = [
        ((one - two) ** 2 * state[f"lins.{n}.model.1.weight"]).sum(dim=1).mean(dim=(1, 2)).numpy()
        for n, (one, two) in enumerate(zip(*features, strict=True))
    ]
    np.testing.assert_allclose(numbers[:, 3:].T, layers, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(numbers[:, 2], numbers[:, 3:].sum(1), rtol=1e-5)
    np.testing.assert_array_equal(made(folder, False)["vae_error"].numpy(), numbers[:, :2])


def test_rows_stay_what_they_were_released_as(folder: Path) -> None:
    rows, golden = made(folder, True), json.loads(GOLDEN.read_text())
    assert np.abs(rows["vae"][:, :, 4, :6].int().numpy() - np.array(golden["vae"])).max() <= 1
    np.testing.assert_allclose(rows["vae_error"].numpy(), golden["vae_error"], rtol=2e-3)


def test_what_names_an_autoencoder_is_its_tensors_and_what_decides_its_arithmetic(folder: Path, tmp_path: Path) -> None:
    spec = specs(folder, True)["vae"]
    config = json.loads((folder / "vae" / "config.json").read_text())
    write_autoencoder(tmp_path / "same")
    (tmp_path / "same" / "config.json").write_text(json.dumps({**config, "scaling_factor": 1.0, "sample_size": 8}))
    write_autoencoder(tmp_path / "other", seed=1)
    named = [specs_of(place) for place in (tmp_path / "same", tmp_path / "other")]
    assert [one == spec for one in named] == [True, False]
    assert specs(folder, False)["vae_error"].fingerprint() != specs(folder, True)["vae_error"].fingerprint()


def specs_of(vae: Path) -> Spec:
    source = AutoencoderSource(str(vae))
    own = {"vae": source.fields(source.digest())}
    return make_specs(["vae"], {}, {"image": ImageSpec(size=SIDE)}, own)["vae"]


def test_a_number_that_8_bits_would_hide_is_refused(folder: Path) -> None:
    spec = specs(folder, False)["vae"]
    (producer,) = producers_of({"vae": spec})
    assert isinstance(producer, Single)
    broken = AutoencoderSource(str(folder / "vae")).load()
    with torch.no_grad():
        next(iter(broken.parameters())).fill_(torch.nan)
    found = producer.feature.rows(broken, {"image": images()}, spec)
    assert isinstance(found, Hidden)
    with pytest.raises(
        IntegrityError, match=r"vae: a value is not a finite number, so nothing was stored.* Try --precision fp32"
    ):
        producer.checked(["a", "b"], {"vae": found.rows.numpy(), FINITE: found.finite.numpy()})


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ('{"_class_name": "AutoencoderTiny"}', "configuration of an AutoencoderKL"),
        ('{"_class_name": "AutoencoderKL", "block_out_channels": [99999999]}', "configuration of an AutoencoderKL"),
        ('{"_class_name": "AutoencoderKL", "down_block_types": ["Nothing"]}', "diffusers cannot build such an autoenc"),
        ('{"_class_name": "AutoencoderKL"}', "this network needs"),
        ("[", "configuration of an AutoencoderKL"),
    ],
)
def test_a_folder_that_is_no_autoencoder_is_one_sentence(tmp_path: Path, config: str, sentence: str) -> None:
    save_file({"encoder.conv_in.bias": torch.zeros(3)}, tmp_path / "diffusion_pytorch_model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=sentence):
        AutoencoderSource(str(tmp_path)).load()


def test_a_side_that_it_cannot_halve_is_refused_and_so_is_a_build_without_an_autoencoder(folder: Path) -> None:
    with pytest.raises(UserError, match=f"takes sides divisible by {FACTOR}, not 17 pixels"):
        layout_of(specs(folder, False, side=17)["vae"])
    with pytest.raises(UsageError, match="vae, and vae_error with it, needs an autoencoder"):
        networks_of(["vae"], {"autoencoder": None, "sha256": ()})
    assert FEATURES["vae_error"].inputs == {"image": "image", "vae": "vae"}


def run(*arguments: object) -> Any:
    """Run a command and return its result."""
    ran = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def test_a_build_of_the_errors_scores_and_predicts_with_the_same_networks(folder: Path, tmp_path: Path) -> None:
    material = write_material(tmp_path, {"train": 4, "val": 3, "test": 3})
    built = run("build", material / "images", "--cache", tmp_path / "c", "--dataset", "d", "--adm",
                material / "adm.safetensors", "--features", "vae_error", "--autoencoder", folder / "vae", "--lpips",
                folder / "lpips.safetensors", "--device", "cpu")  # fmt: skip
    assert (built["adm_calls"], built["features"]["vae_error"]["computed"]) == (0, 20)
    run("train", "--cache", tmp_path / "c", "--dataset", "d", "--run", tmp_path / "r", "--method", "aeroblade", "--device",
        "cpu")  # fmt: skip
    run("evaluate", tmp_path / "r", "--device", "cpu")
    predict = ("predict", "--run", tmp_path / "r", material / "images" / "test", "--device", "cpu")
    networks = ("--weights-of", f"vae={folder / 'vae'}", "--weights-of", f"vae_error={folder / 'lpips.safetensors'}")
    predicted = run(*predict, *networks)
    import pyarrow.parquet as pq

    stored = pq.read_table(tmp_path / "r" / "evaluations" / "d-test-crop" / "scores.parquet")["logit"].to_pylist()
    np.testing.assert_allclose(
        sorted(p["logit"] for p in predicted["predictions"]), sorted(stored), rtol=1e-3, atol=1e-3
    )
    with pytest.raises(UserError, match="`vae_error` lacks its network"):
        CliRunner().invoke(app, [*map(str, predict + networks[:2])], catch_exceptions=False)
