"""Group normalisation on CUDA that keeps maps channels-last, in one pass with scale, shift and SiLU.

PyTorch's kernel for CUDA works on maps with channels outermost. So it copies each map to that order, and the next
convolution, whose weights are channels-last, copies it back. Here a map is read twice and written once. The statistics
and all arithmetic are float32 and rounded once, where the plain blocks round three times in half precision.

The kernels need Triton, which PyTorch's packages for CUDA bring on Linux, and a C compiler. They are tried against the
plain normalisation on each device before they are used; otherwise the plain one stays, and builds log why.
"""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor, nn

from .blocks import GROUPS, GroupNorm32

_CHUNKS = 64
"""Most parts of an image whose moments are taken separately: enough programs for a GPU with a few images."""
_TILE = 4096
"""Values that a program holds at a time."""
_TOLERANCE = 1e-4


class FusedGroupNorm(GroupNorm32):
    """Group normalisation by fused kernels where they serve: on CUDA, without gradients, not in compiled code."""

    def __init__(self, plain: GroupNorm32) -> None:
        nn.Module.__init__(self)
        self.num_groups, self.num_channels, self.eps, self.affine = GROUPS, plain.num_channels, plain.eps, True
        self.weight, self.bias = plain.weight, plain.bias
        self.training = plain.training

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, ...); same shape and dtype."""
        return self._fused(x, None, activated=False) if serves(x) else super().forward(x)

    def activated(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Normalise x, scale and shift it, and apply SiLU."""
        return self._fused(x, modulation, activated=True) if serves(x) else super().activated(x, modulation)

    def _fused(self, x: Tensor, modulation: Tensor | None, *, activated: bool) -> Tensor:
        return normalised(x, self.weight, self.bias, modulation, eps=self.eps, activated=activated)


def kind_of(model: nn.Module) -> str:
    """Return in words how a placed model normalises, and on CUDA why it is not by the fused kernels."""
    if any(isinstance(layer, FusedGroupNorm) for layer in model.modules()):
        return "fused"
    device = next(model.parameters()).device
    return f"plain ({fault_on(device)})" if device.type == "cuda" else "plain"


def serves(x: Tensor) -> bool:
    """Return whether the kernels take x (B, C, H, W) in this context."""
    return x.is_cuda and x.ndim == 4 and not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def use_fused_norms(model: nn.Module) -> None:
    """Replace a model's group normalisations, in place, by fused ones with the same parameters."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is GroupNorm32:
                setattr(parent, name, FusedGroupNorm(layer))


@functools.cache
def fault_on(device: torch.device) -> str:
    """Try the kernels on a CUDA device; return why they cannot be used there, or nothing."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    generator = torch.Generator(device).manual_seed(0)
    x = torch.randn(2, 2 * GROUPS, 5, 7, device=device, generator=generator) + 3
    norm = GroupNorm32(2 * GROUPS).to(device).requires_grad_(False)
    modulation = torch.randn(2, 4 * GROUPS, device=device, generator=generator)
    x = x.contiguous(memory_format=torch.channels_last)
    try:
        with torch.inference_mode():
            made = FusedGroupNorm(norm).activated(x, modulation)
            error = (made - norm.activated(x, modulation)).abs().max().item()
    except Exception as failure:  # Triton raises whatever its compiler, the C compiler or the driver raise
        return f"Triton: {type(failure).__name__}: {str(failure).strip().partition(chr(10))[0]}"
    return "" if error < _TOLERANCE else f"its values differ from the plain ones by {error:.1e}"


def normalised(
    x: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None, *, eps: float, activated: bool
) -> Tensor:
    """Normalise a map in 32 groups.

    Parameters
    ----------
    x : Tensor, shape (B, C, H, W)
        float32, float16 or bfloat16, copied unless it is channels-last.
    weight, bias : Tensor, shape (C,)
        Scale and shift of the normalisation.
    modulation : Tensor, shape (B, 2C)
        Scale - 1 and shift of each image after the normalisation, or None.
    eps
        Added to the variance.
    activated
        Apply SiLU.

    Returns
    -------
    Tensor, shape (B, C, H, W)
        In x's dtype, channels-last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    y = torch.empty_like(x, memory_format=torch.channels_last)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        launch(_kernels(), x, y, weight, bias, None if modulation is None else modulation.contiguous(), eps, activated)
    return y


def launch(
    kernels: ModuleType,
    x: Tensor,
    y: Tensor,
    weight: Tensor,
    bias: Tensor,
    modulation: Tensor | None,
    eps: float,
    activated: bool,
) -> None:
    """Launch the kernels that write y; all tensors are on one device, and maps are channels-last."""
    batch, channels, height, width = x.shape
    positions, width_of_group = height * width, channels // GROUPS
    padded = _power_of_two(width_of_group)
    rows = max(1, _TILE // (GROUPS * padded))
    chunk_rows = rows * -(-positions // (rows * _CHUNKS))
    chunks = -(-positions // chunk_rows)
    found = torch.empty(batch, chunks, 3, GROUPS, device=x.device)
    factors = torch.empty(batch, 3, channels, device=x.device)
    kernels.moments[(chunks, batch)](
        x, found, positions, chunk_rows, GROUPS=GROUPS, WIDTH=width_of_group, PLACES=padded, ROWS=rows, num_warps=8
    )
    kernels.coefficients[(batch,)](
        found, weight, bias, bias if modulation is None else modulation, factors, positions, chunks, chunk_rows, eps,
        MODULATED=modulation is not None, GROUPS=GROUPS, WIDTH=width_of_group, PLACES=padded,
    )  # fmt: skip
    columns = _power_of_two(channels)
    rows = max(1, _TILE // columns)
    kernels.transform[(-(-positions // rows), batch)](
        x, factors, y, positions, channels, ACTIVATED=activated, COLUMNS=columns, ROWS=rows, num_warps=8
    )


@functools.cache
def _kernels() -> ModuleType:
    return import_module(".norm_kernels", __package__)


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()
