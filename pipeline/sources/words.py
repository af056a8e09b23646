"""The words by which folders and tables name splits and classes: one table for every kind of source.

Capitals do not matter, and ``-``, ``_`` and spaces are alike: ``AI_generated`` is ``ai-generated``.
"""

from __future__ import annotations

import re

SPLITS = {
    "train": "train",
    "training": "train",
    "train2017": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "val2017": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
"""Word -> split."""

LABELS = {
    **dict.fromkeys(
        ("real", "reals", "0-real", "nature", "natural", "authentic", "original", "human", "photo", "photos"), 0
    ),
    **dict.fromkeys(
        (
            *("fake", "fakes", "1-fake", "ai", "ai-generated", "aigenerated", "generated", "synthetic", "synthesized"),
            *("aigc", "deepfake", "artificial"),
        ),
        1,
    ),
}
"""Word -> 0 (real) or 1 (generated)."""

NUMBERS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
"""Text of a number or truth value -> 0 or 1. Whether 1 means generated is a property of the column or folder."""


def normalised(word: str) -> str:
    """Return a word in lower case, with a dash for each run of dashes, underscores and spaces."""
    return re.sub(r"[-_\s]+", "-", word.strip().casefold())


def split_of_word(word: str) -> str | None:
    """Return the split that a word names, or None."""
    return SPLITS.get(normalised(word))


def label_of_word(word: str) -> int | None:
    """Return 0 for a word that means real, 1 for one that means generated, None for any other, numbers included."""
    return LABELS.get(normalised(word))
