"""Which features a build wants, and for which splits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ...cache.store import Cache
from ...errors import UsageError, UserError
from ...features.registry import BUILT_IN, FEATURES, needs_adm, with_inputs
from ...plugins import absent
from ...storage import AnyPath

OTHER_DEFAULT = tuple(feature.name for feature in BUILT_IN if feature.built == "always")
TRAIN_DEFAULT = tuple(feature.name for feature in BUILT_IN if feature.built != "on request")
"""What is made unasked. Installing another package changes neither."""


def parse_features(options: Sequence[str], cache: AnyPath | None = None) -> dict[str, tuple[str, ...]]:
    """Parse ``--features``: ``["image,eps,dire", "test:image,eps"]`` -> ``{"*": (…), "test": (…)}``.

    A list without a split applies to every split without a list of its own. The cache may know of features that nothing
    here provides.

    Raises
    ------
    UserError
        For the feature of a package that is not installed, see `unknown_feature`.
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
                raise unknown_feature(f"--features {option}", name, cache)
        if not names or not split:
            raise UsageError(f"--features {option}: write a list such as image,eps or test:image,eps.")
        if split in lists:
            raise UsageError(f"--features {option}: the split {split!r} has a list already.")
        lists[split] = names
    return lists


def unknown_feature(option: str, name: str, cache: AnyPath | None) -> UserError:
    """Return the error for a feature that nothing installed here provides; it names the package if the cache does."""
    provider = None if cache is None else Cache(cache).provider_of(name)
    if provider is not None:
        return absent("feature", name, provider)
    return UsageError(f"{option}: unknown feature {name!r}; there are {', '.join(FEATURES)}.")


def lists_need_adm(lists: Mapping[str, Sequence[str]]) -> bool:
    """Return whether the diffusion model makes any of the wanted features, or what they are made of, in any split."""
    return "*" not in lists or needs_adm(name for names in lists.values() for name in names)


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
