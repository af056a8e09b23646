"""The student: a backbone without its head, average pooling and one linear unit (DistilDIRE, section 3.3).

The submodules are called ``student_backbone`` and ``student_head`` as in the published checkpoints.

Initial weights are random by default, by PyTorch's rules or torchvision's for ``resnet50``. A method that starts from
ImageNet takes the backbone's published weights, except for a first convolution with other than three channels, which
stays random. A backbone without such weights starts from scratch, and the run's record says so.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..choices import InitialWeights
from ..errors import UserError
from ..models.backbones import backbone_entry, build_backbone, start_from_imagenet
from .methods.method import Method

SCRATCH = "scratch"


class Student(nn.Module):
    """Detector of generated images.

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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map images to logits and features.

        Parameters
        ----------
        x : Tensor, shape (B, channels, S, S)
            float32.

        Returns
        -------
        tuple
            Logit (B,), positive for generated, and feature map (B, F, h, w).
        """
        features = self.student_backbone(x)
        return self.student_head(features).squeeze(1), features


def build_student(backbone: str, in_channels: int, teacher_channels: int | None = None) -> Student:
    """Build a student with random weights from torch's generator. Raises UserError for an unknown backbone."""
    return Student(build_backbone(backbone, in_channels), backbone_entry(backbone).channels, teacher_channels)


def initialise(student: Student, backbone: str, method: Method, requested: InitialWeights | None) -> str:
    """Give a student of `build_student` its initial weights, and return a description of them.

    Parameters
    ----------
    student
        The student.
    backbone
        Name of its backbone.
    method
        The method, which decides by default. If the backbone lacks the weights of the method's choice, it starts from
        scratch.
    requested
        What to start from instead.

    Raises
    ------
    UserError
        Requested ImageNet weights do not exist, or weights cannot be obtained.
    """
    if method.head is not None:
        linear = student.student_head[2]
        assert isinstance(linear, nn.Linear)
        nn.init.normal_(linear.weight, 0.0, method.head)
    if (requested or method.initial) == SCRATCH:
        return SCRATCH
    if requested is None and backbone_entry(backbone).start is None:
        return f"{SCRATCH}: method {method.name} starts from ImageNet weights, and {backbone} has none"
    try:
        return start_from_imagenet(student.student_backbone, backbone)
    except UserError as error:
        raise UserError(
            f"method {method.name} starts from ImageNet weights of {backbone}, which cannot be obtained: {error} "
            "Or train without them: --initial-weights scratch"
        ) from error


def check_map(student: Student, backbone: str, in_channels: int, size: int, teacher_shape: Sequence[int]) -> None:
    """Raise UserError unless student and teacher have maps of the same height and width.

    Different channels are bridged by the projection. Different positions are not: resizing a map would compare averages
    over positions, which is another loss than the paper's.

    Parameters
    ----------
    student, backbone
        The student and the name of its backbone.
    in_channels, size
        Channels and side in pixels of the student's input.
    teacher_shape
        Shape of the teacher's map, (C, h, w).
    """
    was_training = student.training
    student.eval()
    with torch.no_grad():
        shape = tuple(student(torch.zeros(1, in_channels, size, size))[1].shape[-2:])
    student.train(was_training)
    if shape != tuple(teacher_shape[-2:]):
        raise UserError(
            f"--backbone {backbone}: its map at {size} pixels is {shape[0]}x{shape[1]}, the teacher's is "
            f"{teacher_shape[-2]}x{teacher_shape[-1]}. Choose a backbone with the teacher's stride, or build `teacher` "
            "with another backbone."
        )
