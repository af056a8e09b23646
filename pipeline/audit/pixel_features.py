"""Features of an image's processing history in its pixels: earlier JPEG compression, the 8x8 grid, and resampling.

Every feature compares an image with itself (a frequency with its neighbours, a coefficient with a lattice), so it
depends on how the image was processed rather than on its content. Images smaller than :data:`SPECTRUM_SIDE` have too
few frequencies for the last two features.

* **Earlier JPEG.** Quantisation leaves the DCT coefficients of the 8x8 blocks at multiples of its steps, and they stay
  there when the pixels are saved in another format (Fan and de Queiroz 2003). For each standard quality, and then for
  arbitrary tables, a Rayleigh test measures whether the coefficients' phases within a step agree. Coefficients that
  round to 0 are left out: every smooth image has them. After a crop or a resize the coefficients are off their steps,
  and nothing is found.
* **8x8 grid.** The mean absolute second difference of each column, taken over the rows, shows the block borders as a
  signal of period 8, wherever the grid begins. Its power at the four harmonics is divided by that of neighbouring
  frequencies. The upsampling layers of a generator can leave the same trace.
* **Resampling.** Interpolation also makes the second difference periodic (Gallagher 2005). The feature is the highest
  peak at any other frequency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...images.file import Limits
from ...images.jpeg import nearest_quality, parse_jpeg, standard_table
from ...images.upright import load_rgb

_Floats = NDArray[np.float64]

SMALLEST_SIDE = 16
"""Images with a shorter side than this, in pixels, are not measured."""

SPECTRUM_SIDE = 64
"""Grid and resampling are not measured for images with a shorter side than this, in pixels."""

LARGEST_SIDE = 512
"""Largest side, in pixels, of the centre window that is measured."""

PIXEL_LIMITS = Limits(max_pixels=64_000_000, min_side=SMALLEST_SIDE)
"""Images are decoded whole. This bounds the memory: 64 megapixels take 192 MB."""

JPEG_IN_PIXELS, GRID, PEAK = "JPEG quality in the pixels", "8x8 grid", "resampling peak"

_HARMONICS = 4
_LOWEST = 0.1  # cycles a pixel: below it, content rules the spectrum
_CAP = 30.0  # grey levels of second difference that an edge may count for


@dataclass(frozen=True, slots=True)
class PixelFacts:
    """Pixel features of one image.

    Attributes
    ----------
    own_quality
        Quality (1..100) of the file itself if it is a JPEG, or None.
    earlier_quality
        Quality of an earlier JPEG compression, or None.
    grid
        Log of the power at period 8 relative to neighbouring frequencies. In a JPEG it depends on the content: smooth
        images show the blocks of one quality more than others. None for small images.
    peak
        Relative power of the highest other peak, less its expectation for this number of frequencies. None for small
        images.
    """

    own_quality: int | None
    earlier_quality: int | None
    grid: float | None
    peak: float | None

    def features(self, with_grid: bool) -> dict[str, str | float | None]:
        """Return the features by name. The grid is left out when images are compared with JPEG files."""
        found: dict[str, str | float | None] = {
            JPEG_IN_PIXELS: self.own_quality if self.earlier_quality is None else self.earlier_quality,
            PEAK: self.peak,
        }
        return {**found, GRID: self.grid} if with_grid else found


def pixel_facts(data: bytes) -> PixelFacts:
    """Decode an image file and measure its pixels. Raises ImageRejected as :func:`...images.upright.load_rgb` does."""
    return measure_pixels(load_rgb(data, PIXEL_LIMITS), luminance_steps(data))


def luminance_steps(data: bytes) -> Sequence[int] | None:
    """Return the 64 luminance steps of a JPEG file; None for other formats."""
    return parse_jpeg(data).tables.get(0) if data.startswith(b"\xff\xd8") else None


def measure_pixels(pixels: NDArray[np.uint8], own: Sequence[int] | None = None) -> PixelFacts:
    """Measure decoded pixels.

    Parameters
    ----------
    pixels
        RGB image (H, W, 3), with sides of at least SMALLEST_SIDE.
    own
        Luminance steps of the file itself if it is a JPEG.
    """
    grey = window(pixels) @ np.array([0.299, 0.587, 0.114])
    grid, peak = _periodicity(grey) if min(grey.shape) >= SPECTRUM_SIDE else (None, None)
    return PixelFacts(
        own_quality=None if own is None else nearest_quality(dict(enumerate(own))),
        earlier_quality=earlier_quality(grey, own),
        grid=grid,
        peak=peak,
    )


def window(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the centre of (H, W, ...), aligned to the 8x8 grid, with sides of a multiple of 8 up to LARGEST_SIDE."""
    cuts = []
    for length in pixels.shape[:2]:
        side = min(length, LARGEST_SIDE) // 8 * 8
        start = (length - side) // 2 // 8 * 8
        cuts.append(slice(start, start + side))
    return pixels[cuts[0], cuts[1]]


def _periodicity(grey: _Floats) -> tuple[float, float]:
    """Return the features ``grid`` and ``peak`` of :class:`PixelFacts`, over both directions."""
    grids, peaks = zip(*(_spectral(_spectrum(lines)) for lines in (grey, grey.T)), strict=True)
    return math.log(sum(grids) / len(grids)), max(peaks)


def _spectrum(grey: _Floats) -> _Floats:
    """Return the relative power spectrum of the columns' mean absolute second difference: 1 for white noise."""
    second = np.abs(grey[:, 2:] - 2 * grey[:, 1:-1] + grey[:, :-2])
    level = np.pad(np.log(np.minimum(second, _CAP).mean(axis=0) + 0.05), 1, mode="edge")
    average = np.r_[0.5, np.ones(15), 0.5] / 16  # of 16 columns: takes nothing from a period of 8
    level = level - np.convolve(np.pad(level, 8, mode="reflect"), average, mode="valid")
    power = np.abs(np.fft.rfft(level)) ** 2
    half = max(4, len(level) // 32)
    surroundings = [
        np.median(power[max(1, index - half) : index + half + 1]) / math.log(2) for index in range(len(power))
    ]
    result: _Floats = power / (np.array(surroundings) + 1e-9)
    return result


def _spectral(power: _Floats) -> tuple[float, float]:
    """Return the mean power at the harmonics of period 8, and the highest other peak, less its expectation."""
    count = 2 * (len(power) - 1)
    harmonics = np.arange(1, _HARMONICS + 1) * count // 8
    others = np.ones(len(power), dtype=bool)
    others[: math.ceil(_LOWEST * count)] = False
    for index in harmonics:
        others[max(0, index - 1) : index + 2] = False
    return float(power[harmonics].mean()) + 1e-9, float(power[others].max()) - math.log(others.sum())


# Above 98, almost all steps are 1, which every rounded image fits.
_STANDARD = {quality: np.array(standard_table(quality), dtype=np.float64) for quality in range(5, 99)}
_MOST_BLOCKS = 1024
_LARGEST_STEP = 60
_FEWEST = 8  # coefficients needed to test a step
_CLEAR = 6.0  # standard deviations of the mean phase that chance does not reach
_LEAST_AGREEMENT = 0.25  # mean cosine: rounding alone leaves 0.66 at a step of 2; an image that was no JPEG has 0.05
_LEAST_OF_JPEG = 0.5  # the same where the coefficients have steps of their own, which agree with others by arithmetic
_FREQUENCIES_NEEDED = 3
_FACTOR = 2  # an earlier step can be distinguished from the file's own if it is this much larger

_POSITIONS = np.arange(8)
_DCT = (
    np.cos((2 * _POSITIONS[None] + 1) * _POSITIONS[:, None] * np.pi / 16)
    * np.where(_POSITIONS == 0, 0.125**0.5, 0.5)[:, None]
)
_LOW_FREQUENCIES = [8 * i + j for i in range(6) for j in range(6) if 1 <= i + j <= 5]


class StepSearch(NamedTuple):
    """Parameters of the search for quantisation steps.

    Attributes
    ----------
    least
        Smallest step of each of the 64 coefficients.
    margin
        Magnitudes count from half a step plus this many grey levels. Above 0, evidence against a step would be left
        out.
    agreement
        Smallest mean cosine of the phases.
    """

    least: _Floats
    margin: float
    agreement: float


def earlier_quality(grey: _Floats, own: Sequence[int] | None = None) -> int | None:
    """Return the quality (1..100) of an earlier JPEG compression, or None if the pixels show none.

    Parameters
    ----------
    grey
        Luminance (H, W) in 0..255, aligned to the 8x8 grid, with sides of a multiple of 8.
    own
        Luminance steps of the file itself if it is a JPEG. Only steps twice as large can be distinguished from them.
    """
    coefficients = np.abs(_coefficients(grey))
    if own is None:
        search = StepSearch(np.full(64, 2.0), 0.0, _LEAST_AGREEMENT)
    else:
        # The file's own multiples halfway to an earlier step are evidence against it, and must not be left out.
        search = StepSearch(np.maximum(2.0, _FACTOR * np.asarray(own, dtype=np.float64)), -0.5, _LEAST_OF_JPEG)
    return _standard_quality(coefficients, search) or _other_quality(coefficients, search)


def _coefficients(grey: _Floats) -> _Floats:
    """Return the orthonormal DCT of at most _MOST_BLOCKS 8x8 blocks, evenly spaced: (blocks, 64)."""
    height, width = grey.shape
    blocks = grey.reshape(height // 8, 8, width // 8, 8).swapaxes(1, 2).reshape(-1, 8, 8)
    blocks = blocks[:: math.ceil(len(blocks) / _MOST_BLOCKS)]
    result: _Floats = (_DCT @ blocks @ _DCT.T).reshape(-1, 64)
    return result


def _standard_quality(coefficients: _Floats, search: StepSearch) -> int | None:
    """Return the quality whose standard table fits all coefficients together best, if one fits."""
    scores = {}
    for quality, steps in _STANDARD.items():
        columns = np.flatnonzero(steps >= search.least)
        columns = columns[columns > 0]
        scores[quality] = _score(coefficients[:, columns], steps[columns], search)
    best = max(scores, key=lambda quality: scores[quality])
    return best if scores[best] > _CLEAR else None


def _other_quality(coefficients: _Floats, search: StepSearch) -> int | None:
    """Find the step of each low frequency separately; return the standard quality nearest to the steps found."""
    found = {}
    for index in _LOW_FREQUENCIES:
        candidates = range(math.ceil(search.least[index]), _LARGEST_STEP + 1)
        scores = [_score(coefficients[:, index], np.array(float(step)), search) for step in candidates]
        clear = max(scores, default=0.0)
        if clear > _CLEAR:
            # A step's divisors fit as well, but for rounding: the largest that fits about as well is the step.
            found[index] = max(step for step, score in zip(candidates, scores, strict=True) if score > 0.75 * clear)
    return nearest_quality(found) if len(found) >= _FREQUENCIES_NEEDED else None


def _score(magnitudes: _Floats, steps: _Floats, search: StepSearch) -> float:
    """Return by how many standard deviations magnitudes cluster at multiples of their steps; 0 if not clearly."""
    counting = magnitudes > 0.5 * steps + search.margin
    phases = (magnitudes / steps)[counting]
    if len(phases) < _FEWEST:
        return 0.0
    agreement = float(np.cos(2 * np.pi * phases).mean())
    return agreement * math.sqrt(2 * len(phases)) if agreement > search.agreement else 0.0
