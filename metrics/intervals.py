"""95 % intervals of measures and of their differences, from resamples, that hold near 0 and 1 and with few units.

The middle 95 % of resamples are too narrow where few images decide: of images that are all right, every resample is all
right. So resamples give only a standard error, and how few units it rests on:

* A share (an accuracy; the equal error rate) has Wilson's interval (Wilson 1927) for as many images as would give that standard error
  (Korn and Graubard 1998).
* AP, AUC and the other measures have a t interval on the logit scale (Boyd, Eng and Page 2013; Pepe 2003). Its degrees of
  freedom are fewer where few images carry the standard error, which is then not well known itself (`influence`).
* A value that no resample changes, such as that of a detector without errors, has Wilson's interval over its units.
* The share of fakes found at a rate of false positives has the middle of the resamples, expanded for few units (Hesterberg
  2015), from as many real images on as show where the threshold is. With fewer, it is only bounded from above.
* A difference is drawn from the two t distributions on the logit scale, with the correlation of the resamples.

``benchmarks/coverage.py`` measures how often they hold the truth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit, ndtr, stdtrit

from .bootstrap import interval
from .calibration import share_interval
from .measures import FloatArray, Interval

NO_INTERVAL = frozenset({"calibration_error"})
"""Measures whose resamples do not scatter around the value: each resample adds its own noise to every bin."""

_SHARES = frozenset({"accuracy", "calibrated_accuracy", "real_accuracy", "fake_accuracy", "equal_error_rate"})
RATES = {"tpr_at_fpr_1": 0.01, "tpr_at_fpr_5": 0.05}
_TAIL = 0.025
_DRAWS = 4000


class Basis(NamedTuple):
    """What a value rests on.

    Attributes
    ----------
    units : int
        Independent units: images, or clusters of images.
    reals : int
        Real images of the test set, which show where the threshold of a false positive rate is.
    freedom : float
        Degrees of freedom of its standard error, from `influence.degrees_of_freedom`.
    """

    units: int
    reals: int
    freedom: float


def least(bases: Iterable[Basis]) -> Basis:
    """Return what a mean of values, or their difference, rests on at least."""
    return Basis(*map(min, zip(*bases, strict=True)))


def interval_of(measure: str, value: float, replicates: FloatArray, basis: Basis) -> Interval | None:
    """Return the 95 % interval of a measure, or of its mean over test sets.

    Parameters
    ----------
    measure : str
        One of ``measures.MEASURES``.
    value : float
        In 0..1.
    replicates : ndarray, shape (replicates,)
        The value in every resample; NaN where it is not defined.
    basis : Basis

    Returns
    -------
    Interval or None
        None for a single unit, and for a measure that has no interval that is known to hold.
    """
    kept, units = replicates[~np.isnan(replicates)], basis.units
    if measure in NO_INTERVAL or units < 2 or len(kept) < 2:
        return None
    if measure in RATES:
        return _interval_of_rate(value, kept, units, _is_blind(measure, basis.reals))
    error = _standard_error(kept, units)
    if error == 0 or not 0 < value < 1:
        return share_interval(value * units, units, _quantile(units - 2))
    if measure in _SHARES:
        images = value * (1 - value) / error**2
        return share_interval(value * images, images, _quantile(units - 2))
    centre, reach = logit(value), _quantile(basis.freedom) * error / (value * (1 - value))
    return Interval(float(expit(centre - reach)), float(expit(centre + reach)))


def interval_of_difference(
    measure: str,
    first: tuple[float, FloatArray],
    second: tuple[float, FloatArray],
    basis: Basis,
) -> Interval | None:
    """Return the 95 % interval of the second value minus the first, for values over the same images.

    Parameters
    ----------
    measure : str
    first, second : tuple of float and ndarray, shape (replicates,)
        Value of each side, and its value in every resample; both are resampled alike.
    basis : Basis
        The least of both.

    Returns
    -------
    Interval or None
        None where `interval_of` has none, and where there are too few reals to say where the threshold is.
    """
    both = ~(np.isnan(first[1]) | np.isnan(second[1]))
    before, after = first[1][both], second[1][both]
    units = basis.units
    if measure in NO_INTERVAL or units < 2 or len(before) < 2 or _is_blind(measure, basis.reals):
        return None
    change = second[0] - first[0]
    if np.ptp(after - before) < 1e-12:  # the sides agree on all images, which those of another draw need not
        reach = share_interval(0, units, _quantile(units - 2)).high
        return Interval(max(-1.0, change - reach), min(1.0, change + reach))
    sides = (first[0], before), (second[0], after)
    drawn = (
        interval(after - before, _expanded_level(units))
        if measure in RATES
        else interval(_drawn_differences(*sides, basis))
    )
    assert drawn is not None  # there are replicates
    return Interval(min(drawn.low, change), max(drawn.high, change))


def _drawn_differences(first: tuple[float, FloatArray], second: tuple[float, FloatArray], basis: Basis) -> FloatArray:
    """Draw differences of two values whose logits have t distributions that are correlated as their resamples are."""
    (centre, scale), (other_centre, other_scale) = (
        _on_logit_scale(value, replicates, basis.units) for value, replicates in (first, second)
    )
    flat = np.ptp(first[1]) == 0 or np.ptp(second[1]) == 0
    correlation = 0.0 if flat else float(np.clip(np.corrcoef(first[1], second[1])[0, 1], -1, 1))
    rng = np.random.default_rng(0)
    common, own = rng.standard_normal((2, _DRAWS)) / np.sqrt(rng.chisquare(basis.freedom, _DRAWS) / basis.freedom)
    other = correlation * common + math.sqrt(1 - correlation**2) * own
    return np.asarray(expit(other_centre + other_scale * other) - expit(centre + scale * common))


def _on_logit_scale(value: float, replicates: FloatArray, units: int) -> tuple[float, float]:
    """Return the logit of a value and its standard error; those of Wilson's interval where no resample differs."""
    error = _standard_error(replicates, units)
    if error > 0 and 0 < value < 1:
        return float(logit(value)), error / (value * (1 - value))
    z = _quantile(units - 2)
    within = share_interval(value * units, units, z)
    centre = float(logit((value + z * z / (2 * units)) / (1 + z * z / units)))
    inner = within.low if value > 0.5 else within.high
    return centre, abs(float(logit(inner)) - centre) / z


def _interval_of_rate(value: float, replicates: FloatArray, units: int, blind: bool) -> Interval:
    """Return the middle of the resamples; what lies below their upper 5 % if no lower bound is known."""
    if blind:
        found = Interval(0.0, max(value, float(np.quantile(replicates, 1 - 2 * _TAIL))))
    else:
        found = interval(replicates, _expanded_level(units)) or Interval(value, value)
    if found.low < found.high:
        return found
    within = share_interval(value * units, units, _quantile(units - 1))
    return Interval(0.0 if blind else within.low, within.high)


def _expanded_level(units: int) -> float:
    """Return the share of the resamples of so many units whose middle is as wide as Student's t makes it."""
    return 1 - 2 * float(ndtr(-_quantile(units - 1) * math.sqrt(units / (units - 1))))


def fewest_reals(rate: float) -> int:
    """Return from how many real images on at least one lies above the threshold of a false positive rate, with 97.5 %."""
    return math.ceil(math.log(_TAIL) / math.log1p(-rate))


def _is_blind(measure: str, reals: int) -> bool:
    """Return whether all reals may well lie below the threshold of a rate, so that it may be anywhere above them."""
    return measure in RATES and reals < fewest_reals(RATES[measure])


def _standard_error(replicates: FloatArray, units: int) -> float:
    """Return the standard deviation of resamples of so many units, free of bias; 0 if they do not differ."""
    error = float(np.std(replicates)) * math.sqrt(units / (units - 1))
    return error if error > 1e-12 else 0.0


def _quantile(freedom: float) -> float:
    """Return the quantile of Student's t that 2.5 % exceed."""
    return float(stdtrit(max(1.0, freedom), 1 - _TAIL))
