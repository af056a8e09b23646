"""Bounds where a bootstrap fails: near 0 and 1, where resamples of images that are all right are all right too.

Accuracies get Wilson's interval. A detector that separates all images gets the rule of three: if none of n independent
units shows something, it happens in less than about 3.7/n of them (97.5 %).
"""

from __future__ import annotations

import math

from .calibration import share_interval
from .measures import Interval

FEW = 10
"""With fewer errors, or fewer hits, than this a share has Wilson's interval instead of the bootstrap's."""
NO_INTERVAL = frozenset({"calibration_error"})
"""Measures whose resamples do not scatter around the value: each resample adds its own noise to every bin."""

_RULE = -math.log(0.025)
_OF_ALL = ("accuracy", "calibrated_accuracy")
_RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_5": 0.05}


def interval_near_the_ends(
    measure: str,
    value: float,
    drawn: Interval | None,
    real: int,
    fake: int,
    units: int,
    images_per_unit: float = 1.0,
) -> Interval | None:
    """Return the 95 % interval of a measure: the bootstrap's, or one that holds where the bootstrap's does not.

    Parameters
    ----------
    measure : str
        Its name.
    value : float
    drawn : Interval or None
        The bootstrap's interval.
    real, fake, units : int
        Independent units (images, or clusters of images) of each class, and of both together.
    images_per_unit : float
    """
    if measure in NO_INTERVAL or drawn is None or not units:
        return None
    if measure in _RATES and real * _RATES[measure] < 1:
        return None  # one real image is more than the rate, so the threshold that keeps it is not measured
    number = {"fake_accuracy": fake, **dict.fromkeys(_OF_ALL, units), "real_accuracy": real}.get(measure)
    if number is not None:
        few = min(value, 1 - value) * number * images_per_unit < FEW
        return share_interval(value * number, number) if few else drawn
    if drawn.high > drawn.low or not real or not fake:
        return drawn
    if measure in _RATES:
        return share_interval(value * fake, fake)
    missed = min(1.0, _RULE / min(real, fake))
    if measure in ("equal_error_rate", "brier", "auc") and value == 0.0:
        return Interval(0.0, missed)
    if measure == "auc" and value == 1.0:
        return Interval(1.0 - missed, 1.0)
    if measure in ("average_precision", "balanced_average_precision") and value == 1.0:
        return Interval(_precision_below(min(1.0, _RULE / real) * real, fake), 1.0)
    return drawn


def _precision_below(reals: float, fakes: int) -> float:
    """Return the average precision of ``fakes`` ranked below this many reals."""
    return sum(rank / (rank + reals) for rank in range(1, fakes + 1)) / fakes
