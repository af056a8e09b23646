"""A picture filtered to another one's spectrum: the control for "a small denoiser blurs".

The spectrum is that of the cosine transform (type II, orthonormal), whose picture continues mirrored at its borders, so
that the filter leaves no edge effects. It is averaged over the colour channels and over rings of equal frequency, and
one gain a ring takes it to the other's: a filter of the same strength in every direction and colour, nothing more. Where
the other picture has less detail, this blurs; the mean colour stays.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from .scenes import Pixels

Floats = NDArray[np.float64]


def filtered_like(image: Pixels, other: Pixels) -> Pixels:
    """Return ``image`` (C, S, S) uint8 with ``other``'s energy in each ring, rounded and clipped to uint8."""
    side = image.shape[-1]
    found, wanted = cosine_transform(image), cosine_transform(other)
    gain = np.sqrt(ring_energy(wanted) / np.maximum(ring_energy(found), np.finfo(np.float64).tiny))
    gain[0] = 1.0
    transform = _cosines(side)
    pixels = transform.T @ (found * gain[_rings(side)]) @ transform
    return np.clip(np.round(pixels), 0, 255).astype(np.uint8)


def cosine_transform(image: Pixels) -> Floats:
    """Coefficients (C, S, S) float64 of a picture (C, S, S); [.., 0, 0] belongs to the mean."""
    transform = _cosines(image.shape[-1])
    coefficients: Floats = transform @ image.astype(np.float64) @ transform.T
    return coefficients


def ring_energy(coefficients: Floats) -> Floats:
    """Mean square of the coefficients in each ring, over channels; ring 0 is the mean colour alone."""
    rings = _rings(coefficients.shape[-1])
    energy = (coefficients**2).mean(axis=0)
    sums: Floats = np.bincount(rings.ravel(), energy.ravel()) / np.bincount(rings.ravel())
    return sums


@cache
def _cosines(side: int) -> Floats:
    """Return the matrix of the orthonormal cosine transform: a row a frequency."""
    frequency, place = np.arange(side)[:, None], np.arange(side)[None, :]
    matrix: Floats = np.cos(np.pi * (place + 0.5) * frequency / side) * np.sqrt(2 / side)
    matrix[0] /= np.sqrt(2)
    return matrix


@cache
def _rings(side: int) -> NDArray[np.intp]:
    """Return the ring of each coefficient: the rounded length of its frequency vector."""
    frequency = np.arange(side)
    return np.round(np.hypot(frequency[:, None], frequency[None, :])).astype(np.intp)
