"""A GPU without one: networks whose weights are fake CUDA tensors, and a log of the operations on them.

Fake tensors have a device, a shape and an order in memory, and no values. Operations on them follow the rules of the
device that they name, so a host copy, a wait for the device or a map in the wrong order shows.

What fake tensors do not know is told to them here. TF32 is a setting of the process, so the log notes it at each
convolution. Pinned memory is remembered by the log. Autocast and loss scaling switch themselves off where there is no
CUDA. Without a card that has bfloat16, PyTorch would not choose cuDNN for it, and so another order of the result. What
is read from a copy on the host are ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.cuda.amp.common as amp_common
from distil_cache.models import transfer
from distil_cache.models.diffusion import fused_norm
from distil_cache.models.diffusion.noise_schedule import NoiseSchedule
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.pipeline.execution import networks
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode_stack
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "item", "equal.default")
"""Operations for which the host waits."""
OF_THE_HOST = ("lift_fresh", "device")
"""What happens when an array becomes a tensor of the host, and when a tensor is asked for its device."""


class CudaLog(TorchDispatchMode):
    """Notes what operations on fake CUDA tensors do.

    Attributes
    ----------
    counts
        Name of an operation -> how often it ran.
    copies
        Copies between host and device that nothing waits for: from and to pinned memory, and not blocking.
    on_host
        Other operations with a tensor on the host.
    waits
        Operations for which the host waits.
    reordered
        Convolutions whose input and weights differ in the order of channels, so that cuDNN copies the map.
    largest
        Values of the largest tensor that was made.
    tf32
        Whether matrix products and cuDNN used TF32, at each convolution; a set.
    dtypes
        Types in which convolutions computed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.copies = 0
        self.on_host: list[str] = []
        self.waits: list[str] = []
        self.reordered: list[str] = []
        self.largest = 0
        self.tf32: set[tuple[bool, bool]] = set()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        results = [x for x in tree_leaves(made) if isinstance(x, Tensor)]
        if (kwargs or {}).get("pin_memory"):
            _pin(made)
        elif _on_its_way(name, args, kwargs or {}):
            self.copies += 1
        elif not name.startswith(OF_THE_HOST):
            self.note(name, given, results)
        if name.startswith("convolution"):
            self.tf32.add((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            self.dtypes.add(given[0].dtype)
            if given[0].ndim == 4 and {order(given[0]), order(given[1])} == {"NCHW", "NHWC"}:
                self.reordered.append(f"{tuple(given[0].shape)} by {tuple(given[1].shape)}")
        return made

    def note(self, name: str, given: list[Tensor], results: list[Tensor]) -> None:
        self.counts[name.partition(".")[0]] += 1
        if any(not x.is_cuda for x in (*given, *results)):
            self.on_host.append(name)
        if any(name.startswith(word) for word in WAITS):
            self.waits.append(name)
        self.largest = max([self.largest, *(x.numel() for x in results)])


def _pin(x: Any) -> Any:
    """Let a tensor of the host be pinned, which a fake one cannot be."""
    x.pinned = True
    return x


def _pinned(x: Tensor) -> bool:
    return getattr(x, "pinned", False)


def _on_its_way(name: str, args: Any, kwargs: Any) -> bool:
    """Whether an operation copies from or to pinned memory without a wait."""
    if name.startswith("_to_copy"):
        return _pinned(args[0]) and kwargs.get("non_blocking", False)
    return name.startswith("copy_") and _pinned(args[0]) and args[1].is_cuda and args[2:] == (True,)


def innermost(x: Tensor) -> bool:
    """Whether the channels of a map are innermost."""
    return x.is_contiguous(memory_format=torch.channels_last)


def order(x: Tensor) -> str:
    """Return the order of a map or of weights; those of a single channel or position have both."""
    return "both" if innermost(x) and x.is_contiguous() else "NHWC" if innermost(x) else "NCHW"


def _needs_new_torch() -> None:
    """Skip the test where fake CUDA tensors reach the driver, as with PyTorch 2.6 to 2.9 and no longer with 2.12."""
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12):
        pytest.skip("this PyTorch takes fake CUDA tensors to the driver")


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let CUDA tensors be fake ones, on a GPU where the fused kernels work; fused attention stores no scores."""
    _needs_new_torch()
    monkeypatch.setattr(torch, "inference_mode", _without_gradients)
    monkeypatch.setattr(torch.cuda, "device", lambda here: nullcontext())
    monkeypatch.setattr(torch.cuda, "device_of", lambda here: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda here: (9, 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(amp_common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch._C, "_conv_determine_backend_memory_format", _order_of_cudnn)
    monkeypatch.setattr(Tensor, "pin_memory", _pin)
    monkeypatch.setattr(transfer, "_reached", lambda device: None)
    monkeypatch.setattr(transfer.HostCopy, "arrays", _ones)
    monkeypatch.setattr(networks, "fault_on", lambda here: "")
    monkeypatch.setattr(fused_norm, "launch", _launched)
    monkeypatch.setattr(fused_norm, "_kernels", lambda: None)
    monkeypatch.setattr(F, "scaled_dot_product_attention", _attended)
    monkeypatch.setattr(Adm, "to", lambda model, device, memory_format: _Placed(model, device, memory_format))
    steps = NoiseSchedule._steps
    monkeypatch.setattr(NoiseSchedule, "_steps", lambda schedule: on_host(steps, schedule))
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def fake_adm(config: AdmConfig, precision: Any) -> Adm:
    """Return a diffusion model as a build has it on a GPU."""
    with _disable_current_modes(), torch.device("meta"):
        placed: Any = networks.placed(Adm(config).eval().requires_grad_(False), precision, GPU)
    assert placed.device == GPU
    return on_fake_cuda(placed.model, placed.memory_format)  # type: ignore[no-any-return]


class _Placed(NamedTuple):
    """What a build moves to a GPU, and in which memory format."""

    model: nn.Module
    device: torch.device
    memory_format: torch.memory_format


def on_fake_cuda(model: Any, memory_format: torch.memory_format = torch.preserve_format) -> Any:
    """Replace the parameters and buffers of a network, in place, by fake CUDA tensors in this order of maps."""
    _needs_new_torch()
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None:
                    format_of = memory_format if value.ndim == 4 else torch.preserve_format
                    fake = torch.empty(value.shape, dtype=value.dtype, device=GPU).to(memory_format=format_of)
                    held[name] = nn.Parameter(fake, value.requires_grad) if held is module._parameters else fake
    return model


def on_host(function: Any, *arguments: Any) -> Any:
    """Call a function that computes numbers of the host with tensors."""
    with _disable_current_modes():
        return function(*arguments)


def _without_gradients(mode: bool = True) -> Any:
    """Stands in for inference mode, in which the log would not see the parts of composite operations."""
    return torch.no_grad() if mode else nullcontext()


def _order_of_cudnn(x: Tensor, weight: Tensor, backend: object) -> torch.memory_format:
    """The order of what cuDNN computes: channels are innermost if they are in the map or in the weights."""
    return torch.channels_last if "NHWC" in (order(x), order(weight)) else torch.contiguous_format


def _ones(copy: Any) -> dict[str, Any]:
    """What `HostCopy.arrays` returns: ones."""
    assert all(map(_pinned, copy._values.values()))
    return {
        name: np.ones(tuple(value.shape), str(value.dtype).removeprefix("torch."))
        for name, value in copy._values.items()
    }


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as fused kernels do it: queries, keys and values are read, and as much as the queries is written."""
    assert q.stride(-1) == k.stride(-1) == v.stride(-1) == 1, "fused kernels need channels innermost"
    return torch.empty_like(q).copy_(v)


def _launched(
    kernels: object, x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, modulation: Tensor | None, eps: float,
    activated: bool,
) -> None:  # fmt: skip
    """The fused normalisation: it is noted, and nothing is computed."""
    assert innermost(x)
    assert innermost(y)
    for log in _get_current_dispatch_mode_stack():
        if isinstance(log, CudaLog):
            log.note("fused_norm", [x], [y])
