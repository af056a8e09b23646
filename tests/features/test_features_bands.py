"""The spectrum of the residual: what noise, waves and equal images give, and a build of it without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from distil_cache.cache.gather import gather
from distil_cache.cache.store import Cache
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.bands import LEAST_POWER, Bands, BandsSpec, ring_members
from distil_cache.features.registry import make_specs
from distil_cache.images.spec import ImageSpec
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.progress import Silent
from numpy.typing import NDArray
from pydantic import ValidationError
from small_models import CONFIG, SIDE, STEPS, computed, write_material
from torch import Tensor

GOLDEN = Path(__file__).parent / "data" / "golden_rows.json"
CPU = torch.device("cpu")


def spec(size: int, rings: int | None = None) -> BandsSpec:
    settings = {"adm": AdmIdentity.of("0" * 64, CONFIG)} | ({} if rings is None else {"rings": rings})
    made = make_specs(["bands"], settings, {"image": ImageSpec(size=size)})["bands"]
    assert isinstance(made, BandsSpec)
    return made


def rows(image: Tensor, recon: Tensor, rings: int | None = None) -> NDArray[np.float32]:
    made = spec(image.shape[-1], rings)
    values = Bands().rows(None, {"image": image, "recon": recon}, made)
    assert (values.shape, values.dtype) == ((len(image), made.rings), torch.float32)
    found: NDArray[np.float32] = values.numpy()
    return found


def drawn(count: int, size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(11)
    image, recon = torch.randint(0, 256, (2, count, 3, size, size), generator=generator, dtype=torch.uint8)
    return image, recon


def test_every_frequency_is_in_one_ring_by_its_distance_and_no_ring_is_empty() -> None:
    for size, rings in ((16, 8), (20, 3), (21, 10), (64, 16)):
        members = ring_members(size, rings, CPU)
        y, x = np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size), indexing="ij")
        far = np.minimum(np.floor(np.round(np.hypot(x, y) * 2 * rings, 9)), rings - 1)
        assert np.array_equal(members.numpy().argmax(1), far.ravel())
        assert torch.equal(members.sum(1), torch.ones(size**2, dtype=torch.float64))
        assert (members.sum(0) > 0).all()


@pytest.mark.parametrize("size", [32, 64])
def test_white_noise_has_its_variance_in_every_ring_at_every_size(size: int) -> None:
    image, recon = drawn(16, size)
    variance = float((image.float() - recon.float()).div(255).var())
    assert np.abs(rows(image, recon).mean(0) - np.log10(variance)).max() < 0.1


@pytest.mark.parametrize(("cycles", "ring"), [(1, 0), (7, 3), (15, 7)])
def test_a_wave_is_in_the_ring_of_its_frequency(cycles: int, ring: int) -> None:
    wave = 60 * torch.sin(2 * torch.pi * cycles * torch.arange(32) / 32)
    image = (128 + wave).round().to(torch.uint8).expand(1, 3, 32, 32)
    found = rows(image, torch.full_like(image, 128), rings=8)[0]
    assert found.argmax() == ring
    assert np.sort(found)[-2] < found[ring] - 2


def test_equal_images_have_the_floor_and_the_residual_s_sign_does_not_matter() -> None:
    image, recon = drawn(2, 16)
    assert np.allclose(rows(image, image), np.log10(LEAST_POWER))
    np.testing.assert_allclose(rows(image, recon), rows(recon, image), rtol=1e-6)


def test_there_are_as_many_rings_as_the_image_has_frequencies() -> None:
    assert [spec(size).rings for size in (16, 256)] == [8, 16]
    with pytest.raises(ValidationError, match="rings: an image of 16 pixels has frequencies for 8"):
        spec(16, rings=9)


def test_rows_stay_what_they_were_released_as() -> None:
    image, recon = drawn(2, 32)
    recon = (image.float() * 0.9 + recon.float() * 0.1).to(torch.uint8)
    np.testing.assert_allclose(rows(image, recon), json.loads(GOLDEN.read_text())["bands"], rtol=1e-5)


def test_bands_are_made_of_stored_rows_without_a_network_and_again_only_if_they_are_lacking(tmp_path: Path) -> None:
    material = write_material(tmp_path, {"train": 3, "test": 2})

    def build(*features: str) -> dict[str, object]:
        config = BuildConfig.checked(
            sources=(material / "images",), cache=tmp_path / "c", dataset="d", adm=str(material / "adm.safetensors"),
            steps=STEPS, features=features, device="cpu", batch_size=4, decode_threads=1,
        )  # fmt: skip
        return run_build(config, Silent())

    build("image,recon")
    result = build("bands")
    assert computed(result) == {"image": 0, "recon": 0, "bands": 10}
    assert result["adm_calls"] == 0
    cache = Cache.open(tmp_path / "c")
    stores = {folder.name.partition("-")[0]: cache.open_feature(folder.name) for folder in cache.feature_folders()}
    keys = [key for marker in stores["bands"].markers() for key in marker.keys]
    image, recon = (torch.from_numpy(gather(stores[name], keys)) for name in ("image", "recon"))
    np.testing.assert_allclose(gather(stores["bands"], keys), rows(image, recon), rtol=1e-6)
    assert image.shape[-1] == SIDE
    assert computed(build("bands"))["bands"] == 0
