"""What the rows of a feature are, for readers that need not know the feature: ``about.json`` beside ``spec.json``.

A spec decides the values, and this record says how to handle them: shape, type, and what an augmentation may do to them.
So caches and trainings work without the package that computes a feature. It is no part of the fingerprint; the first
build that makes the feature writes it, and rows that are not what it says are refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import ConfigDict, FailFast, Field

from ...choices import FloatStorage
from ...errors import IntegrityError
from ...storage import AnyPath, path_exists
from ...storage.atomic import read_file
from ..shards.marker import DType, Size, check_hint
from ..shards.packed import packed_bytes, packing_of
from .parse import StoredRecord, parse_record

FILE = "about.json"
_MOST_BYTES = 1 << 16
_PLAIN = r"\A[ -;=?-_a-{}~]+\z"
"""ASCII on one line, without the signs that would end a cell of a table or begin markup."""

Geometry = Literal["image", "pixels", "map", "vector"]
"""What a row is, which decides what an augmentation may do to it.

``image``
    A picture (3, S, S).
``pixels``
    Values that lie over the picture, (C, S, S). Like a picture they are cropped, resized, mixed and mirrored with it.
``map``
    Values on a grid of their own, such as a network's. They are used whole; mirroring needs a row of the mirrored picture.
``vector``
    Values without positions. They are used whole; mirroring needs a row of the mirrored picture.
"""
View = Literal["identity", "hflip"]
"""The picture that a row, or one of its views, was computed of: as it is, or mirrored left and right."""
BOTH_VIEWS: frozenset[View] = frozenset({"identity", "hflip"})
OVER_IMAGE: frozenset[Geometry] = frozenset({"image", "pixels"})
"""What lies over the picture, so that one window and one flip fit both."""


@dataclass(frozen=True)
class Layout:
    """What a row is.

    Attributes
    ----------
    shape, dtype
        Those of one row as it is read.
    geometry
        See :data:`Geometry`.
    storage
        As what the values are stored, if not as ``dtype``: ``int8`` or ``int4``.
    views
        What the entries along the first axis are computed of; empty if the first axis is no axis of views.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=False)

    shape: Annotated[tuple[Size, ...], FailFast(), Field(min_length=1, max_length=8)]
    dtype: DType
    geometry: Geometry
    storage: FloatStorage | None = None
    views: Annotated[tuple[View, ...], FailFast(), Field(max_length=2)] = ()

    @property
    def bytes(self) -> int:
        """Size of a row, packed and not compressed."""
        packed = packing_of(self.storage)
        each = {"uint8": 1, "float16": 2, "float32": 4}[self.dtype]
        return packed_bytes(self.shape, packed) if packed else each * math.prod(self.shape)

    def fault(self, shape: tuple[int, ...], dtype: str) -> str:
        """Return how rows of this shape and dtype differ from the layout, a phrase; empty if they do not."""
        if (shape, dtype) == (self.shape, self.dtype):
            return ""
        return f"rows of shape {shape} and {dtype}, where {FILE} says {self.shape} and {self.dtype}"


class Provider(StoredRecord):
    """The installed package that computes a feature."""

    distribution: Annotated[str, Field(pattern=r"\A[A-Za-z0-9._-]{1,100}\z")]
    version: Annotated[str, Field(pattern=r"\A[A-Za-z0-9._+!-]{1,100}\z")]

    def __str__(self) -> str:
        """Return both as one writes them."""
        return f"{self.distribution} {self.version}"


class About(StoredRecord):
    """What a reader must know of a feature.

    Attributes
    ----------
    layout
        What a row is.
    description
        What the values mean, a phrase of plain ASCII.
    provider
        What computed the first rows. Another version of it may have computed later ones.
    """

    layout: Layout
    description: Annotated[str, Field(pattern=_PLAIN, max_length=300)]
    provider: Provider

    @property
    def json_bytes(self) -> bytes:
        """The content of the file."""
        return self.model_dump_json(indent=2).encode() + b"\n"


@dataclass(frozen=True)
class Known:
    """What is known of a feature of a cache that was made before there were such records."""

    geometry: Geometry
    description: str


BEFORE = {
    "image": Known("image", "the image, RGB, channels first; all other features derive from it"),
    "eps": Known(
        "pixels", "the noise that the diffusion model predicts at the first step of DDIM inversion (DistilDIRE's input)"
    ),
    "recon": Known("image", "the image after DDIM inversion and sampling, RGB, 0 to 255"),
    "dire": Known("pixels", "abs(image - reconstruction), both in [-1, 1], times 127.5 and truncated: 0 to 255"),
    "noise": Known("pixels", "the noise along the DDIM inversion (DNF)"),
    "teacher": Known("map", "the last feature map of a frozen image backbone applied to DIRE, one for each view"),
}
"""The features of those caches, by name."""


def read_about(folder: AnyPath) -> About | None:
    """Return what the folder of a feature says of its rows; None if it says nothing, as those of earlier versions.

    Raises
    ------
    IntegrityError
        If the file is damaged.
    """
    path = folder / FILE
    if not path_exists(path):
        return None
    try:
        return parse_record(About, read_file(path, _MOST_BYTES), str(path), "description of a feature")
    except IntegrityError as error:
        raise IntegrityError(f"{error} {check_hint(folder)}") from error


def can_mirror(geometry: Geometry, views: Collection[str]) -> bool:
    """Return whether the row of the mirrored picture is stored, or follows from the plain one."""
    return geometry in OVER_IMAGE or set(views) >= BOTH_VIEWS
