"""Which features a build wants, and for which splits."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ...errors import UsageError
from ...features.registry import FEATURES, with_inputs

OTHER_DEFAULT = tuple(name for name, feature in FEATURES.items() if feature.built == "always")
TRAIN_DEFAULT = tuple(name for name, feature in FEATURES.items() if feature.built != "on request")


def parse_features(options: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Parse ``--features``: ``["image,eps,dire", "test:image,eps"]`` -> ``{"*": (…), "test": (…)}``.

    A list without a split applies to every split without a list of its own.

    Raises
    ------
    UsageError
        For an unknown feature, an empty list, or two lists for one split.
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


def only_images(lists: dict[str, tuple[str, ...]]) -> bool:
    """Check whether only images are wanted, for any splits of the dataset. Then no diffusion model is needed."""
    return "*" in lists and {name for names in lists.values() for name in names} == {"image"}


def wanted_features(lists: dict[str, tuple[str, ...]], splits: Iterable[str]) -> dict[str, frozenset[str]]:
    """Return feature -> splits for the splits of a dataset, with dependencies, in the order of computation.

    Without a list, train gets image, eps, dire and teacher, every other split image and eps. Raises UsageError if a
    list names a split that the dataset does not have.
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
    return with_inputs({feature: frozenset(splits) for feature, splits in wanted.items()})
