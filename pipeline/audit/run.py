"""Audit a dataset: can the label be predicted without the content of the images, and how far by their content?

A detector trained on JPEG photographs and PNG generations learns to tell JPEG from PNG. The audit reads the sources as
a build does. It measures how well headers (:mod:`.header_features`) and traces in the pixels (:mod:`.pixel_features`)
predict the label (:mod:`.classify`), and finds duplicates (:mod:`.duplicates`). Of a dataset in a cache it examines the
cached images (:mod:`.cached`), which need no sources, and its source files as far as they are still there. The content
check (:mod:`.content`) is reported and not judged.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ...cache.records.audit import Check
from ...cache.records.image_audit import ImageAudit
from ...cache.store import Cache
from ...choices import AUDIT_SAMPLE
from ...errors import UsageError, UserError
from ...progress import Progress, Silent
from ...storage import AnyPath, to_path
from ..accounting import account_for, notes_of, warnings_of
from ..scan.rows import RowTable, scanned_rows
from ..sources.discover import discover
from ..sources.file import AS_RECOGNISED
from ..sources.reading import parse_reading
from ..sources.recorded import with_members
from .cached import CachedImages, audit_images, builds_of, cached_images, store_audit
from .checks import AuditRow, choose_evenly, header_checks
from .content import check_content
from .files import HEADER_SAMPLE, ScannedFiles, audit_files, scan_files
from .header_features import OUTLIVING_FEATURES, HeaderFacts, header_facts

__all__ = ["AuditRow", "HeaderFacts", "audit_rows", "header_facts", "run_audit"]

_ALWAYS_UNCHECKED = (
    "Traces that are neither an earlier JPEG nor an 8x8 grid nor a resampling peak, such as those of a generator's own layers.",
    "Flaws of few images: a check needs an AUC of 0.6, for instance by one image of five.",
)


def audit_rows(rows: Sequence[AuditRow]) -> list[dict[str, Any]]:
    """Judge headers only, for a program that has the header facts of its files.

    At most HEADER_SAMPLE rows of each label are judged.

    Returns
    -------
    list of dict
        One entry per check (all rows, each split, each generator): ``part``, ``features``, counts, ``auc``,
        ``interval``, ``found``, and in ``carried_by`` the features that predict the label. With too few images, ``auc``
        is None and ``reason`` says why.
    """
    indices = choose_evenly([row.file for row in rows], [row.key for row in rows], HEADER_SAMPLE)
    return header_checks([rows[index] for index in indices])


def run_audit(
    sources: Sequence[AnyPath | str] = (),
    *,
    layout: str | None = None,
    labels: str | None = None,
    columns: str | None = None,
    path_prefix: Sequence[str] = (),
    cache: AnyPath | str | None = None,
    dataset: str | None = None,
    build: str | None = None,
    sample: int = AUDIT_SAMPLE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Audit sources (folders, tables, tars), or the cached images and the source files of a dataset in a cache.

    The audit of cached images is stored in the cache, for evaluations and reports.

    Parameters
    ----------
    sources
        Paths or URLs; or else ``cache`` and ``dataset``.
    layout
        Layout of the sources; None to recognise it.
    labels, columns, path_prefix
        How to read the sources, as the options of a build say; see :func:`..sources.reading.parse_reading`.
    cache, dataset
        The dataset that is audited.
    build
        Build whose images are examined; by default the newest one that has images.
    sample
        Largest number of images of each label whose pixels are measured; 0 for none.
    progress
        Receives the stages.

    Returns
    -------
    dict
        The findings, ready for JSON. ``checks`` are those of the files; ``images`` is the audit of the cached images or
        None, and ``harmonize`` the compression that all of them got first; ``content`` says how far subject matter
        tells the classes; ``not_checked`` lists what was not looked at. ``found`` says whether the label can be
        predicted by any check that counts; ``removed`` names the features of headers that ``--harmonize`` took away.
        ``set_aside`` lists files that could not be used, with the reason, ``accounts`` says where every file of the
        sources went (for a dataset: as its build recorded it), ``warnings`` what was not taken.

    Raises
    ------
    UsageError
        If it is not clear what to audit.
    UserError
        If a source cannot be listed, or a class has no usable image.
    """
    if sample < 0:
        raise UsageError(f"--sample {sample}: must be 0 or more.")
    started = time.monotonic()
    progress = progress or Silent()
    reading = parse_reading(labels, columns, path_prefix)
    if bool(sources) == (cache is not None or dataset is not None):
        raise UsageError("Give either sources, or --cache and --dataset.")
    if sources:
        if build is not None:
            raise UsageError("--build belongs to --cache and --dataset.")
        found = [discover(to_path(source), layout, reading) for source in sources]
        files = [file for source in found for file in source.files]
        scanned = scan_files(files, {}, progress)
        if not scanned.has_both_classes:
            raise _one_class(", ".join(map(str, sources)), scanned)
        result, sampled, undecodable = audit_files(scanned, sample, progress, harmonized=False)
        accounts = account_for(
            found,
            len(scanned.scan.rows) - len(undecodable),
            [*scanned.scan.rejects, *undecodable],
            scanned.scan.leaks,
        )
        shown = [row for row in sampled if row.square is not None]
        content = check_content(shown) if shown else None
        return {
            "sources": [str(source) for source in sources],
            "accounts": [account.model_dump(mode="json") for account in accounts.sources],
            "warnings": warnings_of(accounts),
            "notes": notes_of(accounts),
            "files": len(files),
            **result,
            "images": None,
            "harmonize": "",
            "content": content,
            "removed": [],
            "found": any(check["found"] for check in result["checks"]),
            "not_checked": [*_unchecked_files(result, sample), *_ALWAYS_UNCHECKED],
            "seconds": time.monotonic() - started,
        }
    if cache is None or dataset is None:
        raise UsageError("--cache and --dataset belong together.")
    if layout is not None or reading != AS_RECOGNISED:
        raise UsageError(
            "--layout, --labels, --columns and --path-prefix belong to sources; a dataset knows its files."
        )
    return {
        **_audit_dataset(Cache.open(cache), dataset, build, sample, progress),
        "seconds": time.monotonic() - started,
    }


def _audit_dataset(cache: Cache, dataset: str, build: str | None, sample: int, progress: Progress) -> dict[str, Any]:
    """Audit the cached images of a dataset, and its source files as far as they are there."""
    store = cache.datasets()
    named = builds_of(cache, dataset, build)
    revision = named[-1].revision if named else store.head(dataset)
    rows = RowTable.of(scanned_rows(store.pieces(dataset, revision)))
    images = cached_images(cache, dataset, build, rows)
    audit = audit_images(images, sample, progress) if images is not None and sample else None
    harmonize = images.harmonize if images is not None else ""

    expected = dict(zip(with_members([row.file for row in rows]), (row.key for row in rows), strict=True))
    scanned = scan_files(list(expected), expected, progress)
    if not scanned.has_both_classes and audit is None:
        raise _one_class(f"dataset {dataset}", scanned)
    checked: dict[str, Any] = {
        "real": sum(row.file.label == 0 for row in scanned.rows),
        "fake": sum(row.file.label == 1 for row in scanned.rows),
        "checks": [],
        "told": [],
        "pixels": None,
        "duplicates": None,
        "set_aside": scanned.rejects,
    }
    unchecked = [_headers_unchecked(cache, dataset, revision, scanned, len(expected))]
    if scanned.has_both_classes:
        checked, _, _ = audit_files(scanned, sample, progress, harmonized=bool(harmonize))
        unchecked = _unchecked_files(checked, sample)
        if audit is not None:
            sizes = [Check.model_validate(check) for check in checked["checks"] if check["features"] == "size"]
            audit = audit.model_copy(update={"sizes": tuple(sizes)})
    accounts = store.sources(dataset, revision) or account_for(
        [], len(scanned.scan.rows), scanned.scan.rejects, scanned.scan.leaks
    )
    unkept = [] if audit is None else [store_audit(cache, audit)]
    return {
        "sources": [f"dataset {dataset} of {cache.root}"],
        "accounts": [account.model_dump(mode="json") for account in accounts.sources],
        "warnings": [*warnings_of(accounts), *(text for text in unkept if text)],
        "notes": notes_of(accounts),
        "files": len(expected),
        **checked,
        "images": None if audit is None else audit.model_dump(mode="json"),
        "harmonize": harmonize,
        "content": None if audit is None or audit.content is None else audit.content.model_dump(mode="json"),
        "removed": _removed(checked["checks"]) if harmonize else [],
        "found": _counts(checked["checks"], harmonize) or (audit is not None and audit.found),
        "not_checked": [*unchecked, *_unchecked_images(audit, images, sample), *_ALWAYS_UNCHECKED],
    }


def _counts(checks: Sequence[dict[str, Any]], harmonize: str) -> bool:
    """Return whether a finding in the files counts: after a compression of all images, only what outlives it does."""
    counting = ("size",) if harmonize else ("headers", "pixels")
    return any(check["found"] for check in checks if check["features"] in counting)


def _removed(checks: Sequence[dict[str, Any]]) -> list[str]:
    """Return the features of headers that give the label away and do not outlive ``--harmonize``, each once."""
    found = [
        carrier["feature"]
        for check in checks
        if check["features"] == "headers" and check["found"]
        for carrier in check["carried_by"]
    ]
    return [name for name in dict.fromkeys(found) if name not in OUTLIVING_FEATURES]


def _headers_unchecked(cache: Cache, dataset: str, revision: str, scanned: ScannedFiles, files: int) -> str:
    """Say that the files could not be examined, and what the dataset's build found in them."""
    recorded = cache.datasets().audit(dataset, revision)
    then = "Its build checked no headers."
    if recorded is not None:
        then = f"Its build found: {recorded.sentence}" if recorded.found else "Its build found no sign in them."
    first = f" (the first: {scanned.rejects[0]['path']}: {scanned.rejects[0]['reason']})" if scanned.rejects else ""
    return (
        f"Headers, pixels and duplicates of the source files: {len(scanned.rows):,} of {files:,} are there and unchanged{first}. "
        f"{then}"
    )


def _unchecked_files(result: dict[str, Any], sample: int) -> list[str]:
    if not sample:
        return ["Pixels and subject matter (--sample 0)."]
    pixels, usable = result["pixels"], result["real"] + result["fake"]
    found = []
    if pixels["measured"] < usable:
        found.append(
            f"Pixels of {usable - pixels['measured']:,} of {usable:,} files, which were not drawn or not measured."
        )
    if pixels["without_spectrum"]:
        found.append(f"8x8 grid and resampling of {pixels['without_spectrum']:,} files, which are below 64 pixels.")
    return found


def _unchecked_images(audit: ImageAudit | None, images: CachedImages | None, sample: int) -> list[str]:
    if audit is not None:
        return list(audit.not_checked)
    if not sample:
        return ["Cached images (--sample 0)."]
    return ["Cached images: no build of this revision has any."] if images is None else []


def _one_class(name: str, scanned: ScannedFiles) -> UserError:
    rejects = scanned.rejects
    first = (
        f" {len(rejects):,} files cannot be used; the first: {rejects[0]['path']}: {rejects[0]['reason']}."
        if rejects
        else ""
    )
    return UserError(f"{name}: needs usable images of both classes.{first}")
