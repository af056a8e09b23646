"""Validation of a student, the choice of the best epoch, and the validation scores to keep."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from ...choices import TestTransform
from ...metrics.calibration import calibrate
from ...metrics.measures import accuracy, average_precision
from ...models.weights import file_digest
from ..evaluation.score import Logits, predict, probability
from ..runs.checkpoint import BEST, EpochMetrics, replace_file, replace_text
from ..runs.folder import RunFolder
from .session import Session

TRANSFORM: TestTransform = "crop"
KEPT = ("key", "label", "generator", "family", "group")


def validate(session: Session) -> tuple[EpochMetrics, Logits | None]:
    """Measure BCE, AP and accuracy of the validation rows under the papers' test transform.

    Several processes share the rows; all return the same values.

    Returns
    -------
    tuple
        The values, None without validation rows, and the logits of the rows, (rows,) float32, or None.
    """
    if session.val is None:
        return {"val_bce": None, "val_ap": None, "val_acc": None}, None
    logits = predict(
        session.student,
        session.val,
        session.method,
        size=session.size,
        transform=TRANSFORM,
        batch_size=session.config.batch_size,
        device=session.ranks.device,
        loading=session.loading,
        joined=session.ranks.joined,
    )
    labels = session.val.label
    bce = F.binary_cross_entropy_with_logits(torch.from_numpy(logits), torch.from_numpy(labels).float()).item()
    if not math.isfinite(bce):
        return {"val_bce": bce, "val_ap": None, "val_acc": None}, None
    scores = probability(logits)
    line: EpochMetrics = {
        "val_bce": bce,
        "val_ap": average_precision(labels, scores),
        "val_acc": accuracy(labels, scores),
    }
    return line, logits


def rank(line: EpochMetrics) -> tuple[float, float]:
    """Return what the best epoch is chosen by: validation AP, then low BCE; the last epoch without validation rows."""
    if line["val_bce"] is None:
        return float(line["epoch"] or 0), 0.0
    return -1.0 if line["val_ap"] is None else line["val_ap"], -line["val_bce"]


def keep_scores(session: Session, folder: RunFolder, logits: Logits) -> None:
    """Save the validation scores of the new best student, and the threshold chosen on them.

    If the process is killed between student and scores, ``--resume`` repairs this by repeating the epoch.
    """
    if session.val is None:
        return
    scores = probability(logits)
    table = session.val.table.select(KEPT).append_column("score", pa.array(scores))
    replace_file(folder.validation, lambda target: pq.write_table(table, target, compression="zstd"))
    calibration = calibrate(
        session.val.label,
        scores,
        split="val",
        transform=TRANSFORM,
        checkpoint_sha256=file_digest(folder.checkpoints / BEST),
    )
    if calibration is not None:
        replace_text(folder.calibration_file, calibration.model_dump_json(indent=2) + "\n")
