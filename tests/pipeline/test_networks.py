"""The diffusion model of a build: its batch size within what CUDA can count, and compiled once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.cache.store import Cache
from distil_cache.errors import UsageError
from distil_cache.models.diffusion.checkpoints import OFFICIAL
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.pipeline.execution import batches, tasks
from distil_cache.pipeline.execution.networks import compiled, given_batch
from predict_runs import build
from recorded_progress import Recorded
from small_models import CONFIG, TINY_FLAGS, write_adm, write_images
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

ADM256 = OFFICIAL["adm256"].config
GPU = torch.device("cuda", 0)
CONFIGS = {
    "small": CONFIG,
    "resampling in blocks": AdmConfig.from_flags(TINY_FLAGS),
    "attention at the finest level": CONFIG.model_copy(update={"attention_resolutions": "16,8"}),
    "a wide coarse level": CONFIG.model_copy(update={"channel_mult": "1,6"}),
    "a narrow coarse level": CONFIG.model_copy(update={"channel_mult": "4,1", "num_res_blocks": 2}),
}


SMALLEST = AdmConfig(image_size=8, num_channels=32, num_res_blocks=1, channel_mult="1", attention_resolutions="8")
BATCH = 7


class LargestMap(TorchDispatchMode):
    """Notes the values an image of the largest tensor that an operation returns."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.ndim > 2 and len(made) == BATCH:
            self.values = max(self.values, made.numel() // BATCH)
        return made


@pytest.mark.parametrize("name", CONFIGS)
def test_the_largest_feature_map_is_known_from_the_flags(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: v.clone())  # a fused one stores no scores
    config = CONFIGS[name]
    model, side = Adm(config).eval(), config.image_size
    with torch.no_grad(), LargestMap() as largest:
        model(torch.zeros(BATCH, 3, side, side), torch.zeros(BATCH, dtype=torch.int64))
    assert config.largest_map(side) == largest.values


def test_adm256_takes_up_to_63_images_on_cuda() -> None:
    assert ADM256.largest_map(256) == 2**25
    assert given_batch(63, GPU, ADM256, 256).size == 63
    with pytest.raises(UsageError, match=r"--batch-size 64: .* 33,554,432 values an image, .* use at most 63\."):
        given_batch(64, GPU, ADM256, 256)
    assert given_batch(64, torch.device("cpu"), ADM256, 256).size == 64


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let `torch.compile` call a backend that counts, and return the batch size of each compilation."""
    sizes: list[int] = []
    torch_compile = torch.compile

    def count(graph: torch.fx.GraphModule, examples: list[torch.Tensor]) -> Callable[..., Any]:
        sizes.append(next(len(x) for x in examples if x.ndim == 4 and x.shape[1] == 3 and x.shape[-1] > 3))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda model, **options: torch_compile(model, backend=count, **options))
    yield sizes
    torch.compiler.reset()


def test_a_build_with_an_automatic_batch_compiles_once_for_all_timesteps_and_the_padded_last_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compilations: list[int]
) -> None:
    monkeypatch.setattr(batches, "CPU_BATCH", 4)
    monkeypatch.setattr(batches, "_free_bytes", lambda device: 1 << 60)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    write_adm(tmp_path / "adm.safetensors")
    images = write_images(tmp_path / "images", {"train": 3})
    build(tmp_path, images, "image,eps,dire", batch_size="auto", compile=True)
    assert compilations == [4]
    ((plain,), (made,)) = (
        [s for s in Cache.open(tmp_path / "cache").features() if s.feature == name] for name in ("eps", "dire")
    )
    assert len(plain.index().keys) == len(made.index().keys) == 6


@pytest.mark.parametrize("said", ["CUDA out of memory. Tried to allocate 9 GiB", "Unable to find an engine"])
def test_a_finished_build_stays_good_if_its_deviation_from_float32_needs_too_much_memory(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*arguments: Any) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(tasks, "deviation_on", measured)
    write_adm(tmp_path / "adm.safetensors")
    heard = Recorded()
    build(tmp_path, write_images(tmp_path / "images", {"train": 1}), "image,eps", precision="bf16", progress=heard)
    assert f"reduced precision could not be compared with float32: {said}" in heard.said
    (log,) = (tmp_path / "cache" / "features").glob("eps-*/log.jsonl")
    event = json.loads(log.read_text())
    assert (event["deviation_from_float32"], event["normalisation"]) == (None, ["plain"])
    assert len(Cache.open(tmp_path / "cache").builds().ids()) == 1


def test_a_process_that_has_compiled_many_models_compiles_the_next(
    compilations: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    for images in (1, 2):
        with torch.inference_mode():
            compiled(Adm(SMALLEST).eval())(torch.zeros(images, 3, 8, 8), torch.zeros(images, dtype=torch.int64))
    assert compilations == [1, 2]
