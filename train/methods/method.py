"""What a method is: what a student learns from and how.

A definition names the cached features and their scaling, the window and the augmentation of a training example, the
student's initial weights, the loss, and the default settings of a training. ``docs/reference/methods.md`` gives the
source of each number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import ConfigDict

from ...choices import InitialWeights, Preset, ScheduleName
from ...models.input_size import paper_size

if TYPE_CHECKING:
    from ..students.student import Shapes, Student

Scale = Literal["imagenet", "signed", "stored", "standard"]
"""``imagenet``: 0..1, normalised by ImageNet's mean and deviation. ``signed``: -1..1. ``stored``: the stored values.
``standard``: those less their mean, by their standard deviation, both of the training rows.
"""


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

    __pydantic_config__ = ConfigDict(extra="forbid")

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


class StudentFactory(Protocol):
    """Builds the student of a method. It imports torch when it is called, so that a method is known without it."""

    def __call__(self, method: Method, shapes: Shapes, backbone: str, teacher_channels: int | None) -> Student:
        """Build a student with random weights from torch's generator.

        Parameters
        ----------
        method
            The method.
        shapes
            Of its input, by feature.
        backbone
            Name of the backbone, for a student that has one.
        teacher_channels
            Channels of the teacher's map, or None.

        Raises
        ------
        UserError
            The backbone is unknown, or the student cannot take such features.
        """
        ...


def pixel_student(method: Method, shapes: Shapes, backbone: str, teacher_channels: int | None) -> Student:
    """Build a convolutional network, see :class:`..students.pixels.PixelStudent`."""
    from ..students.pixels import PixelStudent, check_pixels

    return PixelStudent.of(backbone, check_pixels(shapes, method.name), teacher_channels)


@dataclass(frozen=True)
class Method:
    """One detection method.

    Attributes
    ----------
    name
        As it is chosen: small letters, digits and underscores.
    scales
        Cached features of the input and the scaling of each, in the order in which the student takes them.
    defaults
        Default settings of a training. A method of no epochs has nothing to learn by steps.
    title
        What reports and tables call it.
    student
        Builds its student.
    backbone
        Whether that has a backbone.
    target
        The cached feature that the loss compares the student's map with, or None: the teacher's map of the DIRE image.
    online
        Whether the teacher must run during training; its cached maps cannot serve.
    online_input
        The cached feature that it sees then.
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
    title: str = ""
    student: StudentFactory = pixel_student
    backbone: bool = True
    target: str | None = None
    online: bool = False
    online_input: str = "dire"
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
        """Cached features of the student's input, in the order in which it takes them."""
        return tuple(self.scales)

    @property
    def learns(self) -> bool:
        """Whether its student is trained by steps."""
        return self.defaults.epochs > 0

    def training_features(self, distillation: float, *, online: bool = False) -> tuple[str, ...]:
        """Return the cached features that training reads.

        Parameters
        ----------
        distillation
            Weight of the distillation loss; with 0, no feature is read for it.
        online
            Whether the teacher runs online, so that what it sees is read instead of its maps.
        """
        if self.target is None or distillation == 0:
            return self.inputs
        return (*self.inputs, self.online_input if online or self.online else self.target)

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
