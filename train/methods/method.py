"""The methods: what a student learns from and how, one definition each, to be read next to its paper.

A definition names the cached features and their scaling, the window and the augmentation of a training example, the
student's initial weights, the loss, and the default settings of a training. ``docs/reference/methods.md`` gives the source of
each number.

DistilDIRE (arXiv 2406.00856) has two presets. ``paper`` is what the text describes and what the cached teacher serves.
``official-code`` is what the published code does. Its CutMix mixes DIRE images before the teacher sees them, so no
precomputed teacher feature can serve it: the teacher runs online on the cached DIRE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ...choices import InitialWeights, Preset, ScheduleName
from ...errors import UsageError
from ...models.input_size import paper_size

CHANNELS_PER_FEATURE = 3

Scale = Literal["imagenet", "signed", "stored"]
"""``imagenet``: 0..1, normalised by ImageNet's mean and deviation. ``signed``: -1..1. ``stored``: the stored values."""


@dataclass(frozen=True)
class MethodDefaults:
    """Defaults of a training's settings.

    Attributes
    ----------
    schedule
        ``accuracy-plateau`` divides the rate by ten when the validation accuracy has not risen for ``patience`` epochs,
        and ends the training when the rate falls below ``min_lr``; ``epochs`` is the limit.
    patience, min_lr
        Used by ``accuracy-plateau`` only.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 1e-4
    beta1: float = 0.9
    kd_weight: float = 0.0
    schedule: ScheduleName = "constant"
    patience: int = 5
    min_lr: float = 1e-6


@dataclass(frozen=True)
class Degradation:
    """Blur and JPEG of the stored image, in this order and each with ``probability``, before anything else.

    Attributes
    ----------
    probability
        Probability of each.
    blur
        Range of the Gaussian's standard deviation in pixels, (0, 0) for no blur.
    jpeg
        Range of the quality, both ends included.
    adjustable
        Whether ``--aug-prob`` sets the probability.
    validated
        Whether validation images are degraded too.
    truncated
        Whether an image passes through float32 in [-1, 1] before it is compressed, and is truncated back to 8 bits, as
        in DistilDIRE's published code.
    """

    probability: float
    blur: tuple[float, float]
    jpeg: tuple[int, int]
    adjustable: bool
    validated: bool = False
    truncated: bool = False

    def of_validation(self) -> Degradation | None:
        """Return what validation images pass through: the middle of each range, with the same probability."""
        if not self.validated:
            return None
        sigma, quality = sum(self.blur) / 2, sum(self.jpeg) // 2
        return replace(self, blur=(sigma, sigma), jpeg=(quality, quality))


@dataclass(frozen=True)
class Method:
    """One detection method.

    Attributes
    ----------
    scales
        Cached features of the input and the scaling of each, concatenated along the channels in this order.
    defaults
        Default settings of a training.
    distils
        Whether the loss has a term for the teacher's map of the DIRE image.
    online
        Whether the teacher must run during training, on the cached DIRE; its cached maps cannot serve.
    window
        Resize the image to the student's side, or crop a random square of that side.
    whole
        Whether the student's default side is the image's own; otherwise it is 7/8 of it, 224 of 256.
    flips
        Whether images are mirrored with probability 1/2.
    degradation
        Blur and JPEG, or None.
    cutmix
        Probability of mixing a batch.
    pos_weight
        Weight of generated images in the cross-entropy.
    initial
        Initial weights of the backbone.
    head
        Standard deviation of the head's initial weights; None for PyTorch's rule.
    caveat
        What readers of its results must know; empty if nothing.
    """

    name: str
    scales: Mapping[str, Scale]
    defaults: MethodDefaults
    distils: bool = False
    online: bool = False
    window: Literal["resize", "random-crop"] = "resize"
    whole: bool = False
    flips: bool = True
    degradation: Degradation | None = None
    cutmix: float = 0.0
    pos_weight: float = 1.0
    initial: InitialWeights = "scratch"
    head: float | None = None
    caveat: str = ""
    preset: Preset = "paper"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Cached features of the student's input, in the order of its channels."""
        return tuple(self.scales)

    @property
    def channels(self) -> int:
        """Channels of the student's input."""
        return CHANNELS_PER_FEATURE * len(self.scales)

    def training_features(self, distillation: float, *, online: bool = False) -> tuple[str, ...]:
        """Return the cached features that training reads.

        Parameters
        ----------
        distillation
            Weight of the distillation loss; with 0, no feature is read for it.
        online
            Whether the teacher runs online, so that DIRE is read instead of the teacher's maps.
        """
        if not self.distils or distillation == 0:
            return self.inputs
        return (*self.inputs, "dire" if online or self.online else "teacher")

    def side(self, image: int, teacher: int | None) -> int:
        """Return the default side of the student's input in pixels.

        Methods to compare see the same pixels: DistilDIRE without its loss, and eps alone, see what the teacher saw.

        Parameters
        ----------
        image
            Side of the cached images.
        teacher
            Side of the teacher's input, or None.
        """
        if self.whole:
            return image
        return paper_size(image) if teacher is None or self.window == "random-crop" else teacher


UNTIL_PLATEAU = MethodDefaults(epochs=400, batch_size=64, lr=1e-4, schedule="accuracy-plateau", patience=5, min_lr=1e-6)
"""The recipe of CNNDet's code, which those of DIRE and DNF keep; 400 epochs are DIRE's limit."""

DISTILDIRE = Method(
    "distildire",
    scales={"image": "imagenet", "eps": "stored"},
    distils=True,
    defaults=MethodDefaults(epochs=20, batch_size=64, lr=1e-4, kd_weight=0.5),
)

DISTILDIRE_CODE = Method(
    "distildire",
    preset="official-code",
    scales={"image": "signed", "eps": "stored"},
    distils=True,
    online=True,
    whole=True,
    flips=False,
    degradation=Degradation(probability=1.0, blur=(0.0, 0.0), jpeg=(10, 99), adjustable=False, truncated=True),
    cutmix=0.5,
    pos_weight=0.5,
    defaults=MethodDefaults(epochs=100, batch_size=256, lr=1e-5, beta1=0.9, kd_weight=1.0),
    caveat="trained as the published code does it: in training the image passes through JPEG while its eps and DIRE "
    "stay those of the clean image, and the teacher runs online because CutMix mixes DIRE before it",
)

DIRE = Method(
    "dire",
    scales={"dire": "imagenet"},
    window="random-crop",
    initial="imagenet",
    head=0.02,
    defaults=UNTIL_PLATEAU,
)

DNF = Method(
    "dnf",
    scales={"noise": "stored"},
    whole=True,
    head=0.02,
    defaults=UNTIL_PLATEAU,
    caveat="its noise is that of an ADM, which sees 8-bit images, while DNF's code takes it from another network, a DDIM "
    "UNet of LSUN bedrooms fed with unrounded values: its numbers here are not those of its paper's features",
)

CNNDET = Method(
    "cnndet",
    scales={"image": "imagenet"},
    window="random-crop",
    degradation=Degradation(probability=0.5, blur=(0.0, 3.0), jpeg=(30, 100), adjustable=True, validated=True),
    initial="imagenet",
    head=0.02,
    defaults=UNTIL_PLATEAU,
    caveat="the cached image is resized before it is tested, while CNNDet's own test crops the original: its numbers "
    "here are not those of its paper's protocol",
)

EPS = Method(
    "eps",
    scales={"eps": "stored"},
    defaults=MethodDefaults(epochs=20, batch_size=64, lr=1e-4),
)

METHODS: dict[str, Method] = {method.name: method for method in (DISTILDIRE, DIRE, DNF, CNNDET, EPS)}
"""By name, in the preset ``paper``."""

PRESETS: dict[tuple[str, Preset], Method] = {
    (method.name, method.preset): method for method in (*METHODS.values(), DISTILDIRE_CODE)
}


def find_method(name: str, preset: Preset = "paper", aug_prob: float | None = None) -> Method:
    """Return a method's definition.

    Parameters
    ----------
    name, preset
        Method and preset.
    aug_prob
        Probability of its blur and JPEG, if not the default.

    Raises
    ------
    UsageError
        The method or preset does not exist, or the method has no such probability.
    """
    if name not in METHODS:
        raise UsageError(f"method: unknown method {name!r}; use {', '.join(METHODS)}.")
    if (name, preset) not in PRESETS:
        having = ", ".join(sorted(known for known, of in PRESETS if of == preset))
        raise UsageError(f"preset: method {name} has no preset {preset!r}; only {having or 'no method'} has it.")
    method = PRESETS[name, preset]
    if aug_prob is None:
        return method
    if method.degradation is None or not method.degradation.adjustable:
        having = ", ".join(m.name for m in METHODS.values() if m.degradation and m.degradation.adjustable)
        raise UsageError(f"aug_prob: method {name}, preset {preset}, has no probability to set; only {having} has one.")
    return replace(method, degradation=replace(method.degradation, probability=aug_prob))
