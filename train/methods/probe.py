"""UniversalFakeDetect (Ojha et al. 2023): one linear unit on the pooled features of a frozen backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .method import Method, MethodDefaults

if TYPE_CHECKING:
    from ..students.student import Shapes, Student


def linear_student(method: Method, shapes: Shapes, backbone: str, teacher_channels: int | None) -> Student:
    """Build a linear unit on vectors and on averages over positions."""
    from ..students.linear import LinearStudent

    return LinearStudent(shapes, standard=standard_features(method))


def flat_linear_student(method: Method, shapes: Shapes, backbone: str, teacher_channels: int | None) -> Student:
    """Build a linear unit on every value."""
    from ..students.linear import LinearStudent

    return LinearStudent(shapes, flat=True, standard=standard_features(method))


def standard_features(method: Method) -> frozenset[str]:
    """Return the features that a method standardises."""
    return frozenset(name for name, scale in method.scales.items() if scale == "standard")


PROBE = Method(
    "probe",
    title="Linear probe of a frozen backbone",
    scales={"embedding": "stored"},
    student=linear_student,
    backbone=False,
    whole=True,
    head=0.02,
    defaults=MethodDefaults(epochs=20, batch_size=64, lr=1e-3),
)
