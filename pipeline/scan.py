"""Scanning: the files of the sources to rows of a dataset, with each file's key, size and format.

Every file is read whole, hashed, and its header parsed, with what an audit will ask of it. No pixel is decoded here: that
a file ends too early comes to light in the decoder. What was learnt is remembered by (path, size, modification time),
and a scan of unchanged files opens none of them. An image in a tar is remembered by its place in it and the tar's size
and time. A file that was rewritten with its old size and time goes unnoticed until its pixels are wanted, or until
``rehash``; its stale key does no harm, as :func:`read_source` compares the key again before anything is computed, and
the build that finds it wrong lets the next scan open the file (:func:`forget_files`).

Conflicts between files are resolved as :mod:`.scan_rows` says.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .file_facts import read_facts
from .image_file import MAX_BYTES, MAX_PIXELS, MIN_SIDE, ImageRejected, Limits, content_key
from .scan_memory import Finding, forget, recall, remember
from .scan_rows import Reject, Resolution, ScannedRow, resolve_conflicts, to_table
from .source_file import SourceFile, is_storable, printable, read_member

__all__ = [
    "Reject",
    "Resolution",
    "ScanResult",
    "ScannedRow",
    "file_status",
    "forget_files",
    "look_at_file",
    "place_of",
    "read_source",
    "read_stable",
    "resolve_conflicts",
    "scan",
    "to_table",
]

_LARGEST_BLOCK = 256
"""Most files that a worker takes at a time."""

Sight = tuple[SourceFile, bytes, Finding | ImageRejected]
"""A file, its place in the memory, and what was found: the very finding of the memory where the file is unchanged."""
Sights = Callable[[Sequence[SourceFile], Mapping[bytes, Finding]], Iterator[Sequence[Sight]]]
"""Looks at files, in order and in blocks, trusting what is known of some by their place in the memory."""

Look = tuple[bytes, Finding | None, ScannedRow | Reject]
"""What the memory calls a file, what was found in it (nothing if it could not be read), and the verdict."""


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
    sights: Sights | None = None,
) -> ScanResult:
    """Read and judge the files, and resolve conflicts between them.

    memory : file that remembers the findings between scans; only a speed-up, so one that is damaged is replaced.
    workers : threads that read. rehash : open every file even if it is remembered.
    min_side, max_pixels : see :class:`.image_file.Limits`. progress : called with (files done, files in all).
    sights : who looks at the files, in place of ``workers``.
    A file that cannot be used becomes a reject; UsageError for limits that could not be kept.
    """
    limits = Limits(max_pixels=max_pixels, min_side=min_side)
    known = {} if memory is None else recall(memory)
    findings: dict[bytes, Finding] = {}
    rows: list[ScannedRow] = []
    rejects: list[Reject] = []
    opened = remembered = done = 0
    trusted = {} if rehash else known
    if sights is None:
        blocks = _looks(files, trusted, limits, workers)
    else:
        blocks = ([_judge_sight(*sight, limits) for sight in seen] for seen in sights(files, trusted))
    for block in blocks:
        for place, finding, verdict in block:
            if finding is not None:
                findings[place] = finding
                known_before = finding is trusted.get(place)
                remembered += known_before
                opened += not known_before
            if isinstance(verdict, ScannedRow):
                rows.append(verdict)
            else:
                rejects.append(verdict)
        done += len(block)
        if progress is not None:
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
    forget(memory, {place_of(os.path.abspath(file.root), file) for file in files})  # noqa: PTH100


def _looks(
    files: Sequence[SourceFile], trusted: Mapping[bytes, Finding], limits: Limits, workers: int
) -> Iterator[list[Look]]:
    """Yield blocks of looks, in the order of the files, reading several blocks at a time."""
    prefixes = {root: os.path.join(os.path.abspath(root), "") for root in {file.root for file in files}}  # noqa: PTH100, PTH118

    def look_at(block: Sequence[SourceFile]) -> list[Look]:
        found: list[Look] = []
        for file in block:
            place = _place(prefixes[file.root], file)
            found.append(_judge_sight(file, place, look_at_file(file, trusted.get(place)), limits))
        return found

    size = min(max(len(files) // (8 * workers), 1), _LARGEST_BLOCK)
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        yield from pool.map(look_at, [files[start : start + size] for start in range(0, len(files), size)])
    finally:
        pool.shutdown(cancel_futures=True)


def place_of(root: str, file: SourceFile) -> bytes:
    """Return what the memory calls a file of this absolute root, or an image in a tar there."""
    return _place(os.path.join(root, ""), file)  # noqa: PTH118


def _place(prefix: str, file: SourceFile) -> bytes:
    """Do the same for a root that ends in a slash."""
    place = os.fsencode(prefix + file.path)
    return place if file.member is None else place + file.member.stamp


def look_at_file(file: SourceFile, known: Finding | None) -> Finding | ImageRejected:
    """Find out about one file, by reading it unless ``known`` still holds."""
    if not is_storable(file.path):
        return ImageRejected("unreadable-name", "the name is not valid UTF-8: rename the file")
    try:
        if known is not None and _holds(known, file):
            return known
        data, mtime_ns = _contents(file)
    except ImageRejected as rejected:
        return rejected
    key = content_key(data)
    try:
        facts = read_facts(data)
    except ImageRejected as rejected:
        return Finding(len(data), mtime_ns, key, reason=rejected.reason, detail=rejected.detail)
    width, height = (facts.height, facts.width) if facts.turned else (facts.width, facts.height)
    return Finding(
        len(data), mtime_ns, key, width, height, facts.format, "", "", facts.turned, facts.metadata_bytes, facts.traits
    )


def _holds(known: Finding, file: SourceFile) -> bool:
    """Say whether a file is as it was when it was read; of a tar, what counts is how it was when it was listed."""
    if file.member is None:
        return known.fits(file_status(file.location))
    return (known.size, known.mtime_ns) == (file.member.length, file.member.tar_mtime_ns)


def _contents(file: SourceFile) -> tuple[bytes, int]:
    """Return an image's bytes and the modification time of the file that holds them. Raises ImageRejected."""
    if file.member is not None:
        return read_member(file.root, file.member), file.member.tar_mtime_ns
    data, status = read_stable(file.location)
    return data, status.st_mtime_ns


def _judge_sight(file: SourceFile, place: bytes, found: Finding | ImageRejected, limits: Limits) -> Look:
    if isinstance(found, ImageRejected):
        return place, None, Reject(printable(file.location), found.reason, found.detail)
    return place, found, _judge(file, found, limits)


def _judge(file: SourceFile, found: Finding, limits: Limits) -> ScannedRow | Reject:
    try:
        if found.reason:
            raise found.rejected()
        limits.check(found.width, found.height)
    except ImageRejected as rejected:
        return Reject(printable(file.location), rejected.reason, rejected.detail)
    return ScannedRow(
        file,
        found.key,
        found.width,
        found.height,
        found.format,
        found.size,
        found.turned,
        found.metadata_bytes,
        found.traits,
    )


def file_status(location: str) -> os.stat_result:
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
    try:
        handle = os.open(location, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe would else wait for a writer
    except OSError as error:
        file_status(location)
        raise ImageRejected("unreadable", error.strerror or str(error)) from None
    try:
        for _ in range(2):
            before = os.fstat(handle)
            if not stat.S_ISREG(before.st_mode):
                raise ImageRejected("not-a-file", "it is a folder or a device")
            if before.st_size > MAX_BYTES:
                raise ImageRejected("too-large", f"a file of {before.st_size:,} bytes, more than {MAX_BYTES:,}")
            data = _read_whole(handle, before.st_size)
            after = os.fstat(handle)
            if len(data) == before.st_size == after.st_size and before.st_mtime_ns == after.st_mtime_ns:
                return data, after
            os.lseek(handle, 0, os.SEEK_SET)
    except OSError as error:
        raise ImageRejected("unreadable", error.strerror or str(error)) from None
    finally:
        os.close(handle)
    raise ImageRejected("changed-while-reading", "another program is writing it: build again when it has finished")


def _read_whole(handle: int, size: int) -> bytes:
    """Return ``size`` bytes from here on, and one more if the file has grown; fewer if it ends early."""
    data = os.read(handle, size + 1)
    if len(data) >= size:
        return data
    pieces = [data]  # a read gives what the system likes to, at most 2 GiB
    while pieces[-1] and (lacking := size + 1 - sum(map(len, pieces))):
        pieces.append(os.read(handle, lacking))
    return b"".join(pieces)
