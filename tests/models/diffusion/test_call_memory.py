"""What a call of the ADM takes in memory, as counted from the flags, against what real calls keep alive."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from distil_cache.models.diffusion.call_memory import call_memory
from distil_cache.models.diffusion.checkpoints import OFFICIAL
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.models.diffusion.winograd import WinogradConv2d
from distil_cache.pipeline.execution.networks import placed
from small_models import CONFIG, TINY_FLAGS
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
CONFIGS = {
    "small": CONFIG,
    "resampling in blocks": AdmConfig.from_flags(TINY_FLAGS),
    "two blocks a level": AdmConfig.from_flags({**TINY_FLAGS, "num_res_blocks": 2}),
    "attention at the finest level": CONFIG.model_copy(update={"attention_resolutions": "16,8"}),
    "a wide coarse level": CONFIG.model_copy(update={"channel_mult": "1,6"}),
    "four levels": CONFIG.model_copy(update={"channel_mult": "1,1,2,2", "image_size": 32}),
    "one level": CONFIG.model_copy(update={"channel_mult": "1", "image_size": 8}),
}
WINOGRAD = AdmConfig(image_size=32, num_channels=64, num_res_blocks=1, channel_mult="1,1", attention_resolutions="8")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations made and that are still referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: dict[int, int] = {}

    def _freed(self, storage: int) -> None:
        self.now -= self.known.pop(storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.known[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata)
        return made


def frozen(config: AdmConfig) -> Adm:
    return placed(Adm(config).eval().requires_grad_(False), "fp32", CPU)


def live(model: Adm, images: int) -> int:
    side = model.config.image_size
    with torch.inference_mode(), LiveBytes() as counted:
        model(torch.zeros(images, 3, side, side), torch.zeros(images, dtype=torch.int64))
    return counted.peak


@pytest.mark.parametrize("name", CONFIGS)
def test_the_maps_of_an_image_are_known_from_the_flags(name: str) -> None:
    config = CONFIGS[name].model_copy(update={"num_channels": 32})
    if name == "a wide coarse level":  # but not as wide as Winograd's algorithm asks for
        config = config.model_copy(update={"channel_mult": "1,3", "image_size": 8})
    model = frozen(config)
    of_an_image = live(model, 3) - live(model, 2)
    counted = call_memory(config, config.image_size, "fp32").image
    assert 0.96 * of_an_image < counted <= of_an_image


def test_winograds_sums_are_counted_and_a_whole_call_stays_within_the_count() -> None:
    model = frozen(WINOGRAD)
    peak = live(model, 1)
    kept = [layer._kernels for layer in model.modules() if isinstance(layer, WinogradConv2d)]
    sums = sum(kernels.nbytes for kernels in kept if kernels is not None)
    assert sums
    counted = call_memory(WINOGRAD, 32, "fp32")
    assert sums < counted.sums <= sums + 48 * 2**20
    assert counted.weights == sum(parameter.nbytes for parameter in model.parameters())
    assert counted.weights + peak <= counted.of_batch(1)


def test_half_precision_has_half_the_weights_and_no_sums() -> None:
    whole, half = (call_memory(WINOGRAD, 32, precision) for precision in ("fp32", "bf16"))
    assert half.sums == 0
    assert half.weights < 0.75 * whole.weights
    assert whole.image < half.image < 1.2 * whole.image


def test_the_memory_of_adm256_is_what_was_measured() -> None:
    counted = call_memory(OFFICIAL["adm256"].config, 256, "bf16")
    assert counted.image == int(603_979_776 * 7 / 6)  # in float32, nine maps of 256 channels at 256 x 256
