"""Where every file of a build's sources went, and how the images are distributed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..cache.records.sources import SourceRecord, SourceRecords
from .scan.conflicts import Reject
from .scan.rows import RowTable
from .sources.file import UNASSIGNED, DiscoveredSource, SourceFile
from .sources.file_table import FileTable
from .sources.tree import DENIED

_SHOWN = 5


def account_for(
    sources: Sequence[DiscoveredSource], used: int, rejects: Sequence[Reject], leaks: Sequence[Reject]
) -> SourceRecords:
    """Return the accounts of the sources.

    Parameters
    ----------
    sources
        The sources.
    used
        Number of rows of the data set.
    rejects, leaks
        Files that cannot be used, and files left out of a split.

    Raises
    ------
    AssertionError
        If a file is counted nowhere, or twice.
    """
    kinds = (kind for one in sources for kind in FileTable.of(one.files).kinds)
    identity = _without_split if any(kind.split == UNASSIGNED for kind in kinds) else _itself
    waiting: dict[SourceFile, list[Reject]] = {}
    for reject in [*rejects, *leaks]:
        if reject.file is not None:
            waiting.setdefault(identity(reject.file), []).append(reject)
    records = []
    for source in sources:
        # A file that occurs twice shares its fate with its equal, so each occurrence takes one of the rejects.
        files = map(identity, source.files) if waiting else ()
        records.append(_record(source, [waiting[file].pop() for file in files if waiting.get(file)]))
    total = sum(record.used for record in records)
    assert not sources or total == used, f"{total} files of the sources are used, but the data set has {used} rows"
    return SourceRecords(sources=tuple(records))


def _itself(file: SourceFile) -> SourceFile:
    return file


def _without_split(file: SourceFile) -> SourceFile:
    """Return a file as it was before the build gave it a split."""
    return replace(file, split=UNASSIGNED)


def _record(source: DiscoveredSource, set_aside: Sequence[Reject]) -> SourceRecord:
    account = source.account
    reasons = Counter(reject.reason for reject in set_aside)
    leaked = reasons.pop("leaked", 0)
    return SourceRecord.model_validate(
        {
            "source": account.source,
            "layout": account.layout,
            "files": account.files,
            "images": account.images,
            "used": account.images - len(set_aside),
            "rejected": dict(sorted(reasons.items())),
            "leaked": leaked,
            "not_images": account.not_images,
            "hidden": account.hidden,
            "uncovered": [entry._asdict() for entry in account.uncovered],
            "unreadable": [place._asdict() for place in account.unreadable],
            "notes": list(account.notes),
        }
    )


def notes_of(records: SourceRecords) -> list[str]:
    """Return what was guessed or left out of the sources, a sentence each."""
    several = len(records.sources) > 1
    notes: list[str] = []
    for record in records.sources:
        sentences = list(record.notes)
        if places := [place for place in record.unreadable if not place.reason.startswith(DENIED)]:
            shown = "; ".join(f"{place.path} {place.reason}" for place in places[:_SHOWN])
            more = f"; and {len(places) - _SHOWN:,} more" if len(places) > _SHOWN else ""
            sentences.append(f"Linked folders that are not entered: {shown}{more}.")
        notes += (f"{record.source}: {sentence}" if several else sentence for sentence in sentences)
    return notes


def warnings_of(records: SourceRecords) -> list[str]:
    """Return a sentence for each folder with images that are not used, and for each that could not be listed."""
    warnings = []
    for record in records.sources:
        for entry in record.uncovered:
            where = f"in {entry.folder}/" if entry.folder else "directly in the source"
            number = "1 image" if entry.images == 1 else f"{entry.images:,} images"
            verb = "is" if entry.images == 1 else "are"
            where = f"{where} (such as {entry.example})"
            warnings.append(f"{record.source}: {number} {where} {verb} not used: {entry.reason}.")
        warnings += (
            f"{record.source}: {place.path} {place.reason}, so what is in it is not known."
            for place in record.unreadable
            if place.reason.startswith(DENIED)
        )
    return warnings


def one_class_note(rows: RowTable) -> list[str]:
    """Return a note if all rows have the same label."""
    labels = {kind.label for kind in rows.counts()}
    if len(labels) != 1:
        return []
    return [f"The data set has only one class: {('real', 'generated')[labels.pop()]} images."]


def untested_note(rows: RowTable) -> str | None:
    """Say how to have test images if all rows are in train; None otherwise."""
    if {kind.split for kind in rows.counts()} != {"train"}:
        return None
    return (
        "All images are in train, so none is left to test a student. Divide them with --split-by 70/15/15, "
        "or build test images of their own with --split test."
    )


def image_counts(rows: RowTable) -> list[dict[str, Any]]:
    """Return the number of images of each split, label and generator, sorted."""
    found: Counter[tuple[str, int, str]] = Counter()
    for kind, count in rows.counts().items():
        found[kind.split, kind.label, kind.generator] += count
    return [
        {"split": split, "label": label, "generator": generator, "images": count}
        for (split, label, generator), count in sorted(found.items())
    ]
