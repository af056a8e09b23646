"""The score above which an image counts as generated, and where that number comes from."""

from __future__ import annotations

from typing import Literal, NamedTuple

from ..metrics.calibration import Calibration

DEFAULT = 0.5


class Threshold(NamedTuple):
    """value : 0 to 1. origin : who chose it. words : the same for a person. transform : under which validation chose it."""

    value: float
    origin: Literal["given", "validation", "default"]
    words: str
    transform: str | None = None


def threshold_of(given: float | None, calibration: Calibration | None) -> Threshold:
    """What was asked for, else what validation chose, else 0.5."""
    if given is not None:
        return Threshold(given, "given", f"threshold {given:g}, as asked for")
    if calibration is None:
        return Threshold(DEFAULT, "default", f"threshold {DEFAULT}: the run has no calibrated one")
    value = calibration.threshold
    words = f"threshold {value:.4g}, chosen on {calibration.real + calibration.fake:,} images of {calibration.split}"
    return Threshold(value, "validation", words, calibration.transform)
