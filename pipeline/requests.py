"""From the arguments of ``build`` to the builds that they ask for: one, or one for each perturbation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..choices import MAX_PIXELS, MIN_SIDE
from ..errors import UsageError
from .config import DERIVED_NAME, BuildConfig
from .image_spec import parse_perturbation

OF_SOURCES = {"layout": None, "rehash": False, "min_side": MIN_SIDE, "max_pixels": MAX_PIXELS}
"""Settings that say how sources are read, with their defaults: ``--from-cache`` has no use for others."""


def build_requests(
    *,
    from_cache: bool = False,
    perturb: Sequence[str] = (),
    splits: str | None = None,
    name: str | None = None,
    **settings: Any,
) -> list[BuildConfig]:
    """Return the builds to run, in this order.

    perturb : perturbations as text; each makes a derived dataset. splits : of the derived datasets, separated by commas.
    name : of the derived dataset, in place of ``D@KIND-STRENGTH``. settings : the other fields of
    :class:`.config.BuildConfig`.
    Raises UsageError for arguments that do not go together.
    """
    if not from_cache:
        for option, value in (("--perturb", perturb), ("--splits", splits), ("--as", name)):
            if value:
                raise UsageError(f"{option}: needs --from-cache: a dataset is derived from cached pictures.")
        if not settings["sources"]:
            raise UsageError(
                "build: name a SOURCE, or give --from-cache to start from the cached pictures of --dataset."
            )
        return [BuildConfig.checked(**settings)]
    if settings["sources"]:
        raise UsageError(
            f"--from-cache: opens no source, so leave {settings['sources'][0]} out, or leave out the option."
        )
    for field, default in OF_SOURCES.items():
        if settings.get(field, default) != default:
            raise UsageError(f"--{field.replace('_', '-')}: is about sources, and --from-cache opens none.")
    origin = {**settings, "origin": settings["dataset"]}
    if not perturb:
        for option, value in (("--splits", splits), ("--as", name)):
            if value:
                raise UsageError(
                    f"{option}: needs --perturb. To add features to some splits, write --features SPLIT:LIST."
                )
        return [BuildConfig.checked(**origin)]
    return _derived(origin, [str(parse_perturbation(text)) for text in perturb], _listed(splits), name)


def derived_name(dataset: str, perturbation: str) -> str:
    """Return the name of a derived dataset: ``cifake@jpeg-75``."""
    return f"{dataset}@{perturbation.replace(':', '-')}"


def _derived(
    origin: dict[str, Any], perturbations: Sequence[str], splits: tuple[str, ...], name: str | None
) -> list[BuildConfig]:
    twice = next((one for place, one in enumerate(perturbations) if one in perturbations[:place]), None)
    if twice is not None:
        raise UsageError(f"--perturb {twice}: is given twice.")
    if name is not None and len(perturbations) > 1:
        raise UsageError(f"--as {name}: names one dataset, and --perturb is given {len(perturbations)} times.")
    if name == origin["dataset"]:
        raise UsageError(f"--as {name}: is the dataset that is perturbed. Take another name.")
    configs = []
    for perturbation in perturbations:
        dataset = name or derived_name(origin["dataset"], perturbation)
        if not re.fullmatch(DERIVED_NAME, dataset):
            raise UsageError(
                f"--as {dataset}: cannot name a dataset. Use up to 100 letters, digits, dots, dashes, underscores and @."
            )
        configs.append(BuildConfig.checked(**{**origin, "dataset": dataset, "perturb": perturbation, "splits": splits}))
    return configs


def _listed(splits: str | None) -> tuple[str, ...]:
    if splits is None:
        return ()
    names = tuple(dict.fromkeys(name.strip() for name in splits.split(",") if name.strip()))
    if not names:
        raise UsageError(f"--splits {splits}: name at least one split, such as test or val,test.")
    return names
