"""A score by definition: one number of a feature, which is compared with a threshold and not learned.

The score keeps the order of its numbers, so average precision and AUC are those of the number itself. It becomes a logit
by midpoint and spread of the two classes in the training rows. Of a feature with several numbers, the one is taken that
parts the classes of the training rows best, as SeDID chooses its step; which way it parts them is the definition's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .student import Labelled, Shapes, Student


class ScoreStudent(Student):
    """One number of a feature.

    Parameters
    ----------
    shapes
        Of its input: one feature. A feature with positions has one number, its mean.
    sign
        1 if large numbers mean generated, -1 if small ones do.
    """

    weight: Tensor

    def __init__(self, shapes: Shapes, sign: float) -> None:
        super().__init__()
        ((_, shape),) = shapes.items()
        self._whole = len(shape) == 3
        self._sign = sign
        numbers = 1 if self._whole else shape[0]
        self.register_buffer("weight", torch.full((numbers,), 1.0 / numbers))
        self.midpoint = nn.Parameter(
            torch.zeros(())
        )  # parameters, though no step changes them: an optimiser needs some
        self.spread = nn.Parameter(torch.ones(()))

    def forward(self, x: Mapping[str, Tensor]) -> tuple[Tensor, None]:
        """See :class:`.student.Student`."""
        number = (self._numbers(x) * self.weight).sum(dim=1)  # no matrix product, which may round
        return self._sign * (number - self.midpoint) / self.spread, None

    def prepare(self, rows: Callable[[], Labelled]) -> None:
        """See :class:`.student.Student`: choose the number, and set midpoint and spread."""
        sums = torch.zeros(2, 3, len(self.weight), dtype=torch.float64)  # by class: count, sum, sum of squares
        for x, label in rows():
            numbers = self._numbers(x).double().cpu()
            for of_class in (0, 1):
                own = numbers[label.cpu() == of_class]
                sums[of_class] += torch.stack([torch.ones_like(own).sum(0), own.sum(0), own.square().sum(0)])
        mean = sums[:, 1] / sums[:, 0].clamp(min=1)
        variance = (sums[:, 2] / sums[:, 0].clamp(min=1) - mean.square()).clamp(min=0)
        deviation = variance.mean(dim=0).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
        best = int((self._sign * (mean[1] - mean[0]) / deviation).argmax())
        with torch.no_grad():
            self.weight.zero_()[best] = 1.0
            self.midpoint.copy_(mean[:, best].mean())
            self.spread.copy_(deviation[best])

    def _numbers(self, x: Mapping[str, Tensor]) -> Tensor:
        """Return the numbers of each sample, (B, numbers)."""
        (values,) = x.values()
        return values.flatten(1).mean(dim=1, keepdim=True) if self._whole else values
