"""The words by which folders and tables name splits and classes: one table for every kind of source.

Capitals do not matter, and ``-``, ``_`` and spaces are alike: ``AI_generated`` is ``ai-generated``.
"""

from __future__ import annotations

import re
from functools import lru_cache

SPLITS = {
    **dict.fromkeys(("train", "training", "trainset", "train-set", "train2014", "train2017"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "valset", "val-set", "val2014", "val2017", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "test-set", "test2017", "eval", "evaluation"), "test"),
    "cnn-synth-testset": "test",  # the test set of CNNDetection, as unpacked
}
"""Word -> split."""

LABELS = {
    **dict.fromkeys(
        (
            *("real", "reals", "0-real", "nature", "natural", "authentic", "original", "human", "photo", "photos"),
            *("real-images", "real-faces", "training-real", "non-ai", "not-ai", "realart"),
        ),
        0,
    ),
    **dict.fromkeys(
        (
            *("fake", "fakes", "1-fake", "ai", "ai-generated", "aigenerated", "generated", "synthetic", "synthesized"),
            *("aigc", "deepfake", "deepfakes", "artificial", "fake-images", "fake-faces", "training-fake", "ai-images"),
            *("generated-images", "synthetic-images", "ai-art", "aiartdata"),
        ),
        1,
    ),
}
"""Word -> 0 (real) or 1 (generated)."""

NUMBERS = {
    **dict.fromkeys(("0", "0.0", "false", "no", "n", "f"), 0),
    **dict.fromkeys(("1", "1.0", "true", "yes", "y", "t"), 1),
}
"""Text of a number or truth value -> 0 or 1. Whether 1 means generated is a property of the column or folder."""


@lru_cache(maxsize=1 << 16)
def normalised(word: str) -> str:
    """Return a word in lower case, with a dash for each run of dashes, underscores and spaces."""
    return re.sub(r"[-_\s]+", "-", word.strip().casefold())


def split_of_word(word: str) -> str | None:
    """Return the split that a word names, or None."""
    return SPLITS.get(normalised(word))


def label_of_word(word: str) -> int | None:
    """Return 0 for a word that means real, 1 for one that means generated, None for any other, numbers included."""
    return LABELS.get(normalised(word))
