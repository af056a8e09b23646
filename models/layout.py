"""The order in which students and backbones hold their maps on a device."""

from __future__ import annotations

from typing import TypeVar

import torch

Network = TypeVar("Network", bound=torch.nn.Module)


def memory_layout(device: torch.device) -> torch.memory_format:
    """Return the order of maps in memory: channels innermost on CUDA.

    cuDNN's TF32 and half-precision convolutions read that order; others they copy before and after each call. On a CPU
    torch's own order stays, and with it every bit of a training.
    """
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def move_network(network: Network, device: torch.device) -> Network:
    """Move a student or a backbone to its device, in the order of `memory_layout`, and return it."""
    return network.to(device, memory_format=memory_layout(device))  # type: ignore[call-overload, no-any-return]
