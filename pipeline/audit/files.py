"""The part of an audit that reads files: their headers, the pixels of a sample of them, and duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...images.file import ImageRejected, rejection
from ...images.upright import load_rgb
from ...progress import Progress
from ..scan.conflicts import Reject
from ..scan.rows import ScannedRow
from ..scan.scan import ScanResult, scan
from ..sources.file import SourceFile, printable
from ..sources.read import read_source, readers
from .checks import AuditRow, all_checks, choose_evenly, judge_content_features
from .content import CONTENT_SAMPLE
from .duplicates import PerceptualHash, groups, near_pairs, perceptual_hash
from .embedding import square
from .header_features import row_facts
from .pixel_features import PIXEL_LIMITS, PixelFacts, luminance_steps, measure_pixels

HEADER_SAMPLE = 5000
"""Largest number of files of each label whose headers are judged."""

DUPLICATE_SAMPLE = 10_000
"""Largest number of images of each label that are compared for near duplicates."""

_SHOWN = 20
_WORKERS = 4
_NOT_MEASURED = ("too-small", "too-large")

T = TypeVar("T")
_RejectedFile = tuple[SourceFile, ImageRejected]


@dataclass(frozen=True)
class ScannedFiles:
    """The files of an audit after their scan.

    Attributes
    ----------
    scan
        What the scan found.
    rows
        The usable files, without those that changed since a build.
    rejects
        The others, each with ``path``, ``reason`` and ``detail``.
    """

    scan: ScanResult
    rows: list[ScannedRow]
    rejects: list[dict[str, str]]

    @property
    def has_both_classes(self) -> bool:
        """Whether there are usable files of both classes."""
        return len({row.file.label for row in self.rows}) == 2


class Examined(NamedTuple):
    """What is kept of a decoded image: its pixel features, and its square, if its content is to be examined."""

    pixels: PixelFacts
    square: NDArray[np.uint8] | None


def scan_files(files: Sequence[SourceFile], expected: dict[SourceFile, str], progress: Progress) -> ScannedFiles:
    """Scan files; ``expected`` has the key of those that a build recorded."""
    scanned = scan(files, workers=_WORKERS, progress=progress)
    rejects = [_reject(reject.path, reject.reason, reject.detail) for reject in scanned.rejects]
    rejects += [
        _reject(printable(row.file.location), "changed", "the file is not the one that was built from")
        for row in scanned.rows
        if expected.get(row.file, row.key) != row.key
    ]
    return ScannedFiles(scanned, [row for row in scanned.rows if expected.get(row.file, row.key) == row.key], rejects)


def audit_files(
    found: ScannedFiles, sample: int, progress: Progress, *, harmonized: bool
) -> tuple[dict[str, Any], list[AuditRow], list[Reject]]:
    """Audit scanned files of both classes.

    Parameters
    ----------
    found
        The files.
    sample
        Largest number of images of each label whose pixels are measured; 0 for none.
    progress
        Receives the stages.
    harmonized
        Judge also what outlives a compression of all images.

    Returns
    -------
    dict
        ``real``, ``fake``, ``checks``, ``told``, ``pixels``, ``duplicates`` and ``set_aside`` of the result.
    list of AuditRow
        The files whose headers were judged; those whose pixels were have them, and some their square.
    list of Reject
        The files that could be scanned and not decoded.
    """
    near, group, unread = near_duplicates(found.rows, progress)
    sampled, unreadable = read_sample(found.rows, group, sample, progress)
    failed = {
        file.location: (file, error) for file, error in [*unread, *unreadable] if error.reason not in _NOT_MEASURED
    }
    result = {
        "real": sum(row.file.label == 0 for row in found.rows),
        "fake": sum(row.file.label == 1 for row in found.rows),
        "checks": all_checks(sampled, harmonized=harmonized),
        "told": judge_content_features(sampled),
        "pixels": {
            "measured": sum(row.pixels is not None for row in sampled),
            "without_spectrum": sum(row.pixels is not None and row.pixels.grid is None for row in sampled),
            "not_measured": dict(Counter(error.reason for _, error in unreadable)),
        },
        "duplicates": {**_exact(found.rows, found.scan), **near},
        "set_aside": [
            *found.rejects,
            *(_reject(printable(file.location), error.reason, error.detail) for file, error in failed.values()),
        ],
    }
    return result, sampled, [Reject.of(file, error.reason, error.detail) for file, error in failed.values()]


def read_sample(
    rows: Sequence[ScannedRow], group: dict[str, int], sample: int, progress: Progress
) -> tuple[list[AuditRow], list[_RejectedFile]]:
    """Return audit rows for a sample, and the files that could not be read.

    ``sample`` rows of each label have pixel features, and the first CONTENT_SAMPLE of these their square.
    """
    files, keys = [row.file for row in rows], [row.key for row in rows]
    indices = choose_evenly(files, keys, max(HEADER_SAMPLE, sample))
    chosen = choose_evenly(files, keys, sample)
    shown = {keys[index] for index in choose_evenly(files, keys, min(sample, CONTENT_SAMPLE))}

    def examine(row: ScannedRow) -> Examined:
        return _examined(row, with_square=row.key in shown)

    read = dict(zip(chosen, _read([rows[index] for index in chosen], examine, "pixels", progress), strict=True))
    sampled = []
    for index in indices:
        row, found, facts = rows[index], read.get(index), row_facts(rows[index])
        pixels, content = found if isinstance(found, Examined) else (None, None)
        if facts is not None:
            sampled.append(AuditRow(row.file, row.key, facts, group[row.key], pixels, content))
    return sampled, [(rows[index].file, found) for index, found in read.items() if isinstance(found, ImageRejected)]


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


def _examined(row: ScannedRow, with_square: bool) -> Examined:
    data = read_source(row.file, row.key)
    pixels = load_rgb(data, PIXEL_LIMITS)
    return Examined(measure_pixels(pixels, luminance_steps(data)), square(pixels) if with_square else None)


def _hash(row: ScannedRow) -> PerceptualHash | None:
    return perceptual_hash(read_source(row.file, row.key))


def _reject(path: str, reason: str, detail: str) -> dict[str, str]:
    return {"path": path, "reason": reason, "detail": detail}
