"""DistilDIRE's loss (arXiv 2406.00856, eq. 5 to 7): binary cross-entropy + lambda x distance of feature maps."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Losses(NamedTuple):
    """Scalars of one batch: ``total`` = ``bce`` + lambda x ``kd``; ``kd`` is 0 without a teacher."""

    total: Tensor
    bce: Tensor
    kd: Tensor


def losses(
    logit: Tensor, label: Tensor, student: Tensor | None, teacher: Tensor | None, weight: float, pos_weight: float = 1.0
) -> Losses:
    """Compute the loss of one batch, in float32.

    The distance is the mean square over batch, channels and positions.

    Parameters
    ----------
    logit : Tensor, shape (B,)
        The student's logits.
    label : Tensor, shape (B,)
        1 for generated; between 0 and 1 for mixed images.
    student, teacher : Tensor, shape (B, C, h, w)
        Last feature maps, before pooling and after the activation, not normalised; None without a teacher.
    weight
        Lambda.
    pos_weight
        Weight of generated images in the cross-entropy.
    """
    factor = None if pos_weight == 1.0 else logit.new_full((), pos_weight).float()
    bce = F.binary_cross_entropy_with_logits(logit.float(), label.float(), pos_weight=factor)
    if teacher is None or student is None:
        return Losses(bce, bce, bce.new_zeros(()))
    kd = F.mse_loss(student.float(), teacher.float())
    return Losses(bce + weight * kd, bce, kd)
