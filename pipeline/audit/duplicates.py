"""Find near duplicates: images that look the same after resizing or saving again, without comparing all pairs.

An image is reduced to a 32x32 grey thumbnail by area averaging. Its **perceptual hash** is the signs of the 64 lowest
frequencies of the thumbnail's DCT, without the mean. Two images are candidates if at most :data:`MOST_BITS` bits
differ. They then agree in at least one of ``MOST_BITS + 1`` bands of bits, so only images in the same bucket are
compared. A candidate is a near duplicate if the thumbnails have a correlation of :data:`CORRELATION` or more. An image
of nearly one colour has no hash.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...images.budget import PIXELS_IN_FLIGHT, decoding_bytes
from ...images.file import PILLOW_ERRORS, Limits, rejection
from ...images.opening import format_name, open_image
from ...images.tiff import libtiff_messages

MOST_BITS = 6
"""Largest number of differing bits, of 64, in the hashes of near duplicates."""

CORRELATION = 0.98
"""Smallest correlation of the thumbnails of near duplicates."""

_SIDE = 32
_FLATTEST = 4.0  # standard deviation in grey levels below which an image has no hash
_COMPARED_AT_ONCE = 1024
_LIMITS = Limits(max_pixels=64_000_000, min_side=1)

_POSITIONS = np.arange(_SIDE)
_DCT = np.cos((2 * _POSITIONS[None] + 1) * _POSITIONS[:, None] * np.pi / (2 * _SIDE))
_LOWEST = sorted(
    ((i, j) for i in range(12) for j in range(12) if i + j), key=lambda frequency: (sum(frequency), frequency)
)[:64]
_ROWS, _COLUMNS = np.array(_LOWEST).T
_BITS_OF = np.array([value.bit_count() for value in range(1 << 16)], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class PerceptualHash:
    """Perceptual hash (64 bits) and thumbnail of an image, float32 (1024,) of mean 0 and norm 1."""

    hash: int
    thumbnail: NDArray[np.float32]


def perceptual_hash(data: bytes) -> PerceptualHash | None:
    """Return the perceptual hash of an image file; None if it has nearly one colour. Raises ImageRejected."""
    image = open_image(data)
    _LIMITS.check(*image.size)
    try:
        with PIXELS_IN_FLIGHT.hold(decoding_bytes(*image.size, format_name(image))), libtiff_messages():
            image.draft("L", (2 * _SIDE, 2 * _SIDE))
            grey = image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
            image.close()
    except PILLOW_ERRORS as error:
        raise rejection(data, error) from None
    return _hash_of(np.asarray(grey, dtype=np.float64))


def perceptual_hash_of(pixels: NDArray[np.uint8]) -> PerceptualHash | None:
    """Return the perceptual hash of an image (H, W, 3); None if it has nearly one colour."""
    grey = Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return _hash_of(np.asarray(grey, dtype=np.float64))


def _hash_of(pixels: NDArray[np.float64]) -> PerceptualHash | None:
    """Return the hash of a grey image (32, 32) in 0..255."""
    if pixels.std() < _FLATTEST:
        return None
    centred = pixels - pixels.mean()
    signs = (_DCT @ centred @ _DCT.T)[_ROWS, _COLUMNS] > 0
    value = int.from_bytes(np.packbits(signs).tobytes(), "big")
    return PerceptualHash(value, (centred / np.linalg.norm(centred)).astype(np.float32).ravel())


def near_pairs(images: Sequence[PerceptualHash]) -> list[tuple[int, int]]:
    """Return the pairs of indices (smaller first, sorted) of near duplicates."""
    if not images:
        return []
    hashes = np.array([image.hash for image in images], dtype=np.uint64)
    thumbnails = np.stack([image.thumbnail for image in images])
    found: set[tuple[int, int]] = set()
    for bucket in _buckets(hashes):
        for start in range(0, len(bucket), _COMPARED_AT_ONCE):
            block = bucket[start : start + _COMPARED_AT_ONCE]
            later = bucket[start:]
            close = _differing_bits(hashes[block], hashes[later]) <= MOST_BITS
            rows, columns = np.nonzero(close)
            first, second = block[rows], later[columns]
            for a, b in zip(first[first < second].tolist(), second[first < second].tolist(), strict=True):
                if float(thumbnails[a] @ thumbnails[b]) >= CORRELATION:
                    found.add((a, b))
    return sorted(found)


def groups(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return for each index 0..count-1 the smallest index that it is connected with (union-find)."""
    parent = list(range(count))

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    return [find(index) for index in range(count)]


def _buckets(hashes: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    """Return the indices (ascending) of hashes that share a band of bits, where there are at least two."""
    found = []
    edges = np.linspace(0, 64, MOST_BITS + 2).astype(int)
    for low, high in itertools.pairwise(edges):
        bands = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        buckets: dict[int, list[int]] = defaultdict(list)
        for index, band in enumerate(bands.tolist()):
            buckets[band].append(index)
        found += [np.array(bucket) for bucket in buckets.values() if len(bucket) > 1]
    return found


def _differing_bits(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Count the differing bits of every pair; returns (len(first), len(second))."""
    differing = first[:, None] ^ second[None, :]
    counts: NDArray[np.int64] = _BITS_OF[differing.view(np.uint16).reshape(*differing.shape, 4)].sum(axis=2)
    return counts
