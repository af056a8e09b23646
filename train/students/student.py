"""What all students have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from torch import Tensor, nn

from ...cache.records.about import OVER_IMAGE, Layout
from ...choices import InitialWeights
from ...errors import UserError

SCRATCH = "scratch"
Shapes = Mapping[str, tuple[int, ...]]
"""Feature -> shape of a student's input of one sample."""
Labelled = Iterable[tuple[Mapping[str, Tensor], Tensor]]
"""Batches of a training: inputs by feature, as for ``Student.forward``, and labels (B,), 1 for generated."""


class Start(Protocol):
    """What a method says of the initial weights of its student; see :class:`..methods.method.Method`."""

    @property
    def name(self) -> str:
        """Name of the method."""
        ...

    @property
    def initial(self) -> InitialWeights:
        """What the backbone starts from."""
        ...

    @property
    def head(self) -> float | None:
        """Standard deviation of the head's weights; None for PyTorch's rule."""
        ...


class Student(nn.Module):
    """Detector of generated images."""

    def forward(self, x: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Map scaled features to logits and, of a student that can be taught by maps, its own map.

        Parameters
        ----------
        x
            Feature -> (B, *shape) float32.

        Returns
        -------
        tuple
            Logit (B,), positive for generated, and feature map (B, F, h, w) or None.
        """
        raise NotImplementedError

    def projected(self, features: Tensor | None) -> Tensor | None:
        """Return a map of `forward` as the distillation loss compares it with the teacher's."""
        return features

    @property
    def head(self) -> nn.Linear | None:
        """The last layer, if it is drawn anew for each training."""
        return None

    def prepare(self, rows: Callable[[], Labelled]) -> None:
        """Take from the training rows, which ``rows`` reads once a call, what is not learned by steps."""

    def initialise(self, backbone: str, method: Start, requested: InitialWeights | None) -> str:
        """Give a student with random weights its initial ones, and return a description of them.

        Parameters
        ----------
        backbone
            Name of its backbone, if it has one.
        method
            The method, which decides by default.
        requested
            What to start from instead.

        Raises
        ------
        UserError
            Requested ImageNet weights do not exist, or weights cannot be obtained.
        """
        if requested not in (None, SCRATCH):
            raise UserError(f"--initial-weights {requested}: the student of method {method.name} has no backbone.")
        self.draw_head(method)
        return SCRATCH

    def draw_head(self, method: Start) -> None:
        """Draw the weights of the head from the normal distribution of the method, if it has one."""
        if method.head is not None and self.head is not None:
            nn.init.normal_(self.head.weight, 0.0, method.head)


def input_shapes(inputs: Iterable[str], layouts: Mapping[str, Layout], size: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of a student's input of one sample, by feature.

    Parameters
    ----------
    inputs
        Features that it takes.
    layouts
        What their stored rows are. A feature without one has three channels over the image.
    size
        Side of what lies over the image, in pixels.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name in inputs:
        layout = layouts.get(name)
        if layout is None:
            shapes[name] = (3, size, size)
        elif layout.geometry in OVER_IMAGE:
            shapes[name] = (layout.shape[0], size, size)
        else:
            shapes[name] = layout.shape[1:] if layout.views else layout.shape
    return shapes
