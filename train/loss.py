"""DistilDIRE's loss (arXiv 2406.00856, eq. 5 to 7): binary cross-entropy + lambda x distance of feature maps."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class Losses(NamedTuple):
    """Scalars of one batch: ``total`` = ``bce`` + lambda x ``kd``; ``kd`` is 0 where no teacher takes part."""

    total: Tensor
    bce: Tensor
    kd: Tensor


def losses(
    logit: Tensor, label: Tensor, student: Tensor, teacher: Tensor | None, weight: float, pos_weight: float = 1.0
) -> Losses:
    """Loss of one batch, in float32.

    logit, label : (B,), label 1 for generated, between 0 and 1 where pictures were mixed. student, teacher :
    (B, C, h, w), last feature maps before pooling and after the activation, not normalised. The distance is the mean
    square over batch, channels and positions. pos_weight : factor of the generated pictures' part of the cross-entropy.
    """
    factor = None if pos_weight == 1.0 else logit.new_tensor(pos_weight).float()
    bce = F.binary_cross_entropy_with_logits(logit.float(), label.float(), pos_weight=factor)
    if teacher is None:
        return Losses(bce, bce, bce.new_zeros(()))
    kd = F.mse_loss(student.float(), teacher.float())
    return Losses(bce + weight * kd, bce, kd)
