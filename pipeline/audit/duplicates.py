"""Near duplicates: images that look the same after resizing or saving again, found without comparing every pair.

An image is shrunk to 32x32 grey, by averaging areas, and its **hash** is the signs of the 64 lowest frequencies of that
image's DCT, the mean left out. Two images are candidates if at most :data:`MOST_BITS` bits differ. Then they agree
whole in one of ``MOST_BITS + 1`` bands of bits, so that only images of the same bucket are compared. A candidate is a
near duplicate if the shrunk images correlate to :data:`CORRELATION` or more. An image of almost one colour has no
hash.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...images.file import PILLOW_ERRORS, Limits, open_image, rejection

MOST_BITS = 6
"""Most bits, of 64, in which the hashes of near duplicates differ."""

CORRELATION = 0.98
"""Least correlation of near duplicates at 32x32."""

_SIDE = 32
_FLATTEST = 4.0  # standard deviation in grey levels below which an image says nothing
_COMPARED_AT_ONCE = 1024
_LIMITS = Limits(max_pixels=64_000_000, min_side=1)

_PLACES = np.arange(_SIDE)
_DCT = np.cos((2 * _PLACES[None] + 1) * _PLACES[:, None] * np.pi / (2 * _SIDE))
_LOWEST = sorted(((i, j) for i in range(12) for j in range(12) if i + j), key=lambda place: (sum(place), place))[:64]
_ROWS, _COLUMNS = np.array(_LOWEST).T
_BITS_OF = np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class PerceptualHash:
    """What an image looks like: its hash (64 bits), and the shrunk image as float32 of mean 0 and length 1."""

    hash: int
    shrunk: NDArray[np.float32]


def perceptual_hash(data: bytes) -> PerceptualHash | None:
    """Return the look of an image file; None if it is of almost one colour. Raises ImageRejected."""
    image = open_image(data)
    _LIMITS.check(*image.size)
    try:
        image.draft("L", (2 * _SIDE, 2 * _SIDE))
        grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    except PILLOW_ERRORS as error:
        raise rejection(data, error) from None
    pixels = np.asarray(grey, dtype=np.float64)
    if pixels.std() < _FLATTEST:
        return None
    centred = pixels - pixels.mean()
    signs = (_DCT @ centred @ _DCT.T)[_ROWS, _COLUMNS] > 0
    value = int.from_bytes(np.packbits(signs).tobytes(), "big")
    return PerceptualHash(value, (centred / np.linalg.norm(centred)).astype(np.float32).ravel())


def near_pairs(looks: Sequence[PerceptualHash]) -> list[tuple[int, int]]:
    """Return the pairs of places (smaller first, sorted) whose images are near duplicates."""
    if not looks:
        return []
    hashes = np.array([look.hash for look in looks], dtype=np.uint64)
    shrunk = np.stack([look.shrunk for look in looks])
    found: set[tuple[int, int]] = set()
    for bucket in _buckets(hashes):
        for start in range(0, len(bucket), _COMPARED_AT_ONCE):
            block = bucket[start : start + _COMPARED_AT_ONCE]
            later = bucket[start:]
            close = _differing_bits(hashes[block], hashes[later]) <= MOST_BITS
            rows, columns = np.nonzero(close)
            ones, others = block[rows], later[columns]
            for one, other in zip(ones[ones < others].tolist(), others[ones < others].tolist(), strict=True):
                if float(shrunk[one] @ shrunk[other]) >= CORRELATION:
                    found.add((one, other))
    return sorted(found)


def groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return for each place 0..count-1 the smallest place that pairs connect it with."""
    leader = list(range(count))

    def find(place: int) -> int:
        while leader[place] != place:
            leader[place] = leader[leader[place]]
            place = leader[place]
        return place

    for one, other in pairs:
        low, high = sorted((find(one), find(other)))
        leader[high] = low
    return [find(place) for place in range(count)]


def _buckets(hashes: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """Return the places (ascending) of hashes that share a band of bits, wherever there are two or more."""
    found = []
    edges = np.linspace(0, 64, MOST_BITS + 2).astype(int)
    for low, high in itertools.pairwise(edges):
        bands = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        places: dict[int, list[int]] = defaultdict(list)
        for place, band in enumerate(bands.tolist()):
            places[band].append(place)
        found += [np.array(bucket) for bucket in places.values() if len(bucket) > 1]
    return found


def _differing_bits(ones: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count differing bits of every pair: (len(ones), len(others))."""
    differing = ones[:, None] ^ others[None, :]
    counts: NDArray[np.int64] = _BITS_OF[differing.view(np.uint16).reshape(*differing.shape, 4)].sum(axis=2)
    return counts
