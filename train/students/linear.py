"""A linear probe: one linear unit on features that are flattened or, where they have positions, averaged over them.

UniversalFakeDetect (Ojha et al. 2023; WisconsinAIVision/UniversalFakeDetect) trains such a unit on the pooled features of
a frozen backbone. It is logistic regression, trained by steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...errors import UserError
from .student import Labelled, Shapes, Student

MOST_VALUES = 2**24
"""Most values that a unit may weigh; a run that strangers made may ask for any number."""


class LinearStudent(Student):
    """One linear unit.

    Parameters
    ----------
    shapes
        Of its input, by feature.
    flat
        Weigh every position by itself, in place of the average over positions.
    standard
        Features that are standardised by mean and deviation of the training rows, each value or channel by its own.
    """

    def __init__(self, shapes: Shapes, *, flat: bool = False, standard: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self._flat = flat
        self._standard = tuple(name for name in shapes if name in standard)
        widths = {
            name: shape[0] if len(shape) == 3 and not flat else math.prod(shape) for name, shape in shapes.items()
        }
        if sum(widths.values()) > MOST_VALUES:
            raise UserError(
                f"a linear student of {sum(widths.values()):,} values is too large: average over positions."
            )
        for name in self._standard:
            self.register_buffer(f"mean_{name}", torch.zeros(widths[name]))
            self.register_buffer(f"deviation_{name}", torch.ones(widths[name]))
        self.fc = nn.Linear(sum(widths.values()), 1)

    def forward(self, x: Mapping[str, Tensor]) -> tuple[Tensor, None]:
        """See :class:`.student.Student`."""
        parts = self._vectors(x)
        for name in self._standard:
            mean, deviation = self.get_buffer(f"mean_{name}"), self.get_buffer(f"deviation_{name}")
            parts[name] = (parts[name] - mean) / deviation
        return self.fc(torch.cat(list(parts.values()), dim=1)).squeeze(1), None

    @property
    def head(self) -> nn.Linear:
        """See :class:`.student.Student`."""
        return self.fc

    def prepare(self, rows: Callable[[], Labelled]) -> None:
        """See :class:`.student.Student`: mean and deviation of what is standardised; 1 for what never varies."""
        if not self._standard:
            return
        sums = {
            name: torch.zeros(2, len(self.get_buffer(f"mean_{name}")), dtype=torch.float64) for name in self._standard
        }
        count = 0
        for x, label in rows():
            for name, values in self._vectors(x).items():
                if name in sums:
                    wide = values.double().cpu()
                    sums[name] += torch.stack([wide.sum(dim=0), wide.square().sum(dim=0)])
            count += len(label)
        for name, (total, squares) in sums.items():
            mean = total / count
            deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
            self.get_buffer(f"mean_{name}").copy_(mean)
            self.get_buffer(f"deviation_{name}").copy_(deviation.where(deviation > 0, 1.0))

    def _vectors(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each feature as (B, values)."""
        pooled = not self._flat
        return {name: v.mean(dim=(2, 3)) if pooled and v.ndim == 4 else v.flatten(1) for name, v in x.items()}
