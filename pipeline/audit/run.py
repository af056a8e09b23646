"""Audit a dataset: can the label be predicted without the content of the images?

A detector trained on JPEG photographs and PNG generations learns to tell JPEG from PNG. The audit reads the sources as
a build does. It measures how well headers (:mod:`.header_features`) and traces in the pixels (:mod:`.pixel_features`)
predict the label (:mod:`.classify`), and finds duplicates (:mod:`.duplicates`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ...cache.store import Cache
from ...choices import AUDIT_SAMPLE
from ...errors import UsageError, UserError
from ...images.file import ImageRejected, rejection
from ...progress import Progress, Silent
from ...storage import AnyPath, to_path
from ..accounting import account_for, notes_of, warnings_of
from ..scan.conflicts import Reject
from ..scan.rows import ScannedRow
from ..scan.scan import ScanResult, scan
from ..sources.discover import discover
from ..sources.file import AS_RECOGNISED, DiscoveredSource, ReadingOptions, SourceFile, printable
from ..sources.read import read_source, readers
from ..sources.reading import parse_reading
from ..sources.recorded import with_members
from .checks import AuditRow, all_checks, choose_evenly, header_checks, judge_content_features
from .duplicates import PerceptualHash, groups, near_pairs, perceptual_hash
from .header_features import HeaderFacts, header_facts, row_facts
from .pixel_features import PixelFacts, pixel_facts

__all__ = ["AuditRow", "HeaderFacts", "audit_rows", "header_facts", "run_audit"]

HEADER_SAMPLE = 5000
"""Largest number of files of each label whose headers are judged."""

DUPLICATE_SAMPLE = 10_000
"""Largest number of images of each label that are compared for near duplicates."""

_SHOWN = 20
_WORKERS = 4
_NOT_MEASURED = ("too-small", "too-large")

T = TypeVar("T")
_RejectedFile = tuple[SourceFile, ImageRejected]


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
    sample: int = AUDIT_SAMPLE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Audit sources (folders, tables, tars), or the source files of a dataset in a cache.

    Parameters
    ----------
    sources
        Paths or URLs; or else ``cache`` and ``dataset``.
    layout
        Layout of the sources; None to recognise it.
    labels, columns, path_prefix
        How to read the sources, as the options of a build say; see :func:`..sources.reading.parse_reading`.
    cache, dataset
        The dataset whose source files are audited.
    sample
        Largest number of images of each label whose pixels are measured; 0 for none.
    progress
        Receives the stages.

    Returns
    -------
    dict
        The findings, ready for JSON. ``found`` says whether any check found that the label can be predicted;
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
    found, files, expected = _files(sources, layout, reading, cache, dataset)
    scanned = scan(files, workers=_WORKERS, progress=progress)
    rejects = [_reject(reject.path, reject.reason, reject.detail) for reject in scanned.rejects]
    rows = [row for row in scanned.rows if expected.get(row.file, row.key) == row.key]
    rejects += [
        _reject(printable(row.file.location), "changed", "the file is not the one that was built from")
        for row in scanned.rows
        if expected.get(row.file, row.key) != row.key
    ]
    if len({row.file.label for row in rows}) < 2:
        raise UserError(f"{_names(sources, dataset)}: needs usable images of both classes.{_first(rejects)}")

    near, group, unread = near_duplicates(rows, progress)
    sampled, unreadable = read_sample(rows, group, sample, progress)
    failed = {
        file.location: (file, error) for file, error in [*unread, *unreadable] if error.reason not in _NOT_MEASURED
    }
    rejects += [_reject(printable(file.location), error.reason, error.detail) for file, error in failed.values()]
    undecodable = [Reject.of(file, error.reason, error.detail) for file, error in failed.values()]
    accounts = account_for(found, len(scanned.rows) - len(undecodable), [*scanned.rejects, *undecodable], scanned.leaks)
    if cache is not None and dataset is not None:
        accounts = Cache.open(cache).datasets().sources(dataset) or accounts
    checks = all_checks(sampled)
    return {
        "sources": [str(source) for source in sources] if sources else [f"dataset {dataset} of {cache}"],
        "accounts": [account.model_dump(mode="json") for account in accounts.sources],
        "warnings": warnings_of(accounts),
        "notes": notes_of(accounts),
        "files": len(files),
        "real": sum(row.file.label == 0 for row in rows),
        "fake": sum(row.file.label == 1 for row in rows),
        "found": any(check["found"] for check in checks),
        "checks": checks,
        "told": judge_content_features(sampled),
        "pixels": {
            "measured": sum(row.pixels is not None for row in sampled),
            "without_spectrum": sum(row.pixels is not None and row.pixels.grid is None for row in sampled),
            "not_measured": dict(Counter(error.reason for _, error in unreadable)),
        },
        "duplicates": {**_exact(rows, scanned), **near},
        "set_aside": rejects,
        "seconds": time.monotonic() - started,
    }


def _files(
    sources: Sequence[AnyPath | str],
    layout: str | None,
    reading: ReadingOptions,
    cache: AnyPath | str | None,
    dataset: str | None,
) -> tuple[list[DiscoveredSource], list[SourceFile], dict[SourceFile, str]]:
    """Return the sources, the files to audit, and for a dataset the recorded key of each."""
    if bool(sources) == (cache is not None or dataset is not None):
        raise UsageError("Give either sources, or --cache and --dataset.")
    if sources:
        found = [discover(to_path(source), layout, reading) for source in sources]
        return found, [file for source in found for file in source.files], {}
    if cache is None or dataset is None:
        raise UsageError("--cache and --dataset belong together.")
    if layout is not None or reading != AS_RECOGNISED:
        raise UsageError(
            "--layout, --labels, --columns and --path-prefix belong to sources; a dataset knows its files."
        )
    rows = Cache.open(cache).datasets().read(dataset).to_pylist()
    recorded = [
        SourceFile(
            row["source"], row["path"], row["label"], row["split"], row["generator"], row["family"], row["group"]
        )
        for row in rows
    ]
    expected = dict(zip(with_members(recorded), (row["key"] for row in rows), strict=True))
    return [], list(expected), expected


def read_sample(
    rows: Sequence[ScannedRow], group: dict[str, int], sample: int, progress: Progress
) -> tuple[list[AuditRow], list[_RejectedFile]]:
    """Return audit rows for a sample, with pixel features for a part of it, and the files that could not be read."""
    files, keys = [row.file for row in rows], [row.key for row in rows]
    indices = choose_evenly(files, keys, max(HEADER_SAMPLE, sample))
    chosen = choose_evenly(files, keys, sample)
    pixels = dict(zip(chosen, _read([rows[index] for index in chosen], _pixels, "pixels", progress), strict=True))
    sampled = [
        AuditRow(rows[index].file, rows[index].key, fact, group[rows[index].key], _facts_or_none(pixels.get(index)))
        for index in indices
        if (fact := row_facts(rows[index])) is not None
    ]
    return sampled, [(rows[index].file, found) for index, found in pixels.items() if isinstance(found, ImageRejected)]


def near_duplicates(
    rows: Sequence[ScannedRow], progress: Progress
) -> tuple[dict[str, Any], dict[str, int], list[_RejectedFile]]:
    """Find near duplicates among different files.

    Returns
    -------
    dict
        The counts and examples for the result.
    dict of str to int
        Key -> number of its group of near duplicates.
    list of (SourceFile, ImageRejected)
        Files that could not be read.
    """
    distinct = list({row.key: row for row in rows}.values())
    compared = [
        distinct[index]
        for index in choose_evenly([row.file for row in distinct], [row.key for row in distinct], DUPLICATE_SAMPLE)
    ]
    results = _read(compared, _hash, "near duplicates", progress)
    kept = [(row, found) for row, found in zip(compared, results, strict=True) if isinstance(found, PerceptualHash)]
    pairs = near_pairs([found for _, found in kept])
    files = [(kept[a][0].file, kept[b][0].file) for a, b in pairs]
    number = {row.key: index for index, row in enumerate([row for row, _ in kept])}
    leaders = groups(len(kept), pairs)
    group = {
        row.key: leaders[number[row.key]] if row.key in number else len(kept) + n for n, row in enumerate(distinct)
    }
    across = [(a, b) for a, b in files if a.label != b.label or a.split != b.split]
    counts = {
        "compared": len(compared),
        "near_pairs": len(pairs),
        "near_across_labels": sum(a.label != b.label for a, b in files),
        "near_across_splits": sum(a.split != b.split for a, b in files),
        "near_examples": [[printable(a.location), printable(b.location)] for a, b in across[:_SHOWN]],
    }
    rejected = [
        (row.file, error) for row, error in zip(compared, results, strict=True) if isinstance(error, ImageRejected)
    ]
    return counts, group, rejected


def _exact(rows: Sequence[ScannedRow], scanned: ScanResult) -> dict[str, Any]:
    repeated = sum(count - 1 for count in Counter((row.key, row.file.generator) for row in rows).values())
    return {
        "same_bytes_both_labels": scanned.label_conflicts,
        "same_bytes_across_splits": len(scanned.leaks),
        "same_bytes_repeated": repeated,
    }


def _read(
    rows: Sequence[ScannedRow], examine: Callable[[ScannedRow], T], stage: str, progress: Progress
) -> list[T | ImageRejected]:
    """Apply ``examine`` to files, several at a time; returns its results in order, or the rejection of a file."""

    def read_one(row: ScannedRow) -> T | ImageRejected:
        try:
            return examine(row)
        except Exception as error:  # whatever it is, it costs this file alone
            return rejection(b"", error)

    progress.start(stage, len(rows))
    found = []
    with ThreadPoolExecutor(readers((row.file for row in rows), _WORKERS)) as pool:
        for result in pool.map(read_one, rows):
            found.append(result)
            progress.advance(stage, 1)
    return found


def _pixels(row: ScannedRow) -> PixelFacts:
    return pixel_facts(read_source(row.file, row.key))


def _hash(row: ScannedRow) -> PerceptualHash | None:
    return perceptual_hash(read_source(row.file, row.key))


def _facts_or_none(found: PixelFacts | ImageRejected | None) -> PixelFacts | None:
    return found if isinstance(found, PixelFacts) else None


def _reject(path: str, reason: str, detail: str) -> dict[str, str]:
    return {"path": path, "reason": reason, "detail": detail}


def _names(sources: Sequence[AnyPath | str], dataset: str | None) -> str:
    return ", ".join(str(source) for source in sources) or f"dataset {dataset}"


def _first(rejects: Sequence[dict[str, str]]) -> str:
    return (
        f" {len(rejects):,} files cannot be used; the first: {rejects[0]['path']}: {rejects[0]['reason']}."
        if rejects
        else ""
    )
