"""Winograd's algorithm for 3x3 convolutions against the direct one, and where it is used."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distil_cache.models.diffusion import winograd
from distil_cache.models.diffusion.ddim import predict
from distil_cache.models.diffusion.noise_schedule import respace
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.models.diffusion.winograd import WinogradConv2d, column_sums, convolved, is_worthwhile, use_winograd
from distil_cache.pipeline.execution.networks import placed
from golden_arithmetic import difference
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

SMALL = Path(__file__).parent / "golden" / "small.safetensors"
CPU = torch.device("cpu")


def innermost(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def drawn(*shape: int) -> Tensor:
    return innermost(torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))))


def layer(channels: int = 64, out_channels: int = 64, **options: object) -> nn.Conv2d:
    """A frozen convolution with random weights that is suitable for Winograd's algorithm."""
    options = {"kernel_size": 3, "padding": 1} | options
    conv = nn.Conv2d(channels, out_channels, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter.copy_(drawn(*parameter.shape) if parameter.ndim == 4 else torch.randn(len(parameter)))
    return conv.requires_grad_(False)


def made_winograd(conv: nn.Conv2d) -> WinogradConv2d:
    model = nn.Sequential(conv)
    use_winograd(model)
    assert isinstance(model[0], WinogradConv2d)
    return model[0]


@pytest.mark.parametrize(
    ("batch", "channels", "out_channels", "height", "width"),
    [(1, 64, 64, 32, 32), (3, 64, 96, 36, 33), (2, 70, 65, 4, 41), (1, 5, 3, 8, 1), (8, 128, 64, 16, 16)],
)
def test_values_are_those_of_the_direct_convolution_up_to_rounding(
    batch: int, channels: int, out_channels: int, height: int, width: int
) -> None:
    x, weight, bias = (
        drawn(batch, channels, height, width),
        drawn(out_channels, channels, 3, 3),
        drawn(out_channels, 1, 1, 1),
    )
    bias = 100 * bias.flatten()
    ours = convolved(x, column_sums(weight), bias)
    exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert difference(ours - bias[:, None, None], exact - bias[:, None, None])["relative"] < 5e-6
    assert ours.is_contiguous(memory_format=torch.channels_last)
    without = convolved(x, column_sums(weight), None)
    assert difference(without, exact - bias[:, None, None])["relative"] < 2e-6


@pytest.mark.parametrize(
    ("block_bytes", "blocks"),
    [(1, 35), (150_000, 20), (700_000, 5), (2_000_000, 2)],
    ids=["tile", "tiles", "image", "images"],
)
def test_the_same_values_come_out_of_blocks_of_rows_and_of_images(
    monkeypatch: pytest.MonkeyPatch, block_bytes: int, blocks: int
) -> None:
    x, kernels = drawn(5, 64, 28, 24), column_sums(drawn(64, 64, 3, 3))
    whole = convolved(x, kernels, None)
    monkeypatch.setattr(winograd, "BLOCK_BYTES", block_bytes)
    assert len(list(winograd._blocks(5, 7, 6 * 24 * (64 + 64) * 4))) == blocks
    assert difference(convolved(x, kernels, None), whole)["relative"] < 1e-6


@pytest.mark.parametrize(
    ("images", "tiles", "tile_bytes"), [(1, 1, 1), (8, 16, 10**6), (8, 64, 5 * 10**6), (3, 5, 10**9), (9, 2, 10**6)]
)
def test_blocks_cover_every_tile_once_and_stay_below_the_limit(images: int, tiles: int, tile_bytes: int) -> None:
    covered = torch.zeros(images, tiles, dtype=torch.int64)
    for block, top, bottom in winograd._blocks(images, tiles, tile_bytes):
        covered[block, top:bottom] += 1
        size = len(range(images)[block]) * (bottom - top)
        assert size == 1 or size * tile_bytes <= winograd.BLOCK_BYTES
    assert (covered == 1).all()


MEMORY = """
import torch
from distil_cache.inference.bench.cold_start import peak_bytes
from distil_cache.models.diffusion.winograd import column_sums, convolved
def highest():
    return peak_bytes(torch.device("cpu"))
torch.set_num_threads(1)
kernels, bias = column_sums(torch.ones(64, 64, 3, 3)), torch.zeros(64)
x = torch.ones(4, 64, 256, 256).contiguous(memory_format=torch.channels_last)
with torch.inference_mode():
    convolved(x[:1, :, :32], kernels, bias)
    before = highest()
    result = convolved(x, kernels, bias)
print(highest() - before - result.numel() * 4)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted in another unit")
@pytest.mark.slow
def test_memory_beyond_the_result_is_bounded_by_the_block_and_not_by_the_map() -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 4 * winograd.BLOCK_BYTES  # sums and products of all maps take 192 MiB


def test_it_is_taken_on_large_maps_of_many_channels_and_for_any_number_of_images() -> None:
    assert is_worthwhile(drawn(1, 64, 64, 64), 64)
    assert is_worthwhile(drawn(3, 192, 16, 16), 256)
    assert is_worthwhile(drawn(1, 512, 32, 32), 512)


@pytest.mark.parametrize(
    ("x", "out_channels"),
    [
        (drawn(8, 256, 8, 8), 256),  # fewer positions than output channels
        (drawn(8, 64, 16, 16), 64),  # too few products
        (drawn(8, 32, 64, 64), 64),  # too few channels
        (drawn(8, 64, 64, 64), 6),
        (drawn(1, 64, 66, 64), 64),  # four rows do not divide the height
        (drawn(1, 64, 64, 64).contiguous(), 64),  # channels outermost
        (drawn(1, 64, 64, 64).bfloat16(), 64),
        (drawn(1, 64, 64, 64).double(), 64),
        (drawn(1, 64, 64, 64).to("meta"), 64),
    ],
)
def test_it_is_not_taken_where_it_is_slower_or_not_meant(x: Tensor, out_channels: int) -> None:
    assert not is_worthwhile(x, out_channels)


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"padding": 0},
        {"kernel_size": 1, "padding": 0},
        {"kernel_size": 5, "padding": 2},
        {"dilation": 2, "padding": 2},
        {"groups": 2},
        {"padding_mode": "circular"},
        {"out_channels": 32},
    ],
    ids=str,
)
def test_other_convolutions_stay_as_they_are(options: dict[str, object]) -> None:
    model = nn.Sequential(layer(**options))  # type: ignore[arg-type]
    use_winograd(model)
    assert type(model[0]) is nn.Conv2d


def test_a_convolution_that_is_still_trained_stays_as_it_is() -> None:
    model = nn.Sequential(layer().requires_grad_(True))
    use_winograd(model)
    assert type(model[0]) is nn.Conv2d


def test_a_layer_uses_winograd_without_gradients_and_a_direct_convolution_with_them() -> None:
    conv, x = layer(), drawn(2, 64, 32, 32)
    ours, direct = made_winograd(conv), conv(x)
    with torch.inference_mode():
        summed = ours(x)
    assert torch.equal(ours(x), direct)
    assert not torch.equal(summed, direct)
    assert difference(summed, direct)["relative"] < 2e-6
    leaf = x.clone().requires_grad_(True)
    ours(leaf).sum().backward()
    assert leaf.grad is not None


def test_a_layer_gives_the_direct_values_on_maps_that_are_not_meant_for_it() -> None:
    conv = layer()
    ours = made_winograd(conv)
    with torch.inference_mode():
        for x in (drawn(2, 64, 16, 16), drawn(2, 64, 34, 32), drawn(2, 64, 32, 32).contiguous()):
            assert torch.equal(ours(x), conv(x))


def test_compiled_code_keeps_the_direct_convolution() -> None:
    conv, x = layer(), drawn(1, 64, 32, 32)
    compiled = torch.compile(made_winograd(conv), backend="eager", fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(x), conv(x))


MEDIUM = AdmConfig(
    image_size=32, num_channels=64, num_res_blocks=1, channel_mult="1,1", attention_resolutions="8", num_head_channels=32,
    resblock_updown=True, learn_sigma=True,
)  # fmt: skip


def medium() -> Adm:
    torch.manual_seed(0)
    model = Adm(MEDIUM).eval().requires_grad_(False)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model


def layers_that_summed(model: nn.Module) -> int:
    return sum(isinstance(module, WinogradConv2d) and module._kernels is not None for module in model.modules())


def test_a_network_for_float32_on_a_cpu_takes_it_and_keeps_names_and_values_of_its_weights() -> None:
    before = {name: value.clone() for name, value in medium().state_dict().items()}
    model, x, t = placed(medium(), "fp32", CPU), innermost(torch.randn(2, 3, 32, 32)), torch.tensor([0, 700])
    with torch.inference_mode():
        eps, direct = model(x, t), medium()(x, t)
    assert layers_that_summed(model) > 5
    assert difference(eps, direct)["relative"] < 1e-5
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_network_gives_the_same_bytes_again_and_at_half_precision_none_of_it() -> None:
    x, t = innermost(torch.randn(2, 3, 32, 32)), torch.tensor([0, 700])
    first, second, half = placed(medium(), "fp32", CPU), placed(medium(), "fp32", CPU), placed(medium(), "bf16", CPU)
    with torch.inference_mode():
        assert torch.equal(first(x, t), second(x, t))
        assert torch.equal(first(x, t), first(x, t))
    assert not any(isinstance(module, WinogradConv2d) for module in half.modules())


def test_the_golden_eps_comes_out_of_winograds_sums_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 32)
    monkeypatch.setattr(winograd, "MIN_PRODUCTS", 0)
    tensors = load_file(SMALL)
    with safe_open(SMALL, "pt") as file:
        model = Adm(AdmConfig.from_flags(json.loads(file.metadata()["flags"]))).eval().requires_grad_(False)
    model.load_state_dict({k[2:]: v.float() for k, v in tensors.items() if k.startswith("w.")})
    golden = {k[2:]: v for k, v in tensors.items() if k.startswith("g.")}
    model = placed(model, "fp32", CPU)
    with torch.inference_mode():
        for t in (0, 500, 950):
            raw = model(innermost(golden["x"]), torch.tensor([t]))
            assert difference(raw, golden[f"raw_t{t}"])["relative"] < 1e-5
        eps = predict(model, innermost(golden["x"]), next(respace("ddim20").ascending()), clip=True).eps
    assert difference(eps, golden["eps0_clip1"])["relative"] < 1e-5
    assert layers_that_summed(model) > 10
