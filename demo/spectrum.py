"""Filter an image to another one's spectrum: the control for blur by a small denoiser.

The spectrum is that of the cosine transform (DCT-II, orthonormal), which continues the image mirrored at its borders,
so the filter has no edge effects. It is averaged over colour channels and over rings of equal frequency, and each ring
gets one gain: the filter is isotropic and the same for all colours. If the other image has less detail, this blurs; the
mean colour is kept.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .scenes import Pixels

_Floats = NDArray[np.float64]


def filtered_like(image: Pixels, other: Pixels) -> Pixels:
    """Give an image the spectrum of another.

    Parameters
    ----------
    image, other : ndarray of uint8, (C, S, S)

    Returns
    -------
    ndarray of uint8, (C, S, S)
        ``image`` with the energy of ``other`` in each ring, rounded and clipped.
    """
    side = image.shape[-1]
    found, wanted = cosine_transform(image), cosine_transform(other)
    gain = np.sqrt(ring_energy(wanted) / np.maximum(ring_energy(found), np.finfo(np.float64).tiny))
    gain[0] = 1.0
    transform = _cosines(side)
    pixels = transform.T @ (found * gain[_rings(side)]) @ transform
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def cosine_transform(image: Pixels) -> _Floats:
    """Return the DCT coefficients (C, S, S) float64 of an image (C, S, S); [:, 0, 0] belongs to the mean."""
    transform = _cosines(image.shape[-1])
    coefficients: _Floats = transform @ image.astype(np.float64) @ transform.T
    return coefficients


def ring_energy(coefficients: _Floats) -> _Floats:
    """Return the mean square of the coefficients (C, S, S) in each ring, over channels; ring 0 is the mean colour."""
    rings = _rings(coefficients.shape[-1])
    energy = (coefficients**2).mean(axis=0)
    sums: _Floats = np.bincount(rings.ravel(), energy.ravel()) / np.bincount(rings.ravel())
    return sums


@cache
def _cosines(side: int) -> _Floats:
    """Return the matrix of the orthonormal DCT-II, one row per frequency."""
    frequency, position = np.arange(side)[:, None], np.arange(side)[None, :]
    matrix: _Floats = np.cos(np.pi * (position + 0.5) * frequency / side) * np.sqrt(2 / side)
    matrix[0] /= np.sqrt(2)
    return matrix


@cache
def _rings(side: int) -> NDArray[np.intp]:
    """Return the ring of each coefficient: the rounded length of its frequency vector."""
    frequency = np.arange(side)
    return np.round(np.hypot(frequency[:, None], frequency[None, :])).astype(np.intp)
