"""Scanning: the files of the sources to rows of a dataset, with each file's key, size and format.

Every file is read whole, hashed, and its header parsed. No pixel is decoded here: that a file ends too early comes to
light in the decoder. What was learnt is remembered by (path, size, modification time), and a scan of unchanged files
opens none of them. An image in a tar is remembered by its place in it and the tar's size and time. A file that was
rewritten with its old size and time goes unnoticed until its pixels are wanted, or until ``rehash``; its stale key does
no harm, as :func:`read_source` compares the key again before anything is computed, and the build that finds it wrong
lets the next scan open the file (:func:`forget_files`).

The same bytes with both labels are rejected. The same bytes in several splits stay in test alone (else in val alone).
The same bytes twice with one label in one split are two occurrences and stay two rows. All counts are of files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from ..cache.dataset import SCHEMA
from .image_file import (
    MAX_BYTES,
    MAX_PIXELS,
    MIN_SIDE,
    ImageRejected,
    Limits,
    Reason,
    content_key,
    read_header,
)
from .scan_memory import Finding, forget, recall, remember
from .source_file import SourceFile, is_storable, printable, read_member

_BLOCK = 32
"""Files that a worker takes at a time."""

_PRECEDENCE = ("test", "val", "train")
"""The split that keeps a picture that is in several."""


@dataclass(frozen=True, slots=True)
class ScannedRow:
    """One usable occurrence: the file, the key of its bytes, and width and height in pixels as the picture is shown."""

    file: SourceFile
    key: str
    width: int
    height: int
    format: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Reject:
    """One file that cannot be used: where it lies, a reason of :data:`.image_file.Reason`, and a few words."""

    path: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Resolution:
    """Rows without conflicts, the rejected files, how many these are, and the files left out as leaks."""

    rows: list[ScannedRow]
    rejects: list[Reject]
    label_conflicts: int
    leaks: list[Reject]


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scan found.

    rows, rejects : in the order of the files, conflicts after the others.
    opened : files that were read. remembered : files known from an earlier scan and not opened.
    label_conflicts : files whose bytes carry both labels (they are among the rejects).
    leaks : files left out because their bytes are also in a split that takes precedence; they are not among the rejects.
    """

    rows: list[ScannedRow]
    rejects: list[Reject]
    opened: int
    remembered: int
    label_conflicts: int
    leaks: list[Reject]


def scan(
    files: Sequence[SourceFile],
    *,
    memory: Path | None = None,
    workers: int = 4,
    min_side: int = MIN_SIDE,
    max_pixels: int = MAX_PIXELS,
    rehash: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ScanResult:
    """Read and judge the files, and resolve conflicts between them.

    memory : file that remembers the findings between scans; only a speed-up, so one that is damaged is replaced.
    workers : threads that read. rehash : open every file even if it is remembered.
    min_side, max_pixels : see :class:`.image_file.Limits`. progress : called with (files done, files in all).
    A file that cannot be used becomes a reject; UsageError for limits that could not be kept.
    """
    limits = Limits(max_pixels=max_pixels, min_side=min_side)
    known = {} if memory is None else recall(memory)
    trusted = {} if rehash else known
    findings: dict[bytes, Finding] = {}
    rows: list[ScannedRow] = []
    rejects: list[Reject] = []
    opened = remembered = 0
    for done, (file, place, outcome) in enumerate(_looks(files, trusted, workers), 1):
        if isinstance(outcome, Finding):
            findings[place] = outcome
            remembered += outcome is trusted.get(place)
            opened += outcome is not trusted.get(place)
        verdict = outcome if isinstance(outcome, ImageRejected) else _judge(file, outcome, limits)
        if isinstance(verdict, ImageRejected):
            rejects.append(Reject(printable(file.location), verdict.reason, verdict.detail))
        else:
            rows.append(verdict)
        if progress is not None and (done % _BLOCK == 0 or done == len(files)):
            progress(done, len(files))
    if memory is not None and findings != known:
        remember(memory, findings)
    resolution = resolve_conflicts(rows)
    return ScanResult(
        rows=resolution.rows,
        rejects=rejects + resolution.rejects,
        opened=opened,
        remembered=remembered,
        label_conflicts=resolution.label_conflicts,
        leaks=resolution.leaks,
    )


def resolve_conflicts(rows: Sequence[ScannedRow]) -> Resolution:
    """Reject bytes that carry both labels, and keep bytes that are in several splits in one of them.

    Test comes before val, val before train. Conflicting labels are looked for first, over all splits.
    """
    labels: dict[str, set[int]] = {}
    for row in rows:
        labels.setdefault(row.key, set()).add(row.file.label)
    clear = [row for row in rows if len(labels[row.key]) == 1]
    rejects = [
        Reject(printable(row.file.location), "label-conflict", f"the same bytes are real and fake (key {row.key})")
        for row in rows
        if len(labels[row.key]) > 1
    ]
    keeper: dict[str, str] = {}
    for row in clear:
        keeper[row.key] = min(keeper.get(row.key, row.file.split), row.file.split, key=_PRECEDENCE.index)
    kept = [row for row in clear if row.file.split == keeper[row.key]]
    leaks = [
        Reject(printable(row.file.location), "leaked", f"the same bytes are in {keeper[row.key]} (key {row.key})")
        for row in clear
        if row.file.split != keeper[row.key]
    ]
    return Resolution(kept, rejects, len(rejects), leaks)


def to_table(rows: Sequence[ScannedRow]) -> pa.Table:
    """Return the rows as a table with the columns of :data:`..cache.dataset.SCHEMA`."""
    columns = {
        "key": [row.key for row in rows],
        "source": [row.file.root for row in rows],
        "path": [row.file.path for row in rows],
        "label": [row.file.label for row in rows],
        "split": [row.file.split for row in rows],
        "generator": [row.file.generator for row in rows],
        "family": [row.file.family for row in rows],
        "group": [row.file.group for row in rows],
        "width": [row.width for row in rows],
        "height": [row.height for row in rows],
        "format": [row.format for row in rows],
        "bytes": [row.bytes for row in rows],
    }
    return pa.table(columns, schema=SCHEMA)


def read_source(file: SourceFile, expected_key: str) -> bytes:
    """Return the bytes of a scanned file.

    Raises :class:`.image_file.ImageRejected`: ``changed`` if they are no longer those of ``expected_key``, or
    ``missing``, ``not-a-file``, ``unreadable``, ``changed-while-reading``.
    """
    data, _ = _contents(file)
    if content_key(data) != expected_key:
        raise ImageRejected("changed", "the file is not the one that was scanned: build again")
    return data


def forget_files(memory: Path, files: Iterable[SourceFile]) -> None:
    """Let the next scan open these files, even if size and time are as they were: they turned out to be others."""
    forget(memory, {_place(os.path.abspath(file.root), file) for file in files})  # noqa: PTH100


def _looks(
    files: Sequence[SourceFile], trusted: dict[bytes, Finding], workers: int
) -> Iterator[tuple[SourceFile, bytes, Finding | ImageRejected]]:
    """Yield each file, its place in the memory, and what was found, in order, reading several at a time."""
    roots = {root: os.path.abspath(root) for root in {file.root for file in files}}  # noqa: PTH100

    def look_at(block: Sequence[SourceFile]) -> list[tuple[SourceFile, bytes, Finding | ImageRejected]]:
        found = []
        for file in block:
            place = _place(roots[file.root], file)
            found.append((file, place, _look(file, trusted.get(place))))
        return found

    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        blocks = (files[start : start + _BLOCK] for start in range(0, len(files), _BLOCK))
        for block in pool.map(look_at, blocks):
            yield from block
    finally:
        pool.shutdown(cancel_futures=True)


def _place(root: str, file: SourceFile) -> bytes:
    """Return what the memory calls a file of this absolute root, or an image in a tar there."""
    place = os.fsencode(os.path.join(root, file.path))  # noqa: PTH118
    return place if file.member is None else place + file.member.stamp


def _look(file: SourceFile, known: Finding | None) -> Finding | ImageRejected:
    """Find out about one file, by reading it unless ``known`` still holds."""
    if not is_storable(file.path):
        return ImageRejected("unreadable-name", "the name is not valid UTF-8: rename the file")
    try:
        if known is not None and _holds(known, file):
            return known
        data, mtime_ns = _contents(file)
    except ImageRejected as rejected:
        return rejected
    unread = Finding(len(data), mtime_ns, content_key(data))
    try:
        header = read_header(data)
    except ImageRejected as rejected:
        return replace(unread, reason=rejected.reason, detail=rejected.detail)
    return replace(unread, width=header.width, height=header.height, format=header.format)


def _holds(known: Finding, file: SourceFile) -> bool:
    """Say whether a file is as it was when it was read; of a tar, what counts is how it was when it was listed."""
    if file.member is None:
        return known.fits(_status(file.location))
    return (known.size, known.mtime_ns) == (file.member.length, file.member.tar_mtime_ns)


def _contents(file: SourceFile) -> tuple[bytes, int]:
    """Return an image's bytes and the modification time of the file that holds them. Raises ImageRejected."""
    if file.member is not None:
        return read_member(file.root, file.member), file.member.tar_mtime_ns
    data, status = read_stable(file.location)
    return data, status.st_mtime_ns


def _judge(file: SourceFile, found: Finding, limits: Limits) -> ScannedRow | ImageRejected:
    rejected = found.rejected()
    if rejected is not None:
        return rejected
    try:
        limits.check(found.width, found.height)
    except ImageRejected as outside:
        return outside
    return ScannedRow(file, found.key, found.width, found.height, found.format, found.size)


def _status(location: str) -> os.stat_result:
    """Return the file's status. Raises ImageRejected if it is absent, no regular file, or out of reach."""
    try:
        status = os.stat(location)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        raise ImageRejected("missing", "there is no such file") from None
    except OSError as error:
        raise ImageRejected("unreadable", error.strerror or str(error)) from None
    if not stat.S_ISREG(status.st_mode):
        raise ImageRejected("not-a-file", "it is a folder or a device")
    return status


def read_stable(location: str) -> tuple[bytes, os.stat_result]:
    """Read a whole file that nobody writes meanwhile; a second time if somebody did.

    Returns its bytes and the status that belongs to them. Raises ImageRejected.
    """
    size = _status(location).st_size
    if size > MAX_BYTES:
        raise ImageRejected("too-large", f"a file of {size:,} bytes, more than {MAX_BYTES:,}")
    try:
        for _ in range(2):
            with open(location, "rb", buffering=0) as file:  # noqa: PTH123
                before = os.fstat(file.fileno())
                data = file.read()
                after = os.fstat(file.fileno())
            if len(data) == before.st_size == after.st_size and before.st_mtime_ns == after.st_mtime_ns:
                return data, after
    except OSError as error:
        raise ImageRejected("unreadable", error.strerror or str(error)) from None
    raise ImageRejected("changed-while-reading", "another program is writing it: build again when it has finished")
