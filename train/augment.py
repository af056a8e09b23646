"""From cached features to the student's input, for a whole batch on its device.

Training (DistilDIRE's paper preset): resize, flip, normalise, in this order, the same for every feature of a sample.
The teacher's map is not touched here: its cached view is chosen by the flip. Testing: the centre square of the training
size, one window for all features (``crop``, the paper's), or the resize of training (``resize``). The antialiased
resize lowers the standard deviation of white noise to 0.58 at 256 -> 224 and the crop leaves it at 1, so the two differ
for eps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import UsageError
from ..models.backbones import IMAGENET_MEAN, IMAGENET_STD
from ..models.inputs import resized
from .methods import Method

TestTransform = Literal["crop", "resize"]


def checked_transform(name: str) -> TestTransform:
    """Return a test transform's name; UsageError if there is none of that name."""
    for known in get_args(TestTransform):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise UsageError(f"--test-transform: there is no transform {name!r}, only {', '.join(get_args(TestTransform))}.")


def train_input(features: Mapping[str, Tensor], flip: Tensor, method: Method, size: int) -> Tensor:
    """Student input of a training batch: (B, channels, size, size) float32.

    features : name -> (B, 3, S, S), uint8 or float; flip : (B,) bool, the samples that are mirrored.
    """
    return _joined({name: flipped(resized(as_float(features[name]), size), flip) for name in method.inputs}, method)


def test_input(features: Mapping[str, Tensor], method: Method, size: int, transform: TestTransform) -> Tensor:
    """Student input of a test batch: (B, channels, size, size) float32.

    A stored image that is not larger than ``size`` has no window to crop: it is resized under either transform.
    """
    parts = {}
    for name in method.inputs:
        x = as_float(features[name])
        parts[name] = centre(x, size) if transform == "crop" and x.shape[-1] > size else resized(x, size)
    return _joined(parts, method)


test_input.__test__ = False  # type: ignore[attr-defined]  # the name is the design's; pytest must not collect it


def as_float(x: Tensor) -> Tensor:
    """Stored values as float32: uint8 becomes 0..1, noise keeps its values."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def centre(x: Tensor, size: int) -> Tensor:
    """The centre square of side ``size`` of (B, C, S, S)."""
    top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
    return x[..., top : top + size, left : left + size]


def flipped(x: Tensor, flip: Tensor) -> Tensor:
    """Mirror left and right those samples of (B, C, H, W) that ``flip``, (B,) bool, names."""
    return torch.where(flip[:, None, None, None], x.flip(-1), x)


def normalised(x: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1, with ImageNet's mean taken off and its standard deviation divided out."""
    mean = torch.tensor(IMAGENET_MEAN, device=x.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=x.device)[:, None, None]
    return (x - mean) / std


def _joined(parts: Mapping[str, Tensor], method: Method) -> Tensor:
    return torch.cat([normalised(x) if name in method.normalised else x for name, x in parts.items()], dim=1)
