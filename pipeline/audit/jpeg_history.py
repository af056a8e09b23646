"""Whether pixels were once a JPEG, and of what quality.

Quantisation leaves the DCT coefficients of the 8x8 blocks at multiples of its steps, and saving the pixels in another
format keeps them there (Fan and de Queiroz 2003). For each standard quality, and then for tables of any make, it is asked
whether the coefficients' phases within a step agree, as for any periodic signal (a Rayleigh test). Coefficients that
round to 0 say nothing: every smooth picture has them.

A crop or a resize moves the coefficients off their steps, and nothing is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...images.jpeg import nearest_quality, standard_table

Floats = NDArray[np.float64]

# Above 98, almost all steps are 1, which every rounded picture fits.
_STANDARD = {quality: np.array(standard_table(quality), dtype=np.float64) for quality in range(5, 99)}
_MOST_BLOCKS = 1024
_LARGEST_STEP = 60
_FEWEST = 8  # coefficients that a step is judged by
_CLEAR = 6.0  # standard deviations of the mean phase that chance does not reach
_LEAST_AGREEMENT = 0.25  # mean cosine: rounding alone leaves 0.66 at a step of 2; a picture that was no JPEG has 0.05
_LEAST_OF_JPEG = 0.5  # the same where the coefficients have steps of their own, which agree with others by arithmetic
_FREQUENCIES_NEEDED = 3
_FACTOR = 2  # an earlier step is told from a JPEG's own if it is this much larger

_PLACES = np.arange(8)
_DCT = (
    np.cos((2 * _PLACES[None] + 1) * _PLACES[:, None] * np.pi / 16) * np.where(_PLACES == 0, 0.125**0.5, 0.5)[:, None]
)
_LOW_FREQUENCIES = [8 * i + j for i in range(6) for j in range(6) if 1 <= i + j <= 5]


class StepSearch(NamedTuple):
    """What counts as a step.

    least : smallest step of each of the 64 coefficients. margin : grey levels beyond half a step from which on a
    magnitude counts; above 0, it would take away those that speak against a step. agreement : least mean cosine.
    """

    least: Floats
    margin: float
    agreement: float


def earlier_quality(grey: Floats, own: Sequence[int] | None = None) -> int | None:
    """Return the quality (1..100) of a JPEG compression that pixels still show, or None.

    grey : (H, W) luminance in 0..255, sides multiples of 8, beginning on the grid of blocks.
    own : luminance steps of the file itself if it is a JPEG: only steps twice as large are told from it.
    """
    coefficients = np.abs(_coefficients(grey))
    if own is None:
        search = StepSearch(np.full(64, 2.0), 0.0, _LEAST_AGREEMENT)
    else:
        # The file's own multiples that lie halfway to an earlier step speak against it, and must not be left out.
        search = StepSearch(np.maximum(2.0, _FACTOR * np.asarray(own, dtype=np.float64)), -0.5, _LEAST_OF_JPEG)
    return _standard_quality(coefficients, search) or _other_quality(coefficients, search)


def _coefficients(grey: Floats) -> Floats:
    """Orthonormal DCT of at most _MOST_BLOCKS of the 8x8 blocks, evenly chosen: (blocks, 64)."""
    height, width = grey.shape
    blocks = grey.reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    blocks = blocks[:: math.ceil(len(blocks) / _MOST_BLOCKS)]
    result: Floats = (_DCT @ blocks @ _DCT.T).reshape(-1, 64)
    return result


def _standard_quality(coefficients: Floats, search: StepSearch) -> int | None:
    """Return the quality whose standard table all coefficients together fit best, if they fit one."""
    scores = {}
    for quality, steps in _STANDARD.items():
        columns = np.flatnonzero(steps >= search.least)
        columns = columns[columns > 0]
        scores[quality] = _score(coefficients[:, columns], steps[columns], search)
    best = max(scores, key=lambda quality: scores[quality])
    return best if scores[best] > _CLEAR else None


def _other_quality(coefficients: Floats, search: StepSearch) -> int | None:
    """Find the step of each low frequency by itself; return the standard quality nearest to those that show one."""
    found = {}
    for place in _LOW_FREQUENCIES:
        candidates = range(math.ceil(search.least[place]), _LARGEST_STEP + 1)
        scores = [_score(coefficients[:, place], np.array(float(step)), search) for step in candidates]
        clear = max(scores, default=0.0)
        if clear > _CLEAR:
            # A step's divisors fit as well, but for rounding: the largest that fits about as well is the step.
            found[place] = max(step for step, score in zip(candidates, scores, strict=True) if score > 0.75 * clear)
    return nearest_quality(found) if len(found) >= _FREQUENCIES_NEEDED else None


def _score(magnitudes: Floats, steps: Floats, search: StepSearch) -> float:
    """Standard deviations by which magnitudes lie at multiples of their steps; 0 if they do not clearly do so."""
    counting = magnitudes > 0.5 * steps + search.margin
    phases = (magnitudes / steps)[counting]
    if len(phases) < _FEWEST:
        return 0.0
    agreement = float(np.cos(2 * np.pi * phases).mean())
    return agreement * math.sqrt(2 * len(phases)) if agreement > search.agreement else 0.0
