"""Scan the files of the sources: from files to rows of a dataset, with each file's key, size and format.

Every file is read whole and hashed, and its header is parsed, including the traits that an audit needs. No pixel is
decoded here, so only the decoder finds that a file is truncated.

Results are stored in the scan memory by (path, size, modification time), and a scan of unchanged files opens none of
them. An image in an archive is identified by its place there and the archive's size and time, an object of an object store
by its listing, whose times are whole seconds in most stores. A file that was rewritten with its old size and time goes
unnoticed until its pixels are needed, or until ``rehash``. Its stale key does no harm:
:func:`..sources.read.read_source` compares the key again before anything is computed, and a build that finds a mismatch
makes the next scan open the file (:func:`drop_files`).

:mod:`.conflicts` resolves conflicts between files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from ...errors import UserError
from ...images.file import DEFAULT_LIMITS, ImageRejected, Limits, content_key, rejection
from ...images.headers import read_header
from ...progress import Progress, Silent
from ...storage import AnyPath, by_requests
from ..sources.file import SourceFile, absolute_root, is_storable
from ..sources.read import MAX_UNREADABLE, altered_archives, file_status, read_image, readers, reading_blocks
from .conflicts import Reject, ScannedRow, resolve_conflicts
from .memory import ScanEntry, drop_scan_entries, load_scan_memory, save_scan_memory

_LARGEST_BLOCK = 256
"""Largest number of files that a thread takes at a time; of one row group of a Parquet file, more."""

ScannedFile = tuple[SourceFile, bytes, ScanEntry | ImageRejected]
"""A file, its key in the scan memory, and its entry: the same object as in the memory if the file is unchanged."""
FileScanner = Callable[[Sequence[SourceFile], Mapping[bytes, ScanEntry]], Iterator[Sequence[ScannedFile]]]
"""Scans files, in order and in blocks, given the trusted entries of the scan memory by key."""

CheckedFile = tuple[bytes, ScanEntry | None, ScannedRow | Reject]
"""Key of a file in the scan memory, its entry (None if it could not be read), and the resulting row or reject."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """Result of a scan.

    Attributes
    ----------
    rows, rejects
        In the order of the files; rejects by conflict come last.
    opened
        Number of files that were read.
    remembered
        Number of files known from an earlier scan and not opened.
    label_conflicts
        Number of files whose bytes occur with both labels. They are among the rejects.
    leaks
        Files left out because their bytes are also in a split that takes precedence. They are not among the rejects.
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
    progress: Progress | None = None,
    scanner: FileScanner | None = None,
    assign: Callable[[list[ScannedRow]], list[ScannedRow]] | None = None,
) -> ScanResult:
    """Read the files, check them against the limits, and resolve conflicts between them.

    A file that cannot be used becomes a reject.

    Parameters
    ----------
    files
        Files of the sources.
    memory
        File that keeps entries between scans. It only saves time, and is replaced if damaged.
    workers
        Threads that read; an object store is read by more, see :func:`..sources.read.readers`.
    limits
        Images outside these limits are rejected.
    rehash
        Open every file, even if it is in the scan memory.
    progress
        Receives the stage ``scan``, in files.
    scanner
        Reads the files in place of threads.
    assign
        Gives a split to rows that have none, before conflicts are resolved.

    Raises
    ------
    UserError
        If an object store stops answering.
    """
    progress = progress or Silent()
    progress.start("scan", len(files))
    known = {} if memory is None else load_scan_memory(memory)
    entries: dict[bytes, ScanEntry] = {}
    rows: list[ScannedRow] = []
    rejects: list[Reject] = []
    opened = remembered = unreadable = 0
    trusted = {} if rehash else known
    if scanner is None:
        blocks = _checked_blocks(files, trusted, limits, workers)
    else:
        blocks = ([_checked(*scanned, limits) for scanned in block] for block in scanner(files, trusted))
    for block in blocks:
        for key, entry, outcome in block:
            if entry is not None:
                entries[key] = entry
                known_before = entry is trusted.get(key)
                remembered += known_before
                opened += not known_before
            if isinstance(outcome, ScannedRow):
                rows.append(outcome)
                unreadable = 0
            else:
                rejects.append(outcome)
                unreadable = unreadable + 1 if by_requests(outcome.path) and outcome.reason == "unreadable" else 0
        if unreadable >= MAX_UNREADABLE:
            _save(memory, known | entries, known)
            raise _store_unreadable(rejects[-1])
        progress.advance("scan", len(block))
    _save(memory, entries, known)
    rows, late = _without_altered_archives(rows) if opened else (rows, [])
    resolution = resolve_conflicts(rows if assign is None else assign(rows))
    return ScanResult(
        rows=resolution.rows,
        rejects=rejects + late + resolution.rejects,
        opened=opened,
        remembered=remembered,
        label_conflicts=resolution.label_conflicts,
        leaks=resolution.leaks,
    )


def drop_files(memory: AnyPath, files: Iterable[SourceFile]) -> None:
    """Drop files from the scan memory, so that the next scan opens them even if size and time are unchanged."""
    drop_scan_entries(memory, {memory_key(absolute_root(file.root), file) for file in files})


def _checked_blocks(
    files: Sequence[SourceFile], trusted: Mapping[bytes, ScanEntry], limits: Limits, workers: int
) -> Iterator[list[CheckedFile]]:
    """Yield blocks of checked files, in the order of the files, reading several blocks at a time."""
    workers = readers(files, workers)
    prefixes = {root: os.path.join(absolute_root(root), "") for root in {file.root for file in files}}  # noqa: PTH118

    def check_block(block: Sequence[SourceFile]) -> list[CheckedFile]:
        found: list[CheckedFile] = []
        for file in block:
            key = _memory_key(prefixes[file.root], file)
            found.append(_checked(file, key, scan_file(file, trusted.get(key)), limits))
        return found

    size = min(max(len(files) // (8 * workers), 1), _LARGEST_BLOCK)
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        yield from pool.map(check_block, reading_blocks(files, size))
    finally:
        pool.shutdown(cancel_futures=True)


def memory_key(root: str, file: SourceFile) -> bytes:
    """Return the key in the scan memory of a file, or an image in an archive, below this absolute root."""
    return _memory_key(os.path.join(root, ""), file)  # noqa: PTH118


def _memory_key(prefix: str, file: SourceFile) -> bytes:
    """Return the same for a root that ends in a slash."""
    try:
        key = os.fsencode(prefix + file.path)
    except UnicodeEncodeError:  # no file can have such a name: it is rejected, and not remembered
        key = (prefix + file.path).encode(errors="surrogatepass")
    return key if file.member is None else key + file.member.stamp


def scan_file(file: SourceFile, known: ScanEntry | None) -> ScanEntry | ImageRejected:
    """Return the entry of a file, reading it unless ``known`` is still valid; ImageRejected if it cannot be read."""
    if not is_storable(file.path):
        return ImageRejected("unreadable-name", "the name is not valid UTF-8: rename the file")
    if not all(map(is_storable, (file.generator, file.family, file.group))):
        return ImageRejected("unreadable-name", "its generator, family or group is not valid Unicode")
    try:
        if known is not None and _is_unchanged(known, file):
            return known
        data, mtime_ns = read_image(file)
    except Exception as error:  # whatever it is, it costs this file alone
        return rejection(b"", error)
    key = content_key(data)
    try:
        header = read_header(data)
    except ImageRejected as rejected:
        return ScanEntry(len(data), mtime_ns, key, reason=rejected.reason, detail=rejected.detail)
    except Exception as error:  # it may not be the file's fault: the next scan reads it again
        return rejection(data, error)
    width, height = (header.height, header.width) if header.turned else (header.width, header.height)
    return ScanEntry(
        len(data),
        mtime_ns,
        key,
        width,
        height,
        header.format,
        "",
        "",
        header.turned,
        header.metadata_bytes,
        header.traits,
    )


def scan_files(files: Sequence[tuple[SourceFile, ScanEntry | None]]) -> list[ScanEntry | ImageRejected]:
    """Scan files as :func:`scan_file` does; those of an object store are read several at a time."""
    threads = readers((file for file, _ in files), 1)
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda item: scan_file(*item), files))


def _is_unchanged(known: ScanEntry, file: SourceFile) -> bool:
    """Check whether a file is unchanged since its entry was made; objects and archives are compared as they were listed."""
    if file.member is not None:
        size = file.member.size
        now = known.size if size is None else size, file.member.archive_mtime_ns
    elif file.listed is not None:
        now = file.listed
    else:
        status = file_status(file.location)
        now = status.st_size, status.st_mtime_ns
    return (known.size, known.mtime_ns) == now and (now[1] > 0 or not file.by_requests)


def _save(memory: AnyPath | None, entries: Mapping[bytes, ScanEntry], known: Mapping[bytes, ScanEntry]) -> None:
    if memory is not None and entries != known:
        save_scan_memory(memory, entries)


def _store_unreadable(last: Reject) -> UserError:
    return UserError(
        f"{last.path}: cannot be read ({last.detail}), nor could the {MAX_UNREADABLE - 1} files before it. "
        "The files scanned so far are kept. Check the store and your access to it, then run the command again."
    )


def _without_altered_archives(rows: list[ScannedRow]) -> tuple[list[ScannedRow], list[Reject]]:
    """Reject images of archives in an object store that changed after the listing: their places may be wrong."""
    altered = altered_archives(row.file for row in rows)
    if not altered:
        return rows, []
    kept, rejects = [], []
    for row in rows:
        if row.file.member is not None and (row.file.root, row.file.member.archive) in altered:
            why = f"its {row.file.member.kind} changed after it was listed: build again"
            rejects.append(Reject.of(row.file, "changed-while-reading", why))
        else:
            kept.append(row)
    return kept, rejects


def _checked(file: SourceFile, key: bytes, found: ScanEntry | ImageRejected, limits: Limits) -> CheckedFile:
    if isinstance(found, ImageRejected):
        return key, None, Reject.of(file, found.reason, found.detail)
    return key, found, _row_or_reject(file, found, limits)


def _row_or_reject(file: SourceFile, found: ScanEntry, limits: Limits) -> ScannedRow | Reject:
    try:
        if found.reason:
            raise found.rejected()
        limits.check(found.width, found.height)
    except ImageRejected as rejected:
        return Reject.of(file, rejected.reason, rejected.detail)
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
