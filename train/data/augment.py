"""From cached features to the student's input, for a whole batch on its device.

An augmentation is used only where its effect on every cached feature is known: one window and one flip for all
features of a sample, chosen before it is read. The teacher's map is not touched here: its cached view is chosen by the
flip. Order in training: resize or random crop, flip, scale. Testing: the centre square of the training size, one window
for all features (``crop``, the papers'), or a resize (``resize``). The antialiased resize lowers the standard deviation
of white noise to 0.58 at 256 -> 224 and the crop leaves it at 1, so the two differ for eps.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...choices import TEST_TRANSFORMS, TestTransform
from ...errors import UsageError
from ...models.backbones import IMAGENET_MEAN, IMAGENET_STD
from ...models.resize import resize
from ..methods import Method, Scale
from .randomness import MixDraws, SampleDraws


def checked_transform(name: str) -> TestTransform:
    """Return a test transform's name; UsageError if there is none of that name."""
    for known in TEST_TRANSFORMS:
        if name == known:
            return known
    raise UsageError(f"--test-transform: there is no transform {name!r}, only {', '.join(TEST_TRANSFORMS)}.")


def train_input(
    features: Mapping[str, Tensor], flip: Tensor, method: Method, size: int, drawn: SampleDraws | None = None
) -> Tensor:
    """Student input of a training batch: (B, channels, size, size) float32.

    features : name -> (B, 3, S, S), uint8 or float; flip : (B,) bool, the samples that are mirrored, where the method
    mirrors any; drawn : needed by a method that crops at random.
    A stored picture that is not larger than ``size`` has no window to crop: it is resized.
    """
    parts = {}
    for name in method.inputs:
        x = as_float(features[name])
        if method.window == "random-crop" and x.shape[-1] > size:
            assert drawn is not None
            x = crop(x, size, drawn)
        else:
            x = resize(x, size)
        parts[name] = flipped(x, flip) if method.flips else x
    return _joined(parts, method)


def test_input(features: Mapping[str, Tensor], method: Method, size: int, transform: TestTransform) -> Tensor:
    """Student input of a test batch: (B, channels, size, size) float32.

    A stored image that is not larger than ``size`` has no window to crop: it is resized under either transform.
    """
    parts = {}
    for name in method.inputs:
        x = as_float(features[name])
        parts[name] = center_crop(x, size) if transform == "crop" and x.shape[-1] > size else resize(x, size)
    return _joined(parts, method)


test_input.__test__ = False  # type: ignore[attr-defined]  # the name is the design's; pytest must not collect it


def cutmix(features: Mapping[str, Tensor], label: Tensor, drawn: MixDraws) -> tuple[dict[str, Tensor], Tensor]:
    """CutMix as DistilDIRE's published code does it: paste one square of the first sample into all others.

    features : name -> (B, C, S, S), the square is the same in each. label : (B,).
    A share ``keep`` of the label stays, the rest comes from the first sample; the square has sides of sqrt(1 - keep) of
    the picture's, but what lies beyond the border is lost, so the label counts more than was pasted.
    """
    out = {}
    for name, x in features.items():
        height, width = x.shape[-2:]
        top, left = int(drawn.top * height), int(drawn.left * width)
        part = (1.0 - drawn.keep) ** 0.5
        square = (..., slice(top, top + int(part * height)), slice(left, left + int(part * width)))
        out[name] = x.clone()
        out[name][square] = x[:1][square]
    return out, drawn.keep * label + (1.0 - drawn.keep) * label[:1]


def as_float(x: Tensor) -> Tensor:
    """Stored values as float32: uint8 becomes 0..1, noise keeps its values."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def center_crop(x: Tensor, size: int) -> Tensor:
    """The centre square of side ``size`` of (B, C, S, S)."""
    top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
    return x[..., top : top + size, left : left + size]


def crop(x: Tensor, size: int, drawn: SampleDraws) -> Tensor:
    """Cut the square of side ``size`` that each sample of (B, C, S, S) has drawn, all positions equally likely."""
    span = torch.arange(size, device=x.device)
    batch, channels, height, width = x.shape
    top = (torch.from_numpy(drawn.top) * (height - size + 1)).long().to(x.device)
    left = (torch.from_numpy(drawn.left) * (width - size + 1)).long().to(x.device)
    rows = (top[:, None] + span)[:, None, :, None].expand(batch, channels, size, width)
    columns = (left[:, None] + span)[:, None, None, :].expand(batch, channels, size, size)
    return x.gather(2, rows).gather(3, columns)


def flipped(x: Tensor, flip: Tensor) -> Tensor:
    """Mirror left and right those samples of (B, C, H, W) that ``flip``, (B,) bool, names."""
    return torch.where(flip[:, None, None, None], x.flip(-1), x)


def normalize(x: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..1, with ImageNet's mean taken off and its standard deviation divided out."""
    mean = torch.tensor(IMAGENET_MEAN, device=x.device)[:, None, None]
    std = torch.tensor(IMAGENET_STD, device=x.device)[:, None, None]
    return (x - mean) / std


def scaled(x: Tensor, scale: Scale) -> Tensor:
    """Bring values of ``as_float`` to a method's scale."""
    if scale == "imagenet":
        return normalize(x)
    return x * 2 - 1 if scale == "signed" else x


def _joined(parts: Mapping[str, Tensor], method: Method) -> Tensor:
    return torch.cat([scaled(x, method.scales[name]) for name, x in parts.items()], dim=1)
