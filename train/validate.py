"""How good a student is on the validation part, and which of its epochs is the best."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .checkpoint import Line
from .metrics import accuracy, average_precision
from .predict import predict, probability
from .session import Session


def validate(session: Session) -> Line:
    """BCE, AP and accuracy of the validation part under the paper's test transform; None without such a part.

    Several processes divide the rows among them and all get the same values.
    """
    if session.val is None:
        return {"val_bce": None, "val_ap": None, "val_acc": None}
    logits = predict(
        session.student,
        session.val,
        session.method,
        size=session.size,
        transform="crop",
        batch_size=session.config.batch_size,
        device=session.ranks.device,
        loading=session.loading,
        joined=session.ranks.joined,
    )
    labels = session.val.label
    bce = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(labels).float()).item()
    if not math.isfinite(bce):
        return {"val_bce": bce, "val_ap": None, "val_acc": None}
    scores = probability(logits)
    return {"val_bce": bce, "val_ap": average_precision(labels, scores), "val_acc": accuracy(labels, scores)}


def rank(line: Line) -> tuple[float, float]:
    """What the best epoch is chosen by: validation AP, then low BCE; the last epoch where there is no validation."""
    if line["val_bce"] is None:
        return float(line["epoch"] or 0), 0.0
    return -1.0 if line["val_ap"] is None else line["val_ap"], -line["val_bce"]
