"""The student: a backbone without its head, average pooling and one linear unit (DistilDIRE, section 3.3).

The submodules are called ``student_backbone`` and ``student_head`` as in the published checkpoints.

Weights at the start: by default PyTorch's rules, or torchvision's for ``resnet50``. A method that starts from ImageNet
takes the backbone's published weights, except for a first convolution with other than three channels, which stays
random. A backbone without such weights starts from scratch, and the run's record says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..choices import InitialWeights
from ..errors import UserError
from ..models.backbones import backbone_entry, build_backbone, start_from_imagenet
from .methods import Method

SCRATCH = "scratch"


class Student(nn.Module):
    """Detector of generated images.

    Where the teacher's map has another number of channels, ``projection`` (1x1, trained along) takes the student's map
    to it for the loss; the verdict does not pass through it.
    """

    def __init__(self, backbone: nn.Module, channels: int, teacher_channels: int | None = None) -> None:
        super().__init__()
        self.student_backbone = backbone
        self.student_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1))
        same = teacher_channels is None or teacher_channels == channels
        self.projection = nn.Identity() if same else nn.Conv2d(channels, teacher_channels or channels, kernel_size=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, channels, S, S) float32 -> logit (B,), positive for generated, and feature map (B, F, h, w)."""
        features = self.student_backbone(x)
        return self.student_head(features).squeeze(1), features


def build_student(backbone: str, in_channels: int, teacher_channels: int | None = None) -> Student:
    """Make a student with random weights from torch's generator; UserError if there is no such backbone."""
    return Student(build_backbone(backbone, in_channels), backbone_entry(backbone).channels, teacher_channels)


def initialise(student: Student, backbone: str, method: Method, asked: InitialWeights | None) -> str:
    """Give a student of ``build_student`` the weights that its method starts from, and say in words which they are.

    asked : what to start from instead of the method's choice. A method's choice that the backbone does not have means
    scratch. Raises UserError for ImageNet weights that were asked for and do not exist, or that cannot be had.
    """
    if method.head is not None:
        linear = student.student_head[2]
        assert isinstance(linear, nn.Linear)
        nn.init.normal_(linear.weight, 0.0, method.head)
    if (asked or method.initial) == SCRATCH:
        return SCRATCH
    if asked is None and backbone_entry(backbone).start is None:
        return f"{SCRATCH}: method {method.name} starts from ImageNet weights, and {backbone} has none"
    try:
        return start_from_imagenet(student.student_backbone, backbone)
    except UserError as error:
        raise UserError(
            f"method {method.name} starts from ImageNet weights of {backbone}, which cannot be had: {error} "
            "Or train without them: --initial-weights scratch"
        ) from error


def check_map(student: Student, backbone: str, in_channels: int, size: int, teacher_shape: Sequence[int]) -> None:
    """Raise UserError unless the student's map at this input size has the teacher map's height and width.

    teacher_shape : (C, h, w). Channels meet through the projection; positions must be the same, since resizing a map
    would compare averages over places, which is another loss than the paper's.
    """
    was_training = student.training
    student.eval()
    with torch.no_grad():
        found = tuple(student(torch.zeros(1, in_channels, size, size))[1].shape[-2:])
    student.train(was_training)
    if found != tuple(teacher_shape[-2:]):
        raise UserError(
            f"--backbone {backbone}: its map at {size} pixels is {found[0]}x{found[1]}, the teacher's is "
            f"{teacher_shape[-2]}x{teacher_shape[-1]}. Choose a backbone of the teacher's stride, or build `teacher` "
            "with another one."
        )
