"""One image and ADM call: as the papers' code computes it, and as the pipeline does."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable

import torch
from compare import Comparison
from distil_cache.inference.bench.random_adm import random_adm
from distil_cache.models.diffusion.blocks import AttentionBlock
from distil_cache.models.diffusion.checkpoints import load_adm
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.models.diffusion.winograd import is_worthwhile
from distil_cache.pipeline.execution.networks import placed
from torch import Tensor, nn

IMAGES = 8


def plain_attention(self: AttentionBlock, x: Tensor) -> Tensor:
    """Attention as two einsums around a softmax, the scale on both operands: the papers' arithmetic, written out."""
    batch, channels, height, width = x.shape
    tokens = x.reshape(batch, channels, height * width)
    qkv = self.qkv(self.norm(tokens))
    if self.new_order:
        qkv = qkv.reshape(batch, 3, self.heads, -1, height * width).transpose(1, 2)
    qkv = qkv.reshape(batch * self.heads, 3, -1, height * width)
    q, k, v = qkv.unbind(1)
    scale = q.shape[1] ** -0.25
    weight = torch.einsum("bct,bcs->bts", q * scale, k * scale).softmax(dim=-1)
    seen = torch.einsum("bts,bcs->bct", weight, v).reshape(batch, channels, height * width)
    return (tokens + self.proj_out(seen)).reshape(batch, channels, height, width)


def plain_adm(model: Adm) -> Adm:
    """A copy whose attention is the papers'."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if isinstance(module, AttentionBlock):
            module.forward = types.MethodType(plain_attention, module)  # type: ignore[method-assign]
    return plain


def medium_adm() -> Adm:
    """A random ADM of 25 million parameters for 64 pixels, built as ADM-256 is."""
    flags = {
        "image_size": 64, "num_channels": 64, "num_res_blocks": 2, "channel_mult": "1,2,3,4", "attention_resolutions": "32,16,8",
        "num_head_channels": 64, "resblock_updown": True, "use_scale_shift_norm": True, "learn_sigma": True,
    }  # fmt: skip
    return random_adm(AdmConfig.from_flags(flags))


def winograd_share(model: Adm) -> float:
    """Share of the multiplications of a model's convolutions that a build computes by Winograd's sums."""
    total = summed = 0

    def count(conv: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total, summed
        assert isinstance(conv, nn.Conv2d)
        products = conv.weight[0].numel() * output.numel()
        total += products
        summed += products if conv.kernel_size == (3, 3) and is_worthwhile(inputs[0], conv.out_channels) else 0

    probe = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for module in probe.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    size = model.config.image_size
    with torch.inference_mode():
        probe(torch.zeros(1, 3, size, size).contiguous(memory_format=torch.channels_last), torch.zeros(1))
    return summed / total


def adm_calls(model: Adm, name: str, *, compiled: bool, rounds: int | None = None) -> Comparison:
    """Eight images through one model in several ways, which agree."""
    size = model.config.image_size
    x, t = torch.randn(IMAGES, 3, size, size), torch.full((IMAGES,), 50)
    direct = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    last = placed(copy.deepcopy(model), "fp32", torch.device("cpu"))
    innermost = x.contiguous(memory_format=torch.channels_last)
    plain = plain_adm(model)
    ways = {
        "batch 1, einsum attention (papers)": _in_batches(plain, x, t, 1),
        "batch 8, einsum attention": _in_batches(plain, x, t, 8),
        "batch 1, SDPA": _in_batches(model, x, t, 1),
        "batch 8, SDPA": _in_batches(model, x, t, 8),
        "batch 8, SDPA, channels last": _in_batches(direct, innermost, t, 8),
        "the same, Winograd (pipeline)": _in_batches(last, innermost, t, 8),
    }
    if compiled:
        ways["batch 8, SDPA, channels last, compiled"] = _in_batches(torch.compile(last, dynamic=False), x, t, 8)
    reference = ways["batch 1, einsum attention (papers)"]()
    for way, run in ways.items():
        error = float((run() - reference).norm() / reference.norm())
        assert error < 1e-4, f"{way}: relative error {error}"
    share = f"{winograd_share(model):.0%} of the convolutions' products by Winograd"
    return Comparison(f"an image and ADM call, {name}, {size} pixels, {share}", ways, IMAGES, rounds)


def shipped_calls(*, compiled: bool) -> Comparison:
    """The demo's model."""
    return adm_calls(load_adm("demo").model, "demo", compiled=compiled)


def _in_batches(model: Callable[[Tensor, Tensor], Tensor], x: Tensor, t: Tensor, size: int) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with torch.inference_mode():
            return torch.cat([model(part, steps) for part, steps in zip(x.split(size), t.split(size), strict=True)])

    return run
