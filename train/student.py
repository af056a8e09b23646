"""The student: a backbone without its head, average pooling and one linear unit (DistilDIRE, section 3.3).

The submodules are called ``student_backbone`` and ``student_head`` as in the published checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models.backbones import backbone_entry, build_backbone


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


def check_map(student: Student, backbone: str, in_channels: int, size: int, teacher_shape: Sequence[int]) -> None:
    """Raise UserError unless the student's map at this input size has the teacher map's height and width.

    teacher_shape : (C, h, w).
    """
    was_training = student.training
    student.eval()
    with torch.no_grad():
        found = tuple(student(torch.zeros(1, in_channels, size, size))[1].shape[-2:])
    student.train(was_training)
    if found != tuple(teacher_shape[-2:]):
        raise UserError(
            f"--backbone {backbone}: its map at {size} pixels is {found[0]}x{found[1]}, the cached teacher's is "
            f"{teacher_shape[-2]}x{teacher_shape[-1]}. Choose a backbone of the teacher's stride, or build `teacher` "
            "with another one."
        )
