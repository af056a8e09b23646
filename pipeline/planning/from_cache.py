"""Build from a dataset's cached images instead of its sources.

With a perturbation, the result is a derived dataset: rows of the origin under another name, with the same keys, labels,
splits, generators and groups, and perturbed images. The key of a row remains the hash of the source file's bytes; the
perturbation is part of the image's spec, and so of the spec of every feature. Without a perturbation, features are
added to the origin itself. No source file is opened, so the sources may be gone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ...cache.index.index import Index
from ...cache.records.builds import Derived
from ...cache.spec import imported_from
from ...cache.store import Cache, FeatureStore
from ...choices import IMAGE_ALGORITHMS, preset_name
from ...errors import UsageError, UserError
from ...features.registry import with_image_algorithm
from ...images.spec import ImageSpec
from ..config import BuildConfig
from ..scan.rows import RowTable, ScannedRow, scanned_rows
from ..scan.scan import ScanResult
from .plan import Samples


class CachedSource(NamedTuple):
    """The cache, the rows to build in the form of a scan's result, and the origin of a derived dataset."""

    cache: Cache
    rows: ScanResult
    derived: Derived | None


def read_origin(config: BuildConfig) -> CachedSource:
    """Read the dataset ``config.origin``.

    Raises
    ------
    UserError, UsageError
        If the cache, the dataset or a split does not exist, if the dataset is itself derived, or if the name of the
        derived dataset is in use.
    """
    assert config.origin is not None
    cache = Cache.open(config.cache)
    revision = cache.datasets().head(config.origin)
    _refuse_derived(cache, config.origin)
    rows = scanned_rows(cache.datasets().pieces(config.origin, revision))
    if config.perturb is None:
        return CachedSource(cache, _scanned(rows), None)
    derived = Derived(dataset=config.origin, revision=revision, perturbation=config.perturb)
    _check_name(cache, config.dataset, derived)
    whole = RowTable.of(rows)
    chosen = _splits(sorted({kind.split for kind in whole.counts()}), config)
    in_chosen = np.array([kind.split in chosen for kind in whole.kinds], bool)
    return CachedSource(cache, _scanned(whole.chosen(in_chosen[block["kind"]] for block in whole.blocks())), derived)


def cached_images(cache: Cache, config: BuildConfig, spec: ImageSpec, samples: Samples) -> tuple[FeatureStore, int]:
    """Find the origin's images, decoded by today's rules or, if the cache has no such image of a key, by those before.

    Returns
    -------
    FeatureStore
        The store, which has an image for every key.
    int
        ``ImageSpec.algorithm`` of these images, which is then part of the spec of every feature of the build.

    Raises
    ------
    UserError
        If no store has an image for every key.
    """
    there = {folder.name for folder in cache.feature_folders()}
    lacking = []
    for algorithm in IMAGE_ALGORITHMS:
        found = with_image_algorithm(spec, algorithm)
        store = cache.feature(found) if found.folder in there else None
        lacking.append(len(samples) if store is None else _lacking(store.index(), samples))
        if store is not None and not lacking[-1]:
            return store, algorithm
    raise UserError(
        f"{config.origin}: the cache lacks {min(lacking):,} of its {len(samples):,} images for these "
        f"options ({_description(spec)}). Use the options of its build; {_known(cache, config)}."
    )


def _lacking(index: Index, samples: Samples) -> int:
    return sum(int(np.count_nonzero(index.locate(block["key"])[0] < 0)) for block in samples.blocks())


def _scanned(found: Iterable[ScannedRow]) -> ScanResult:
    rows = RowTable.of(found)
    return ScanResult(rows, rejects=[], opened=0, remembered=len(rows), label_conflicts=0, leaks=[])


def _refuse_derived(cache: Cache, origin: str) -> None:
    found = next((record.origin for record in cache.builds().find(origin) if record.origin), None)
    if found is not None:
        raise UsageError(
            f"{origin}: is derived from {found.dataset} by {found.perturbation}. Give --dataset {found.dataset}, whose "
            f"images are not perturbed, and --perturb."
        )


def _check_name(cache: Cache, name: str, derived: Derived) -> None:
    """Raise UsageError if a dataset of this name is anything but the same perturbation of the same dataset."""
    if name not in cache.datasets().names():
        return
    same = (derived.dataset, derived.perturbation)
    for record in cache.builds().find(name):
        origin = record.origin
        if origin is None:
            raise UsageError(f"--as {name}: exists and is not derived. Choose an unused name.")
        if (origin.dataset, origin.perturbation) != same:
            made = f"derived from {origin.dataset} by {origin.perturbation}"
            raise UsageError(f"--as {name}: is {made}. Choose an unused name.")


def _splits(present: Sequence[str], config: BuildConfig) -> list[str]:
    """Return the requested splits; by default test, or val if there is no test."""
    absent = sorted(set(config.splits) - set(present))
    if absent:
        raise UsageError(f"--splits {','.join(config.splits)}: {config.origin} has only {', '.join(present)}.")
    default = [split for split in ("test", "val") if split in present][:1]
    if not config.splits and not default:
        raise UsageError(
            f"{config.origin}: has neither test nor val, only {', '.join(present)}. Name it with --splits."
        )
    return list(config.splits) or default


def _description(spec: ImageSpec) -> str:
    harmonized = "" if spec.harmonize is None else f", harmonize {spec.harmonize.codec}:{spec.harmonize.quality}"
    return f"image-size {spec.size}, image-preset {preset_name(spec.preset)}{harmonized}"


def _known(cache: Cache, config: BuildConfig) -> str:
    """Return a phrase that lists the images of the origin's builds."""
    assert config.origin is not None
    folders = {
        record.features["image"].folder for record in cache.builds().find(config.origin) if "image" in record.features
    }
    known = []
    for folder in sorted(folders):
        spec = cache.open_feature(folder).spec
        imported = imported_from(spec)
        known.append(f"imported ones ({imported})" if imported else _description(ImageSpec.model_validate(spec)))
    return f"it has {'; '.join(known)}" if known else "it has none"
