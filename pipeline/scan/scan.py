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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...errors import UserError
from ...images.file import DEFAULT_LIMITS, ImageRejected, Limits, content_key, rejection
from ...images.headers import read_header
from ...progress import Progress, Silent
from ...storage import AnyPath
from ...storage.lazy_sequence import ITEMS
from ..sources.file import SourceFile, absolute_root, is_storable, is_url
from ..sources.file_table import FileTable
from ..sources.read import MAX_UNREADABLE, altered_archives, file_status, read_image, readers, reading_blocks
from .conflicts import Reject, resolve_conflicts
from .memory import EntryTable, ScanEntry, drop_scan_entries, known_entries, nothing_known, save_scan_memory
from .rows import RowTable, ScannedRow

_LARGEST_BLOCK = 256
"""Largest number of files that a thread takes at a time; of one row group of a Parquet file, more."""
_BLOCKS_AHEAD = 4
"""Blocks of files for each thread that are read, or wait for it, at a time."""


class ScannedFile(NamedTuple):
    """What a scan found in a file.

    Attributes
    ----------
    file
        The file.
    found
        Its entry, or why it could not be read.
    known
        Whether the entry is that of an earlier scan, and the file was not opened.
    """

    file: SourceFile
    found: ScanEntry | ImageRejected
    known: bool


FileScanner = Callable[[Sequence[SourceFile], Sequence[ScanEntry | None]], Iterator[Sequence[ScannedFile]]]
"""Scans files, in order and in blocks, given the trusted entry of each from the scan memory."""


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

    rows: RowTable
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
    assign: Callable[[RowTable], RowTable] | None = None,
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
    files = FileTable.of(files)
    paths = partial(_memory_keys, files)
    known = nothing_known(len(files)) if memory is None else known_entries(memory, len(files), paths)
    trusted = nothing_known(len(files)) if rehash else known
    entries = EntryTable()
    table = RowTable(files)
    rejects: list[Reject] = []
    opened = remembered = unreadable = 0
    changed = False
    blocks = _scanned_blocks(files, trusted, workers) if scanner is None else scanner(files, trusted)
    for block in blocks:
        start = len(entries)
        before = remembered
        rows: list[ScannedRow] = []
        numbers: list[int] = []
        here: list[ScanEntry | None] = []
        for number, (file, found, is_known) in enumerate(block, start):
            remembered += is_known
            opened += not is_known and isinstance(found, ScanEntry)
            here.append(found if isinstance(found, ScanEntry) else None)
            outcome = _row_or_reject(file, found, limits)
            if isinstance(outcome, ScannedRow):
                rows.append(outcome)
                numbers.append(number)
                unreadable = 0
            else:
                rejects.append(outcome)
                unreadable = unreadable + 1 if is_url(outcome.path) and outcome.reason == "unreadable" else 0
        table.add(rows, np.array(numbers, np.int64))
        entries.append(here)
        if remembered - before < len(here):
            changed = changed or here != known[start : len(entries)]
        if unreadable >= MAX_UNREADABLE:
            for start in range(len(entries), len(files), ITEMS):
                entries.append(known[start : start + ITEMS])
            _save(memory, paths, entries)
            raise _store_unreadable(rejects[-1])
        progress.advance("scan", len(block))
    if changed or entries.stored != len(known.entries):
        _save(memory, paths, entries)
    late: list[Reject] = []
    if opened:
        table, late = _without_altered_archives(table)
    resolution = resolve_conflicts(table if assign is None else assign(table))
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
    drop_scan_entries(memory, set(_memory_keys(FileTable.of(files))))


def _scanned_blocks(files: FileTable, trusted: Sequence[ScanEntry | None], workers: int) -> Iterator[list[ScannedFile]]:
    """Yield blocks of scanned files, in their order, reading several blocks at a time."""
    any_remote = any(is_url(kind.root) for kind in files.kinds)
    workers = readers(files if any_remote else (), workers)

    def scan_block(block: tuple[Sequence[SourceFile], Sequence[ScanEntry | None]]) -> list[ScannedFile]:
        found = []
        for file, known in zip(*block, strict=True):
            entry = scan_file(file, known)
            found.append(ScannedFile(file, entry, entry is known))
        return found

    def blocks() -> Iterator[tuple[Sequence[SourceFile], Sequence[ScanEntry | None]]]:
        start = 0
        for block in reading_blocks(files, size):
            yield block, trusted[start : start + len(block)]
            start += len(block)

    size = min(max(len(files) // (8 * workers), 1), _LARGEST_BLOCK)
    ahead: deque[Future[list[ScannedFile]]] = deque()
    pool = ThreadPoolExecutor(max_workers=workers)
    try:
        for block in blocks():
            ahead.append(pool.submit(scan_block, block))
            if len(ahead) > _BLOCKS_AHEAD * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _memory_keys(files: FileTable) -> Iterator[bytes]:
    """Yield the key of each file in the scan memory."""
    roots = (os.path.join(absolute_root(kind.root), "") for kind in files.kinds)  # noqa: PTH118
    return files.keys([root.encode(errors="surrogatepass") for root in roots])


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
    return (known.size, known.mtime_ns) == now and (now[1] > 0 or not file.is_remote)


def _save(memory: AnyPath | None, paths: Callable[[], Iterable[bytes]], entries: EntryTable) -> None:
    if memory is not None:
        save_scan_memory(memory, paths(), entries)


def _store_unreadable(last: Reject) -> UserError:
    return UserError(
        f"{last.path}: cannot be read ({last.detail}), nor could the {MAX_UNREADABLE - 1} files before it. "
        "The files scanned so far are kept. Check the store and your access to it, then run the command again."
    )


def _without_altered_archives(rows: RowTable) -> tuple[RowTable, list[Reject]]:
    """Reject images of archives in an object store that changed after the listing: their places may be wrong."""
    if not any(is_url(kind.root) for kind in rows.kinds):
        return rows, []
    altered = altered_archives(row.file for row in rows)
    if not altered:
        return rows, []
    rejects: list[Reject] = []

    def masks() -> Iterator[NDArray[np.bool_]]:
        for block in rows.blocks():
            kept = np.ones(len(block), bool)
            for number, row in enumerate(rows.made(block)):
                if row.file.member is not None and (row.file.root, row.file.member.archive) in altered:
                    why = f"its {row.file.member.kind} changed after it was listed: build again"
                    rejects.append(Reject.of(row.file, "changed-while-reading", why))
                    kept[number] = False
            yield kept

    return rows.chosen(masks()), rejects


def _row_or_reject(file: SourceFile, found: ScanEntry | ImageRejected, limits: Limits) -> ScannedRow | Reject:
    try:
        if isinstance(found, ImageRejected):
            return Reject.of(file, found.reason, found.detail)
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
