"""Count what a method costs: ADM calls, parameters, FLOPs. No network is run and no weights are drawn.

The networks are built on torch's ``meta`` device, which has only shapes, and `FlopCounterMode` counts the convolutions
and matrix products of one image. Attention runs unfused, as its two matrix products, since the counter does not know
the fused CPU kernel. Elementwise operations (normalisation, activations, DDIM arithmetic, resizing) are not counted, as
usual; they take time but few operations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...models.diffusion.unet import Adm, AdmConfig
from ...train.methods.method import Method
from ...train.student import build_student
from .method_runner import walk_for
from .result import Flops, MethodCosts, Parameters


def count_flops(module: nn.Module, *inputs: Tensor) -> int:
    """Count the FLOPs of one call of a module: two per multiply-add of its convolutions and matrix products."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        module(*inputs)
    return counter.get_total_flops()


def parameters(module: nn.Module) -> int:
    """Count a module's parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def adm_call(config: AdmConfig, size: int) -> tuple[int, int]:
    """Return the FLOPs of one ADM call on one image of ``size`` x ``size`` pixels, and the ADM's parameters."""
    with torch.device("meta"):
        adm = Adm(config).eval()
        x, t = torch.zeros(1, 3, size, size), torch.zeros(1, dtype=torch.int64)
        classes = (torch.zeros(1, dtype=torch.int64),) if config.class_cond else ()
    return count_flops(adm, x, t, *classes), parameters(adm)


class FlopCounter:
    """Counts the costs of methods for one ADM, image side length in pixels, DDIM respacing and student backbone."""

    def __init__(self, config: AdmConfig, size: int, steps: str, backbone: str) -> None:
        self._config, self._size, self._steps, self._backbone = config, size, steps, backbone
        self._adm_flops, self._adm_parameters = adm_call(config, size)

    def __call__(self, method: Method) -> MethodCosts:
        """Count the costs of one method."""
        walk, side = walk_for(method, self._config, self._size, self._steps), method.side(self._size, None)
        calls = 0 if walk is None else walk.route(frozenset(walk.specs)).calls
        with torch.device("meta"):
            student = build_student(self._backbone, method.channels).eval()
            x = torch.zeros(1, method.channels, side, side)
        of_student = count_flops(student, x)
        of_call = self._adm_flops if calls else 0
        return MethodCosts(
            method=method.name,
            adm_calls=calls,
            student_size=side,
            parameters=Parameters(adm=self._adm_parameters if calls else 0, student=parameters(student)),
            flops=Flops(adm_call=of_call, student=of_student, image=calls * of_call + of_student),
        )
