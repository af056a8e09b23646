"""Scanning: the files of the sources to rows of a dataset, with each file's key, size and format.

Every file is read whole, hashed, and its header parsed, with what an audit will ask of it. No pixel is decoded here: that
a file ends too early comes to light in the decoder. What was learnt is remembered by (path, size, modification time),
and a scan of unchanged files opens none of them. An image in a tar is remembered by its place in it and the tar's size
and time, an object of an object store by what the listing says of it: most stores tell whole seconds. A file that was
rewritten with its old size and time goes unnoticed until its pixels are wanted, or until ``rehash``; its stale key does no
harm, as :func:`..sources.read.read_source` compares the key again before anything is computed, and the build that finds it wrong lets
the next scan open the file (:func:`drop_files`).

Conflicts between files are resolved as :mod:`.conflicts` says.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ...errors import UserError
from ...images.file import DEFAULT_LIMITS, ImageRejected, Limits, content_key
from ...images.headers import read_header
from ...storage import AnyPath
from ..sources.file import SourceFile, absolute_root, is_storable, is_url, printable
from ..sources.read import MAX_UNREADABLE, altered_tars, file_status, read_image, readers
from .conflicts import Reject, ScannedRow, resolve_conflicts
from .memory import ScanEntry, drop_scan_entries, load_scan_memory, save_scan_memory

_LARGEST_BLOCK = 256
"""Most files that a worker takes at a time."""

ScannedFile = tuple[SourceFile, bytes, ScanEntry | ImageRejected]
"""A file, its key in the memory, and what was found: the very finding of the memory where the file is unchanged."""
FileScanner = Callable[[Sequence[SourceFile], Mapping[bytes, ScanEntry]], Iterator[Sequence[ScannedFile]]]
"""Scans files, in order and in blocks, trusting what is known of some by their key in the memory."""

JudgedFile = tuple[bytes, ScanEntry | None, ScannedRow | Reject]
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
    memory: AnyPath | None = None,
    workers: int = 4,
    limits: Limits = DEFAULT_LIMITS,
    rehash: bool = False,
    progress: Callable[[int, int], None] | None = None,
    scanner: FileScanner | None = None,
) -> ScanResult:
    """Read and measure_separability the files, and resolve conflicts between them.

    memory : file that remembers the findings between scans; only a speed-up, so one that is damaged is replaced.
    workers : threads that read; of an object store more do, see :func:`..sources.read.readers`. rehash : open every file even if it is
        remembered.
    limits : which images are used. progress : called with (files done, files in all).
    scanner : reads the files in place of ``workers``.
    A file that cannot be used becomes a reject; UserError for an object store that stops answering.
    """
    known = {} if memory is None else load_scan_memory(memory)
    findings: dict[bytes, ScanEntry] = {}
    rows: list[ScannedRow] = []
    rejects: list[Reject] = []
    opened = remembered = done = silent = 0
    trusted = {} if rehash else known
    if scanner is None:
        blocks = _judged_blocks(files, trusted, limits, workers)
    else:
        blocks = ([_judged(*scanned, limits) for scanned in block] for block in scanner(files, trusted))
    for block in blocks:
        for key, finding, verdict in block:
            if finding is not None:
                findings[key] = finding
                known_before = finding is trusted.get(key)
                remembered += known_before
                opened += not known_before
            if isinstance(verdict, ScannedRow):
                rows.append(verdict)
                silent = 0
            else:
                rejects.append(verdict)
                silent = silent + 1 if is_url(verdict.path) and verdict.reason == "unreadable" else 0
        done += len(block)
        if silent >= MAX_UNREADABLE:
            _remember(memory, known | findings, known)
            raise _silent(rejects[-1])
        if progress is not None:
            progress(done, len(files))
    _remember(memory, findings, known)
    rows, late = _of_whole_tars(rows) if opened else (rows, [])
    resolution = resolve_conflicts(rows)
    return ScanResult(
        rows=resolution.rows,
        rejects=rejects + late + resolution.rejects,
        opened=opened,
        remembered=remembered,
        label_conflicts=resolution.label_conflicts,
        leaks=resolution.leaks,
    )


def drop_files(memory: AnyPath, files: Iterable[SourceFile]) -> None:
    """Let the next scan open these files, even if size and time are as they were: they turned out to be others."""
    drop_scan_entries(memory, {memory_key(absolute_root(file.root), file) for file in files})


def _judged_blocks(
    files: Sequence[SourceFile], trusted: Mapping[bytes, ScanEntry], limits: Limits, workers: int
) -> Iterator[list[JudgedFile]]:
    """Yield blocks of judged files, in the order of the files, reading several blocks at a time."""
    workers = readers(files, workers)
    prefixes = {root: os.path.join(absolute_root(root), "") for root in {file.root for file in files}}  # noqa: PTH118

    def judge_block(block: Sequence[SourceFile]) -> list[JudgedFile]:
        found: list[JudgedFile] = []
        for file in block:
            key = _memory_key(prefixes[file.root], file)
            found.append(_judged(file, key, scan_file(file, trusted.get(key)), limits))
        return found

    size = min(max(len(files) // (8 * workers), 1), _LARGEST_BLOCK)
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        yield from pool.map(judge_block, [files[start : start + size] for start in range(0, len(files), size)])
    finally:
        pool.shutdown(cancel_futures=True)


def memory_key(root: str, file: SourceFile) -> bytes:
    """Return what the memory calls a file of this absolute root, or an image in a tar there."""
    return _memory_key(os.path.join(root, ""), file)  # noqa: PTH118


def _memory_key(prefix: str, file: SourceFile) -> bytes:
    """Do the same for a root that ends in a slash."""
    key = os.fsencode(prefix + file.path)
    return key if file.member is None else key + file.member.stamp


def scan_file(file: SourceFile, known: ScanEntry | None) -> ScanEntry | ImageRejected:
    """Find out about one file, by reading it unless ``known`` still holds."""
    if not is_storable(file.path):
        return ImageRejected("unreadable-name", "the name is not valid UTF-8: rename the file")
    try:
        if known is not None and _holds(known, file):
            return known
        data, mtime_ns = read_image(file)
    except ImageRejected as rejected:
        return rejected
    key = content_key(data)
    try:
        facts = read_header(data)
    except ImageRejected as rejected:
        return ScanEntry(len(data), mtime_ns, key, reason=rejected.reason, detail=rejected.detail)
    width, height = (facts.height, facts.width) if facts.turned else (facts.width, facts.height)
    return ScanEntry(
        len(data), mtime_ns, key, width, height, facts.format, "", "", facts.turned, facts.metadata_bytes, facts.traits
    )


def scan_files(files: Sequence[tuple[SourceFile, ScanEntry | None]]) -> list[ScanEntry | ImageRejected]:
    """Find out about a few files, as :func:`scan_file` does; those of an object store are read several at a time."""
    threads = readers((file for file, _ in files), 1)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda asked: scan_file(*asked), files))


def _holds(known: ScanEntry, file: SourceFile) -> bool:
    """Say whether a file is as it was when it was read; of an object or a tar, what counts is how it was when it was listed."""
    if file.member is not None:
        now = file.member.length, file.member.tar_mtime_ns
    elif file.listed is not None:
        now = file.listed
    else:
        status = file_status(file.location)
        now = status.st_size, status.st_mtime_ns
    return (known.size, known.mtime_ns) == now and (now[1] > 0 or not file.is_remote)


def _remember(memory: AnyPath | None, findings: Mapping[bytes, ScanEntry], known: Mapping[bytes, ScanEntry]) -> None:
    if memory is not None and findings != known:
        save_scan_memory(memory, findings)


def _silent(last: Reject) -> UserError:
    return UserError(
        f"{last.path}: cannot be read ({last.detail}), nor could the {MAX_UNREADABLE - 1} files before it. "
        "What was read is remembered: run the command again when the store lets you read."
    )


def _of_whole_tars(rows: list[ScannedRow]) -> tuple[list[ScannedRow], list[Reject]]:
    """Reject images of tars in an object store that have changed since they were listed: another may lie in their place."""
    altered = altered_tars(row.file for row in rows)
    if not altered:
        return rows, []
    kept, rejects = [], []
    for row in rows:
        if row.file.member is not None and (row.file.root, row.file.member.tar) in altered:
            why = "its tar changed after it was listed: build again"
            rejects.append(Reject(printable(row.file.location), "changed-while-reading", why))
        else:
            kept.append(row)
    return kept, rejects


def _judged(file: SourceFile, key: bytes, found: ScanEntry | ImageRejected, limits: Limits) -> JudgedFile:
    if isinstance(found, ImageRejected):
        return key, None, Reject(printable(file.location), found.reason, found.detail)
    return key, found, _judge(file, found, limits)


def _judge(file: SourceFile, found: ScanEntry, limits: Limits) -> ScannedRow | Reject:
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
