"""Which features a build makes for which split: the meaning of ``--features``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...errors import UsageError
from .plan import FEATURES, with_dependencies

TRAIN_DEFAULT = ("image", "eps", "dire", "teacher")
OTHER_DEFAULT = ("image", "eps")


def parse_features(options: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """``["image,eps,dire", "test:image,eps"]`` -> ``{"*": (…), "test": (…)}``.

    A list without a split is for every split that has no list of its own. Raises UsageError for an unknown feature, an
    empty list, or two lists for one split.
    """
    lists: dict[str, tuple[str, ...]] = {}
    for option in options:
        split, colon, text = option.rpartition(":")
        split = split.strip() if colon else "*"
        names = tuple(name.strip() for name in text.split(",") if name.strip())
        for name in names:
            if name not in FEATURES:
                raise UsageError(f"--features {option}: unknown feature {name!r}; there are {', '.join(FEATURES)}.")
        if not names or not split:
            raise UsageError(f"--features {option}: write a list such as image,eps or test:image,eps.")
        if split in lists:
            raise UsageError(f"--features {option}: the split {split!r} has a list already.")
        lists[split] = names
    return lists


def only_pictures(lists: dict[str, tuple[str, ...]]) -> bool:
    """Say whether the lists ask for pictures alone, whatever splits a dataset has. Then no diffusion model is needed."""
    return "*" in lists and {name for names in lists.values() for name in names} == {"image"}


def wanted_features(lists: dict[str, tuple[str, ...]], splits: Iterable[str]) -> dict[str, frozenset[str]]:
    """Feature -> splits for the splits that the dataset has, with dependencies, in order of computation.

    Without a list, train gets image, eps, dire and teacher, every other split image and eps. Raises UsageError if a
    list names a split that the dataset lacks.
    """
    present = sorted(set(splits))
    absent = sorted(set(lists) - {"*", *present})
    if absent:
        raise UsageError(
            f"--features {absent[0]}:…: the dataset has no split {absent[0]!r}, only {', '.join(present)}."
        )
    wanted: dict[str, set[str]] = {}
    for split in present:
        default = lists.get("*", TRAIN_DEFAULT if split == "train" else OTHER_DEFAULT)
        for feature in lists.get(split, default):
            wanted.setdefault(feature, set()).add(split)
    return with_dependencies({feature: frozenset(splits) for feature, splits in wanted.items()})
