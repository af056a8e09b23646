"""The audit of a dataset's cached images: the pixels that features and students are computed from.

They have no header any more, and with ``--harmonize`` they were all compressed alike. What is left of their histories is
in the pixels. The source files are not needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...cache.gather import gather
from ...cache.records.audit import Check
from ...cache.records.builds import BuildRecord
from ...cache.records.image_audit import ContentCheck, ImageAudit
from ...cache.spec import harmonization_of
from ...cache.store import Cache, FeatureStore
from ...errors import UserError
from ...images.jpeg import standard_table
from ...progress import Progress
from ..scan.rows import RowTable, ScannedRow
from .checks import AuditRow, choose_evenly, choose_evenly_of_table, pixel_checks
from .content import CONTENT_SAMPLE, check_content
from .duplicates import PerceptualHash, groups, near_pairs, perceptual_hash_of
from .embedding import square
from .pixel_features import PixelFacts, measure_pixels

_AT_ONCE = 64
_STAGE = "cached images"


@dataclass(frozen=True)
class CachedImages:
    """The images of a dataset in a cache.

    Attributes
    ----------
    record
        The build that names them.
    store
        The feature ``image``.
    rows
        The rows of the build's revision in the splits that have images.
    harmonize
        The compression that all of them got first; empty for none.
    size
        Their side in pixels.
    perturbed
        Quality of the JPEG that a derived dataset was perturbed by; 0 for none.
    others
        Number of further features of images that builds of this revision have.
    """

    record: BuildRecord
    store: FeatureStore
    rows: RowTable
    harmonize: str
    size: int
    perturbed: int
    others: int


def cached_images(cache: Cache, dataset: str, build: str | None, rows: Iterable[ScannedRow]) -> CachedImages | None:
    """Find the images of a dataset: those of a named build, else of the newest build that has images.

    Parameters
    ----------
    cache, dataset
        The cache and the dataset in it.
    build
        Id of a build, or None.
    rows
        The rows of the revision.

    Returns
    -------
    CachedImages or None
        None if no build of the newest revision has images.

    Raises
    ------
    UserError
        If the named build is of another dataset or has no images.
    """
    records = [record for record in builds_of(cache, dataset, build) if "image" in record.features]
    if not records:
        if build is not None:
            raise UserError(f"--build {build}: has no feature `image`, so there are no cached images to examine.")
        return None
    built = records[-1].features["image"]
    store = cache.open_feature(built.folder)
    table = RowTable.of(rows)
    splits = np.array([kind.split in built.splits for kind in table.kinds], bool)
    size = store.spec.get("size")
    return CachedImages(
        record=records[-1],
        store=store,
        rows=table.chosen(splits[block["kind"]] for block in table.blocks()),
        harmonize=harmonization_of(store.spec),
        size=size if isinstance(size, int) else 0,
        perturbed=_jpeg_quality(store.spec.get("perturb"), "kind", "strength"),
        others=len({record.features["image"].fingerprint for record in records}) - 1,
    )


def builds_of(cache: Cache, dataset: str, build: str | None) -> list[BuildRecord]:
    """Return the builds to audit, oldest first: the named one, else all of the newest revision.

    Raises
    ------
    UserError
        If there is no such build, or it is one of another dataset.
    """
    if build is None:
        revision = cache.datasets().head(dataset)
        return [record for record in cache.builds().find(dataset) if record.revision == revision]
    record = cache.builds().read(build)
    if record.dataset != dataset:
        raise UserError(f"--build {build}: is a build of {record.dataset}, not of {dataset}.")
    return [record]


def audit_images(images: CachedImages, sample: int, progress: Progress) -> ImageAudit:
    """Audit the pixels and the subjects of a sample of cached images.

    Parameters
    ----------
    images
        The images.
    sample
        Largest number of images of each label, at least 1.
    progress
        Receives the stage.

    Raises
    ------
    IntegrityError
        If an image is missing in the cache, or a shard is damaged.
    """
    chosen = choose_evenly_of_table(images.rows, sample)
    shown = set(choose_evenly([row.file for row in chosen], [row.key for row in chosen], min(sample, CONTENT_SAMPLE)))
    facts: list[PixelFacts] = []
    hashes: list[PerceptualHash | None] = []
    squares: dict[int, NDArray[np.uint8]] = {}
    progress.start(_STAGE, len(chosen))
    for start in range(0, len(chosen), _AT_ONCE):
        block = chosen[start : start + _AT_ONCE]
        pixels = gather(images.store, [row.key for row in block]).transpose(0, 2, 3, 1)
        for number, (row, picture) in enumerate(zip(block, map(np.ascontiguousarray, pixels), strict=True), start):
            facts.append(_measured(picture, row, images))
            hashes.append(perceptual_hash_of(picture))
            if number in shown:
                squares[number] = square(picture)
        progress.advance(_STAGE, len(block))
    group = _groups([row.key for row in chosen], hashes)
    rows = [
        AuditRow(row.file, row.key, None, together, fact, squares.get(number))
        for number, (row, together, fact) in enumerate(zip(chosen, group, facts, strict=True))
    ]
    checks = tuple(Check.model_validate(check) for check in pixel_checks(rows))
    content = check_content([row for row in rows if row.square is not None])
    fake = sum(row.file.label for row in chosen)
    return ImageAudit(
        dataset=images.record.dataset,
        revision=images.record.revision,
        fingerprint=images.store.fingerprint,
        size=images.size,
        harmonize=images.harmonize,
        real=len(chosen) - fake,
        fake=fake,
        found=any(check.found for check in checks),
        sentence=_sentence(checks),
        checks=checks,
        content=ContentCheck.model_validate(content),
        not_checked=tuple(_not_checked(images, len(chosen), facts)),
    )


def store_audit(cache: Cache, audit: ImageAudit) -> str:
    """Store an audit in the cache; return why it was not, or nothing."""
    try:
        cache.datasets().put_image_audit(audit)
    except (OSError, UserError) as error:  # such as a cache that may only be read: the audit itself is there
        return f"The audit of the cached images is not kept for reports: {error}"
    return ""


def _jpeg_quality(setting: object, codec: str, quality: str) -> int:
    """Return the quality of a setting of a spec that compresses as JPEG, 0 for any other, from these of its fields."""
    if not isinstance(setting, Mapping) or setting.get(codec) != "jpeg":
        return 0
    found = setting.get(quality)
    return int(found) if isinstance(found, (int, float)) else 0


def _measured(picture: NDArray[np.uint8], row: ScannedRow, images: CachedImages) -> PixelFacts:
    """Measure an image, knowing its own last compression where it was not resized since."""
    if images.perturbed:
        return measure_pixels(picture, standard_table(images.perturbed))
    if min(row.width, row.height) != images.size:
        return measure_pixels(picture)
    if harmonized := _jpeg_quality(images.store.spec.get("harmonize"), "codec", "quality"):
        return measure_pixels(picture, standard_table(harmonized))
    found = measure_pixels(picture)
    # the grid of a JPEG's own compression depends on the content, as in `checks`
    return replace(found, own_quality=found.earlier_quality) if row.format == "jpeg" else found


def _groups(keys: Sequence[str], hashes: Sequence[PerceptualHash | None]) -> list[int]:
    """Return the number of each image's group: the same bytes, and near duplicates, are together."""
    kept = [number for number, found in enumerate(hashes) if found is not None]
    near = near_pairs([found for found in hashes if found is not None])
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    same = [(first[key], number) for number, key in enumerate(keys) if first[key] != number]
    return groups(len(keys), [*same, *((kept[a], kept[b]) for a, b in near)])


def _sentence(checks: Sequence[Check]) -> str:
    """Return a sentence for the first finding; the check of all images comes first."""
    found = next((check for check in checks if check.found and check.interval is not None), None)
    if found is None or found.interval is None or found.auc is None:
        return ""
    where = "" if found.part == "all" else f" ({found.part})"
    by = "".join(f", by {carrier.words}" for carrier in found.carried_by[:1])
    low, high = found.interval
    return (
        f"Real and generated images{where} can be told apart by traces in the cached pixels, with an AUC of {found.auc:.2f} "
        f"({low:.2f} to {high:.2f}){by}."
    )


def _not_checked(images: CachedImages, drawn: int, facts: Sequence[PixelFacts]) -> list[str]:
    found = []
    if drawn < len(images.rows):
        found.append(f"{len(images.rows) - drawn:,} of {len(images.rows):,} cached images, which were not drawn.")
    without = sum(fact.grid is None for fact in facts)
    if without:
        found.append(f"8x8 grid and resampling of {without:,} cached images, which are below 64 pixels.")
    if images.others:
        found.append(
            f"{images.others:,} other features of images that builds of this revision have; --build names a build."
        )
    found.append("Features that are computed from the images, such as eps and DIRE.")
    return found
