"""What a frozen backbone makes of an image and of its mirror image."""

from __future__ import annotations

from typing import Annotated, Protocol

import torch
from pydantic import Field
from torch import Tensor

from ..cache.records.about import View
from ..choices import Precision
from ..models.backbone_entry import Triple
from ..models.backbones import per_channel
from ..models.device import HALF_TYPES
from ..models.layout import memory_layout
from .contract import Network

Positive = Annotated[float, Field(gt=0)]


class ViewSpec(Protocol):
    """How a backbone is called: normalisation of its input in 0..1, views in their order, and precision."""

    @property
    def mean(self) -> Triple:
        """Mean of each channel."""
        ...

    @property
    def std(self) -> Triple:
        """Standard deviation of each channel."""
        ...

    @property
    def views(self) -> tuple[View, ...]:
        """The views."""
        ...

    @property
    def precision(self) -> Precision:
        """With bf16 and fp16, autocast selects the operations that run in that type."""
        ...


def of_views(network: Network, images: Tensor, spec: ViewSpec) -> Tensor:
    """Run a backbone on every view of images, on their device, which is not waited for.

    Parameters
    ----------
    network
        The backbone.
    images : Tensor, shape (B, 3, S, S)
        float32 in 0..1, of the backbone's input size.
    spec
        How it is called.

    Returns
    -------
    Tensor, shape (B, V, ...)
        float16.
    """
    mean, std = per_channel(spec.mean, images), per_channel(spec.std, images)
    views = []
    half = HALF_TYPES.get(spec.precision)
    with torch.inference_mode(), torch.autocast(images.device.type, dtype=half, enabled=half is not None):
        for view in spec.views:
            flipped = images.flip(-1) if view == "hflip" else images
            x = ((flipped - mean) / std).contiguous(memory_format=memory_layout(images.device))
            views.append(network(x).half())
    return torch.stack(views, dim=1)
