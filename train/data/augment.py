"""Augmentation: random draws, crop and flip, CutMix, blur and JPEG, and the scaling of the student's input.

An augmentation is used only if its effect on every cached feature is known, which its geometry decides (see
:data:`...cache.records.about.Geometry`): one window and one flip for all features of a sample that lie over the image,
chosen before it is read. Maps and vectors are not touched here: the flip selects their cached view, and a random crop or
CutMix, of which the cache holds no row, is refused beside them. The
order in training is: resize or random crop, flip, scale. A test uses the centre crop of the training size, one window
for all features (``crop``, as in the papers), or a resize (``resize``). The antialiased resize from 256 to 224 lowers
the standard deviation of white noise to 0.58 and the crop leaves it at 1, so the two differ for eps.

Random numbers depend only on (seed, epoch, row): not on the batch of a row, on its neighbours, on the number of
workers or ranks, or on where a training was interrupted.

Blur and JPEG (CNNDet, arXiv 1912.11035, section 3.2; DistilDIRE's published code) change the image only; its cached
eps, noise and DIRE stay those of the clean image. So only a method that reads no other feature may use them, or one
whose published code does the same (``official-code``). JPEG needs the CPU, and the blur comes before it: both
happen where the rows are read. CNNDet's code also blurs and compresses validation images.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor

from ...cache.records.about import OVER_IMAGE, Geometry, can_mirror
from ...choices import TEST_TRANSFORMS, TestTransform
from ...errors import UsageError
from ...models.backbones import IMAGENET_MEAN, IMAGENET_STD, per_channel, resize
from ...models.transfer import to_device
from ..methods.method import Degradation, Method, Scale

_Array = npt.NDArray[np.float64]

ALL_PIXELS: Mapping[str, Geometry] = MappingProxyType({})
"""Says of no feature that it is anything else than pixels."""
SAMPLE, BATCH, VALIDATION = 1, 2, 3
"""Last numbers of the seed sequences. They prevent collisions: numpy pads seeds with zeros, and shuffling uses two."""


class SampleDraws(NamedTuple):
    """Uniform numbers in [0, 1) of some samples, (B,) float64 each: crop position, whether and how to degrade."""

    top: _Array
    left: _Array
    blur: _Array
    sigma: _Array
    jpeg: _Array
    quality: _Array


class MixDraws(NamedTuple):
    """Uniform numbers in [0, 1) of one batch: whether to mix, the share to keep, the corner of the pasted square."""

    mix: float
    keep: float
    top: float
    left: float


def sample_draws(seed: int, epoch: int, rows: npt.NDArray[Any], stream: int = SAMPLE) -> SampleDraws:
    """Draw random numbers for each of ``rows``, (B,) non-negative integers, in one epoch of a training.

    ``stream`` is SAMPLE for rows of the training and VALIDATION for rows of the validation.
    """
    drawn = [np.random.default_rng([seed, epoch, int(row), stream]).random(len(SampleDraws._fields)) for row in rows]
    return SampleDraws(*np.array(drawn).reshape(len(rows), len(SampleDraws._fields)).T)


def mix_draws(seed: int, epoch: int, first_row: int) -> MixDraws:
    """Draw random numbers for the batch whose first sample is ``first_row``."""
    return MixDraws(*np.random.default_rng([seed, epoch, first_row, BATCH]).random(len(MixDraws._fields)).tolist())


def checked_transform(name: str) -> TestTransform:
    """Return a test transform's name. Raises UsageError for an unknown one."""
    for known in TEST_TRANSFORMS:
        if name == known:
            return known
    raise UsageError(f"--test-transform: unknown transform {name!r}; use {' or '.join(TEST_TRANSFORMS)}.")


def check_augmentations(method: Method, geometry: Mapping[str, Geometry], views: Mapping[str, Collection[str]]) -> None:
    """Refuse an augmentation whose effect on a feature is not known.

    Parameters
    ----------
    method
        The method of the training.
    geometry, views
        Of each feature that the training reads.

    Raises
    ------
    UsageError
        The method mirrors, crops at random or mixes, and a feature has no row for that.
    """
    for name, kind in geometry.items():
        if method.flips and not can_mirror(kind, views[name]):
            raise UsageError(
                f"method {method.name}: mirrors images, and {name} is a {kind} of the plain image alone, which does not "
                "say what the mirrored one would give. Use a method without flips, or build the feature with both views."
            )
        changes = {"crops images at random": method.window == "random-crop", "mixes images": method.cutmix > 0}
        for what, done in changes.items():
            if done and kind not in OVER_IMAGE:
                raise UsageError(
                    f"method {method.name}: {what}, and {name} is a {kind} of the whole image, which does not say what a "
                    "part of it would give. Use a method that takes whole images."
                )


def check_scales(method: Method, geometry: Mapping[str, Geometry]) -> None:
    """Raise UsageError if a feature that is no image is to be scaled as one."""
    for name, scale in method.scales.items():
        if scale in ("imagenet", "signed") and geometry[name] not in OVER_IMAGE:
            raise UsageError(
                f"method {method.name}: scales {name} as an image ({scale}), and it is a {geometry[name]}. Use `stored` or, "
                "with a linear student, `standard`."
            )


def train_input(
    features: Mapping[str, Tensor],
    flip: Tensor,
    method: Method,
    size: int,
    drawn: SampleDraws | None = None,
    geometry: Mapping[str, Geometry] = ALL_PIXELS,
) -> dict[str, Tensor]:
    """Make the student's input of a training batch.

    A stored image that is not larger than ``size`` has no window to crop, so it is resized.

    Parameters
    ----------
    features
        Cached features by name, each (B, 3, S, S), uint8 or float.
    flip : Tensor, shape (B,)
        bool, samples to mirror; ignored by a method without flips.
    method
        The method of the training.
    size
        Side of the input in pixels.
    drawn
        Random numbers of the samples, required by a method with random crops.
    geometry
        Of the features; one that is left out is pixels.

    Returns
    -------
    dict
        Feature -> (B, *shape) float32, in the order of the method.
    """
    parts = {}
    for name in method.inputs:
        x = as_float(features[name])
        if geometry.get(name, "pixels") in OVER_IMAGE:
            if method.window == "random-crop" and x.shape[-1] > size:
                assert drawn is not None
                x = crop(x, size, drawn)
            else:
                x = resize(x, size)
            x = flipped(x, flip) if method.flips else x
        parts[name] = x
    return scaled_input(parts, method)


def test_input(
    features: Mapping[str, Tensor],
    method: Method,
    size: int,
    transform: TestTransform,
    geometry: Mapping[str, Geometry] = ALL_PIXELS,  # noqa: PT028  (no test)
) -> dict[str, Tensor]:
    """Make the student's input of a test batch.

    A stored image that is not larger than ``size`` has no window to crop, so it is resized under either transform.

    Parameters
    ----------
    features
        Cached features by name, each (B, 3, S, S), uint8 or float.
    method
        The method of the training.
    size
        Side of the input in pixels.
    transform
        ``crop`` or ``resize``.
    geometry
        Of the features; one that is left out is pixels.

    Returns
    -------
    dict
        Feature -> (B, *shape) float32, in the order of the method.
    """
    parts = {}
    for name in method.inputs:
        x = as_float(features[name])
        if geometry.get(name, "pixels") in OVER_IMAGE:
            x = center_crop(x, size) if transform == "crop" and x.shape[-1] > size else resize(x, size)
        parts[name] = x
    return scaled_input(parts, method)


test_input.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect it


def cutmix(features: Mapping[str, Tensor], label: Tensor, drawn: MixDraws) -> tuple[dict[str, Tensor], Tensor]:
    """Apply CutMix as DistilDIRE's published code does: paste one square of the first sample into all others.

    The square has sides of sqrt(1 - keep) of the image's. Whatever extends beyond the border is lost, so the label
    counts more than was pasted.

    Parameters
    ----------
    features
        Features by name, each (B, C, S, S); the square is the same in each.
    label : Tensor, shape (B,)
        Labels. The share ``keep`` stays, the rest comes from the first sample.
    drawn
        Random numbers of the batch.

    Returns
    -------
    tuple
        Mixed features and labels.
    """
    out = {}
    for name, x in features.items():
        height, width = x.shape[-2:]
        top, left = int(drawn.top * height), int(drawn.left * width)
        side = (1.0 - drawn.keep) ** 0.5
        square = (..., slice(top, top + int(side * height)), slice(left, left + int(side * width)))
        out[name] = x.clone()
        out[name][square] = x[:1][square]
    return out, drawn.keep * label + (1.0 - drawn.keep) * label[:1]


def as_float(x: Tensor) -> Tensor:
    """Return stored values as float32: uint8 becomes 0..1, noise keeps its values."""
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def center_crop(x: Tensor, size: int) -> Tensor:
    """Cut the centre square of side ``size`` out of (B, C, S, S)."""
    top, left = (x.shape[-2] - size) // 2, (x.shape[-1] - size) // 2
    return x[..., top : top + size, left : left + size]


def crop(x: Tensor, size: int, drawn: SampleDraws) -> Tensor:
    """Cut a square of side ``size`` out of each sample of (B, C, S, S); all positions are equally likely."""
    span = torch.arange(size, device=x.device)
    batch, channels, height, width = x.shape
    top = to_device((drawn.top * (height - size + 1)).astype(np.int64), x.device)
    left = to_device((drawn.left * (width - size + 1)).astype(np.int64), x.device)
    rows = (top[:, None] + span)[:, None, :, None].expand(batch, channels, size, width)
    columns = (left[:, None] + span)[:, None, None, :].expand(batch, channels, size, size)
    return x.gather(2, rows).gather(3, columns)


def flipped(x: Tensor, flip: Tensor) -> Tensor:
    """Mirror left and right the samples of (B, C, H, W) that ``flip``, (B,) bool, selects."""
    return torch.where(flip[:, None, None, None], x.flip(-1), x)


def normalize(x: Tensor) -> Tensor:
    """Normalise (B, 3, H, W) in 0..1 by ImageNet's mean and standard deviation."""
    return (x - per_channel(IMAGENET_MEAN, x)) / per_channel(IMAGENET_STD, x)


def scaled(x: Tensor, scale: Scale) -> Tensor:
    """Bring values of `as_float` to a method's scale; what is ``standard`` the student itself knows."""
    if scale == "imagenet":
        return normalize(x)
    return x * 2 - 1 if scale == "signed" else x


def scaled_input(parts: Mapping[str, Tensor], method: Method) -> dict[str, Tensor]:
    """Return features of `as_float`, scaled as the method's student takes them."""
    return {name: scaled(x, method.scales[name]) for name, x in parts.items()}


@dataclass(frozen=True)
class Degrader:
    """Blur and JPEG of one training.

    Attributes
    ----------
    settings
        Ranges and probability.
    seed
        Seed of the training.
    stream
        SAMPLE for training rows, VALIDATION for validation rows.
    """

    settings: Degradation
    seed: int
    stream: int = SAMPLE

    def __call__(self, images: Tensor, rows: npt.NDArray[Any], epoch: int) -> Tensor:
        """Degrade images with the random numbers of their rows.

        Parameters
        ----------
        images : Tensor, shape (B, 3, H, W)
            uint8 on the CPU.
        rows : ndarray, shape (B,)
            Their rows.
        epoch
            The epoch, from 1.

        Returns
        -------
        Tensor, shape (B, 3, H, W)
            uint8.
        """
        out = torch.empty_like(images)
        for index, drawn in enumerate(zip(*sample_draws(self.seed, epoch, rows, self.stream), strict=True)):
            out[index] = degraded(images[index], self.settings, SampleDraws(*drawn))
        return out


def degraded(image: Tensor, settings: Degradation, drawn: SampleDraws) -> Tensor:
    """Degrade (3, H, W) uint8 with the numbers of one sample."""
    (least, most), (worst, best) = settings.blur, settings.jpeg
    if settings.truncated:
        image = truncated(image)
    if most > 0 and drawn.blur < settings.probability:
        image = gaussian_blur(image, least + float(drawn.sigma) * (most - least))
    if drawn.jpeg < settings.probability:
        image = jpeg_compress(image, worst + int(drawn.quality * (best - worst + 1)))
    return image


def truncated(image: Tensor) -> Tensor:
    """Return uint8 values after DistilDIRE's way to [-1, 1] and back, which truncates.

    Its float32 arithmetic is inexact: the levels 1 to 63 become 0 to 62, all others stay.
    """
    floats = image.float() / 255 * 2 - 1
    return ((floats + 1) / 2 * 255).to(torch.uint8)


def jpeg_compress(image: Tensor, quality: int) -> Tensor:
    """Compress (3, H, W) uint8 to JPEG of this quality and back, with libjpeg's default chroma subsampling (4:2:0)."""
    stream = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1)


def gaussian_blur(image: Tensor, sigma: float) -> Tensor:
    """Blur (3, H, W) uint8 by a Gaussian, sigma in pixels, with mirrored borders, exactly as CNNDet's code does.

    The filter writes to 8 bits after each of its two directions and truncates both times, so a blurred image is
    darker: by about one level on average from a sigma of 0.3 on.
    """
    blurred = image.numpy().copy()
    for channel in blurred:
        ndimage.gaussian_filter(channel, sigma, output=channel)
    return torch.from_numpy(blurred)
