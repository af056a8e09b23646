"""Count what a method costs: ADM calls, parameters, FLOPs. No network is run and no weights are drawn.

The networks are built on torch's ``meta`` device, which has only shapes, and `FlopCounterMode` counts the convolutions
and matrix products of one image. Attention runs unfused, as its two matrix products, since the counter does not know
the fused CPU kernel. Elementwise operations (normalisation, activations, DDIM arithmetic, resizing) are not counted, as
usual; they take time but few operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ...cache.records.about import Layout
from ...features.contract import Single
from ...features.registry import layout_of
from ...models.diffusion.unet import Adm, AdmConfig
from ...train.methods.method import Method
from .method_runner import MethodPlan
from .result import Flops, MethodCosts, Parameters


def count_flops(function: Callable[..., object], *inputs: object) -> int:
    """Count the FLOPs of one call: two per multiply-add of its convolutions and matrix products."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        function(*inputs)
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
        plan = MethodPlan.of(method, self._config, self._size, self._steps)
        walk = plan.walk
        calls = 0 if walk is None else walk.whole_route.calls
        layouts = {name: layout_of(spec) for name, spec in plan.specs.items()}
        with FakeTensorMode():
            student = plan.random_student(self._backbone).eval()
            rows = {name: _empty_row(layout) for name, layout in layouts.items()}
            of_student = count_flops(student, plan.student_input(rows))
            others = [_counted(plan, producer, rows) for producer in plan.producers if isinstance(producer, Single)]
        of_call = self._adm_flops if calls else 0
        of_others = sum(flops for flops, _ in others)
        return MethodCosts(
            method=method.name,
            title=method.title or method.name,
            adm_calls=calls,
            student_size=plan.side,
            parameters=Parameters(
                adm=self._adm_parameters if calls else 0,
                student=parameters(student),
                others=sum(weights for _, weights in others),
            ),
            flops=Flops(
                adm_call=of_call, student=of_student, others=of_others, image=calls * of_call + of_others + of_student
            ),
        )


def _empty_row(layout: Layout) -> Tensor:
    """Return a row of a feature without values, (1, ...)."""
    return torch.empty(1, *layout.shape, dtype=getattr(torch, layout.dtype))


def _counted(plan: MethodPlan, producer: Single, rows: Mapping[str, Tensor]) -> tuple[int, int]:
    """Return the FLOPs of a feature that is made of others, and the parameters of its network."""
    network = plan.random_network(producer)
    flops = count_flops(producer.queue_all, network, rows, [""])
    return flops, 0 if network is None else parameters(network)
