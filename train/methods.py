"""What a student learns from and how: each method in one definition, to be read next to its paper.

A definition says what is read from the cache and how it is scaled, which window and which changes of the picture make a
training example, the weights that a student starts from, the loss, and the numbers that a training takes where it is not
told otherwise. ``docs/methods.md`` says where each number comes from.

DistilDIRE (arXiv 2406.00856) has two presets. ``paper`` is what the text describes and what the cached teacher serves.
``official-code`` is what the published code does; its CutMix mixes DIRE images before the teacher sees them, so no
teacher feature computed beforehand can serve it: the teacher runs online on the cached DIRE.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from ..choices import InitialWeights, Preset
from ..errors import UsageError
from ..models.input_size import paper_size

CHANNELS_PER_FEATURE = 3

Scale = Literal["imagenet", "signed", "stored"]
"""0..1 less ImageNet's mean, divided by its deviation; 0..1 stretched to -1..1; or the stored values themselves."""

Schedule = Literal["constant", "plateau"]
Window = Literal["resize", "random-crop"]


@dataclass(frozen=True)
class MethodDefaults:
    """What a training takes for a setting that it was not given.

    schedule : ``plateau`` divides the rate by ten when the validation has not improved for ``patience`` epochs, and
        ends the training when the rate falls below ``min_lr``; ``epochs`` bounds it. These two serve no other schedule.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 1e-4
    beta1: float = 0.9
    kd_weight: float = 0.0
    schedule: Schedule = "constant"
    patience: int = 5
    min_lr: float = 1e-6


@dataclass(frozen=True)
class Degradation:
    """Blur and JPEG of the stored picture, in this order and each with ``probability``, before anything else.

    blur : range of the Gaussian's standard deviation in pixels, (0, 0) for none. jpeg : range of the quality, both ends
    included. adjustable : whether ``--aug-prob`` sets the probability.
    """

    probability: float
    blur: tuple[float, float]
    jpeg: tuple[int, int]
    adjustable: bool


@dataclass(frozen=True)
class Method:
    """One way to detect.

    inputs : cached features and how each is scaled, joined along the channels in this order.
    distils : the loss has a term against the teacher's map of the DIRE image.
    online : the teacher runs during training, on the cached DIRE; its cached maps cannot serve.
    window : the picture is resized to the student's side, or a random square of that side is cut out.
    whole : the student's side is the picture's own, unless told otherwise; else 7/8 of it, 224 of 256.
    flips : pictures are mirrored with probability 1/2.
    cutmix : probability of mixing a batch. pos_weight : weight of generated pictures in the cross-entropy.
    initial : weights that the backbone starts from. head : standard deviation of the head's first weights; None leaves
        them to PyTorch's rule.
    caveat : what a reader of its results must know; empty if nothing.
    """

    name: str
    scales: Mapping[str, Scale]
    defaults: MethodDefaults
    distils: bool = False
    online: bool = False
    window: Window = "resize"
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
        """Cached features that the student sees, in the order of its channels."""
        return tuple(self.scales)

    @property
    def channels(self) -> int:
        """Channels of the student's input."""
        return CHANNELS_PER_FEATURE * len(self.scales)

    def training_features(self, distillation: float, *, online: bool = False) -> tuple[str, ...]:
        """Cached features that training reads; the teacher's, or DIRE for an online teacher, if its loss has weight."""
        if not self.distils or distillation == 0:
            return self.inputs
        return (*self.inputs, "dire" if online or self.online else "teacher")

    def side(self, image: int, teacher: int | None) -> int:
        """The student's side in pixels, for pictures of side ``image`` and a teacher that saw ``teacher`` pixels.

        What is meant to be compared sees the same: DistilDIRE without its loss, and eps alone, see what the teacher saw.
        """
        if self.whole:
            return image
        return paper_size(image) if teacher is None or self.window == "random-crop" else teacher


UNTIL_PLATEAU = MethodDefaults(epochs=400, batch_size=64, lr=1e-4, schedule="plateau", patience=5, min_lr=1e-6)
"""The recipe of CNNDet's code, which those of DIRE and DNF keep; 400 epochs are DIRE's bound."""

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
    degradation=Degradation(probability=1.0, blur=(0.0, 0.0), jpeg=(10, 99), adjustable=False),
    cutmix=0.5,
    pos_weight=0.5,
    defaults=MethodDefaults(epochs=100, batch_size=256, lr=1e-5, beta1=0.9, kd_weight=1.0),
    caveat="trained as the published code does it: in training the image passes through JPEG while its eps and DIRE stay "
    "those of the clean image, and the teacher runs online because CutMix mixes DIRE before it",
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
)

CNNDET = Method(
    "cnndet",
    scales={"image": "imagenet"},
    window="random-crop",
    degradation=Degradation(probability=0.5, blur=(0.0, 3.0), jpeg=(30, 100), adjustable=True),
    initial="imagenet",
    head=0.02,
    defaults=UNTIL_PLATEAU,
    caveat="the cached image is resized before it is tested, while CNNDet's own test crops the original: its numbers here "
    "are not those of its paper's protocol",
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
    """Return a method's definition, with the probability of its blur and JPEG changed if one is given.

    Raises UsageError for a method or preset that does not exist, and for a probability that the method has no use for.
    """
    if name not in METHODS:
        raise UsageError(f"method: there is no method {name!r}, only {', '.join(METHODS)}.")
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
