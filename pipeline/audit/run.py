"""Audit of a dataset: can the label be told without looking at what the images show?

A detector that is trained on JPEG photographs and PNG generations learns to tell JPEG from PNG. The audit reads the
sources as a build does, and asks of headers (:mod:`.header_features`) and of traces in the pixels (:mod:`.pixel_features`)
how well they tell the label (:mod:`.classify`); and it looks for images that are there twice
(:mod:`.duplicates`).
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
from ...images.file import ImageRejected
from ...progress import Progress, Silent, counter
from ...storage import AnyPath, to_path
from ..scan.conflicts import ScannedRow
from ..scan.scan import ScanResult, scan
from ..sources.discover import discover
from ..sources.file import SourceFile, printable
from ..sources.read import read_source, readers
from .checks import AuditRow, all_checks, choose_evenly, header_checks, judge_content_features
from .duplicates import PerceptualHash, groups, near_pairs, perceptual_hash
from .header_features import HeaderFacts, header_facts, row_facts
from .pixel_features import PixelFacts, pixel_facts

__all__ = ["AuditRow", "HeaderFacts", "audit_rows", "header_facts", "run_audit"]

HEADER_SAMPLE = 5000
"""Most files of each label whose headers are judged."""

DUPLICATE_SAMPLE = 10_000
"""Most images of each label that are compared for near duplicates."""

_SHOWN = 20
_WORKERS = 4
_NOT_MEASURED = ("too-small", "too-large")

T = TypeVar("T")
_RejectedFile = tuple[SourceFile, ImageRejected]


def audit_rows(rows: Sequence[AuditRow]) -> list[dict[str, Any]]:
    """Judge headers alone: the cheap part of an audit, for a program that has the facts of its files.

    At most HEADER_SAMPLE rows of each label are judged. Returns one entry a check (all rows, each split, each
    generator): ``part``, ``features``, counts, ``auc``, ``interval``, ``found``, and in ``carried_by`` what tells the
    label, in words. ``auc`` is None and ``reason`` says why where there are too few images.
    """
    places = choose_evenly([row.file for row in rows], [row.key for row in rows], HEADER_SAMPLE)
    return header_checks([rows[place] for place in places])


def run_audit(
    sources: Sequence[AnyPath | str] = (),
    *,
    layout: str | None = None,
    cache: AnyPath | str | None = None,
    dataset: str | None = None,
    sample: int = AUDIT_SAMPLE,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Audit sources (folders, tables, tars), or a dataset of a cache by the places that it was built from.

    sample : most images of each label whose pixels are looked at; 0 for none.
    Returns what was found, ready for JSON; ``found`` says whether a check finds the label given away.
    Files that cannot be used are set aside, each with its reason. Raises UsageError if it is not clear what to audit;
    UserError for a source that cannot be listed, or if no usable image of a class is left.
    """
    if sample < 0:
        raise UsageError(f"--sample {sample}: must be 0 or more.")
    started = time.monotonic()
    progress = progress or Silent()
    files, expected = _files(sources, layout, cache, dataset)
    scanned = scan(files, workers=_WORKERS, progress=counter(progress, "scan"))
    aside = [_aside(reject.path, reject.reason, reject.detail) for reject in scanned.rejects]
    rows = [row for row in scanned.rows if expected.get(row.file, row.key) == row.key]
    aside += [
        _aside(printable(row.file.location), "changed", "the file is not the one that was built from")
        for row in scanned.rows
        if expected.get(row.file, row.key) != row.key
    ]
    if len({row.file.label for row in rows}) < 2:
        raise UserError(f"{_names(sources, dataset)}: needs usable images of both classes.{_first(aside)}")

    near, group, unseen = near_duplicates(rows, progress)
    judged, refused = read_sample(rows, group, sample, progress)
    failed = {file.location: (file, seen) for file, seen in [*unseen, *refused] if seen.reason not in _NOT_MEASURED}
    aside += [_aside(printable(file.location), seen.reason, seen.detail) for file, seen in failed.values()]
    checks = all_checks(judged)
    return {
        "sources": [str(source) for source in sources] if sources else [f"dataset {dataset} of {cache}"],
        "files": len(files),
        "real": sum(row.file.label == 0 for row in rows),
        "fake": sum(row.file.label == 1 for row in rows),
        "found": any(check["found"] for check in checks),
        "checks": checks,
        "told": judge_content_features(judged),
        "pixels": {
            "measured": sum(row.pixels is not None for row in judged),
            "without_spectrum": sum(row.pixels is not None and row.pixels.grid is None for row in judged),
            "not_measured": dict(Counter(seen.reason for _, seen in refused)),
        },
        "duplicates": {**_exact(rows, scanned), **near},
        "set_aside": aside,
        "seconds": time.monotonic() - started,
    }


def _files(
    sources: Sequence[AnyPath | str], layout: str | None, cache: AnyPath | str | None, dataset: str | None
) -> tuple[list[SourceFile], dict[SourceFile, str]]:
    """Return what is to be audited, and the keys that a dataset has recorded."""
    if bool(sources) == (cache is not None or dataset is not None):
        raise UsageError("Give either sources, or --cache and --dataset.")
    if sources:
        return [file for source in sources for file in discover(to_path(source), layout).files], {}
    if cache is None or dataset is None:
        raise UsageError("--cache and --dataset belong together.")
    if layout is not None:
        raise UsageError("--layout belongs to sources; a dataset knows its files.")
    rows = Cache.open(cache).datasets().read(dataset).to_pylist()
    expected = {
        SourceFile(
            row["source"], row["path"], row["label"], row["split"], row["generator"], row["family"], row["group"]
        ): row["key"]
        for row in rows
    }
    return list(expected), expected


def read_sample(
    rows: Sequence[ScannedRow], group: dict[str, int], sample: int, progress: Progress
) -> tuple[list[AuditRow], list[_RejectedFile]]:
    """Take the headers of a sample, and read the pixels of a part of it; return these and what could not be read."""
    files, keys = [row.file for row in rows], [row.key for row in rows]
    places = choose_evenly(files, keys, max(HEADER_SAMPLE, sample))
    chosen = choose_evenly(files, keys, sample)
    pixels = dict(zip(chosen, _read([rows[place] for place in chosen], _pixels, "pixels", progress), strict=True))
    judged = [
        AuditRow(rows[place].file, rows[place].key, fact, group[rows[place].key], _kept(pixels.get(place)))
        for place in places
        if (fact := row_facts(rows[place])) is not None
    ]
    return judged, [(rows[place].file, seen) for place, seen in pixels.items() if isinstance(seen, ImageRejected)]


def near_duplicates(
    rows: Sequence[ScannedRow], progress: Progress
) -> tuple[dict[str, Any], dict[str, int], list[_RejectedFile]]:
    """Look for near duplicates among different files; number the groups of keys that look alike; return failures too."""
    one_of = list({row.key: row for row in rows}.values())
    compared = [
        one_of[place] for place in choose_evenly([r.file for r in one_of], [r.key for r in one_of], DUPLICATE_SAMPLE)
    ]
    seen = _read(compared, _look, "near duplicates", progress)
    kept = [(row, look) for row, look in zip(compared, seen, strict=True) if isinstance(look, PerceptualHash)]
    pairs = near_pairs([look for _, look in kept])
    files = [(kept[one][0].file, kept[other][0].file) for one, other in pairs]
    number = {row.key: place for place, row in enumerate([row for row, _ in kept])}
    leaders = groups(len(kept), pairs)
    group = {row.key: leaders[number[row.key]] if row.key in number else len(kept) + n for n, row in enumerate(one_of)}
    across = [(one, other) for one, other in files if one.label != other.label or one.split != other.split]
    found = {
        "compared": len(compared),
        "near_pairs": len(pairs),
        "near_across_labels": sum(one.label != other.label for one, other in files),
        "near_across_splits": sum(one.split != other.split for one, other in files),
        "near_examples": [[printable(one.location), printable(other.location)] for one, other in across[:_SHOWN]],
    }
    refused = [(row.file, look) for row, look in zip(compared, seen, strict=True) if isinstance(look, ImageRejected)]
    return found, group, refused


def _exact(rows: Sequence[ScannedRow], scanned: ScanResult) -> dict[str, Any]:
    repeated = sum(count - 1 for count in Counter((row.key, row.file.generator) for row in rows).values())
    return {
        "same_bytes_both_labels": scanned.label_conflicts,
        "same_bytes_across_splits": len(scanned.leaks),
        "same_bytes_repeated": repeated,
    }


def _read(
    rows: Sequence[ScannedRow], look: Callable[[ScannedRow], T], stage: str, progress: Progress
) -> list[T | ImageRejected]:
    """Read files, several at a time, and look at each; in order, a verdict in the place of what cannot be used."""

    def careful(row: ScannedRow) -> T | ImageRejected:
        try:
            return look(row)
        except ImageRejected as rejected:
            return rejected

    progress.start(stage, len(rows))
    found = []
    with ThreadPoolExecutor(readers((row.file for row in rows), _WORKERS)) as pool:
        for seen in pool.map(careful, rows):
            found.append(seen)
            progress.advance(stage, 1)
    return found


def _pixels(row: ScannedRow) -> PixelFacts:
    return pixel_facts(read_source(row.file, row.key))


def _look(row: ScannedRow) -> PerceptualHash | None:
    return perceptual_hash(read_source(row.file, row.key))


def _kept(seen: PixelFacts | ImageRejected | None) -> PixelFacts | None:
    return seen if isinstance(seen, PixelFacts) else None


def _aside(path: str, reason: str, detail: str) -> dict[str, str]:
    return {"path": path, "reason": reason, "detail": detail}


def _names(sources: Sequence[AnyPath | str], dataset: str | None) -> str:
    return ", ".join(str(source) for source in sources) or f"dataset {dataset}"


def _first(aside: Sequence[dict[str, str]]) -> str:
    return (
        f" {len(aside):,} files were set aside, the first: {aside[0]['path']}: {aside[0]['reason']}." if aside else ""
    )
