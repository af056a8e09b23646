"""The split that the name of a tar, a table or a shard says, or else the folders above it."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from ..words import SPLITS, split_of_word

_ONLY_FIRST = ("dev", "eval", "evaluation")
"""Words that count only at the beginning of a name: ``FLUX1-dev`` is a generator."""


def split_of_file(path: str) -> str | None:
    """Return the split by the words of a file's name, then of its folders from the inside out; None if none says one.

    Parameters
    ----------
    path
        Posix path relative to the source.
    """
    found = (_split_of_name(part) for part in reversed(PurePosixPath(path).parts))
    return next((split for split in found if split), None)


def split_of_table(path: str) -> str | None:
    """Return the split by the words of a table's name, or by a folder above it that is called like a split."""
    *folders, name = PurePosixPath(path).parts
    return _split_of_name(name) or next((split for part in reversed(folders) if (split := split_of_word(part))), None)


def _split_of_name(name: str) -> str | None:
    words = re.findall("[a-z]+", name.lower())
    for number, word in enumerate(words):
        if word in SPLITS and (number == 0 or word not in _ONLY_FIRST):
            return SPLITS[word]
    return None
