"""The device of stage one: its name, and how exactly it computes (precision, deterministic kernels)."""

from __future__ import annotations

import platform

import torch

from ..choices import Precision
from ..errors import UsageError

HALF: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Precisions in which the networks' weights are not float32."""


def device_name(device: torch.device) -> str:
    """Return what a device is called: the card's name, or which machine's CPU it is."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU of {platform.node()}"


def set_precision(precision: Precision, device: torch.device) -> None:
    """Make float32 mean float32 (or TF32 where that was asked for) and the same input give the same bytes.

    cuDNN uses TF32 for convolutions unless told otherwise, and its benchmark mode may pick other kernels in every
    process. Raises UsageError for tf32 without a CUDA device, where nothing would honour it.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32 needs a CUDA device, this build runs on {device.type}; use fp32.")
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
