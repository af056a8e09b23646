"""The student of pixels: a backbone without its head, average pooling and one linear unit (DistilDIRE, section 3.3).

The submodules are called ``student_backbone`` and ``student_head`` as in the published checkpoints.

Initial weights are random by default, by PyTorch's rules or torchvision's for ``resnet50``. A method that starts from
ImageNet takes the backbone's published weights, except for a first convolution with other than three channels, which
stays random. A backbone without such weights starts from scratch, and the run's record says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor, nn

from ...choices import InitialWeights
from ...errors import UserError
from ...models.backbones import backbone_entry, build_backbone, start_from_imagenet
from ...models.layout import memory_layout
from .student import SCRATCH, Shapes, Start, Student


class PixelStudent(Student):
    """A convolutional network that sees its features as channels of one image.

    If the teacher's map has another number of channels, ``projection`` (1x1, trained as well) maps the student's
    features to it for the loss; the logit does not depend on it.

    Parameters
    ----------
    backbone
        The network up to its last feature map.
    channels
        Channels of that map.
    teacher_channels
        Channels of the teacher's map, or None.
    """

    def __init__(self, backbone: nn.Module, channels: int, teacher_channels: int | None = None) -> None:
        super().__init__()
        self.student_backbone = backbone
        self.student_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))
        same = teacher_channels is None or teacher_channels == channels
        self.projection = nn.Identity() if same else nn.Conv2d(channels, teacher_channels or channels, kernel_size=1)

    @classmethod
    def of(cls, backbone: str, in_channels: int, teacher_channels: int | None = None) -> Self:
        """Build a student with random weights from torch's generator. Raises UserError for an unknown backbone."""
        return cls(build_backbone(backbone, in_channels), backbone_entry(backbone).channels, teacher_channels)

    def forward(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """See :class:`.student.Student`: features (B, C, S, S), joined along their channels in the mapping's order."""
        joined = torch.cat(list(x.values()), dim=1)
        features = self.student_backbone(joined.contiguous(memory_format=memory_layout(joined.device)))
        return self.student_head(features).squeeze(1), features

    def projected(self, features: Tensor | None) -> Tensor | None:
        """See :class:`.student.Student`."""
        projected: Tensor = self.projection(features)
        return projected

    @property
    def head(self) -> nn.Linear:
        """See :class:`.student.Student`."""
        linear = self.student_head[2]
        assert isinstance(linear, nn.Linear)
        return linear

    def initialise(self, backbone: str, method: Start, requested: InitialWeights | None) -> str:
        """See :class:`.student.Student`. A backbone that lacks the weights of the method's choice starts from scratch."""
        self.draw_head(method)
        if (requested or method.initial) == SCRATCH:
            return SCRATCH
        if requested is None and backbone_entry(backbone).start is None:
            return f"{SCRATCH}: method {method.name} starts from ImageNet weights, and {backbone} has none"
        try:
            return start_from_imagenet(self.student_backbone, backbone)
        except UserError as error:
            raise UserError(
                f"method {method.name} starts from ImageNet weights of {backbone}, which cannot be obtained: {error} "
                "Or train without them: --initial-weights scratch"
            ) from error


def check_pixels(shapes: Shapes, method: str) -> int:
    """Return the channels of all features together. Raises UserError if one does not lie over the others."""
    sides = {shape[1:] for shape in shapes.values()}
    if len(sides) != 1 or any(len(shape) != 3 for shape in shapes.values()):
        listed = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
        raise UserError(
            f"method {method}: its student takes images of one side, and the features are {listed}. A linear student "
            "takes any."
        )
    return sum(shape[0] for shape in shapes.values())


def check_map(student: Student, backbone: str, shapes: Shapes, teacher_shape: Sequence[int]) -> None:
    """Raise UserError unless student and teacher have maps of the same height and width.

    Different channels are bridged by the projection. Different positions are not: resizing a map would compare averages
    over positions, which is another loss than the paper's.

    Parameters
    ----------
    student, backbone
        The student and the name of its backbone.
    shapes
        Of the student's input.
    teacher_shape
        Shape of the teacher's map, (C, h, w).
    """
    was_training = student.training
    student.eval()
    with torch.no_grad():
        features = student({name: torch.zeros(1, *shape) for name, shape in shapes.items()})[1]
    student.train(was_training)
    shape = tuple(features.shape[-2:])
    size = next(iter(shapes.values()))[-1]
    if shape != tuple(teacher_shape[-2:]):
        raise UserError(
            f"--backbone {backbone}: its map at {size} pixels is {shape[0]}x{shape[1]}, the teacher's is "
            f"{teacher_shape[-2]}x{teacher_shape[-1]}. Choose a backbone with the teacher's stride, or build `teacher` "
            "with another backbone."
        )
