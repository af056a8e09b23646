"""Assign splits to images whose source names none, as ``--split-by 80/10/10`` asks.

Images that belong together get one split: those with the same bytes, near duplicates (:mod:`.audit.duplicates`), and
those of one source group. A set of images that belong together is placed by a hash of the seed and its group's name, or
else its smallest key. So an image stays in its split when others are added, unless one of them joins its set and has a
smaller key or a group; and the shares are met on average, not exactly.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from ..errors import UsageError
from ..images.file import ImageRejected
from ..progress import Progress
from .audit.duplicates import PerceptualHash, groups, near_pairs, perceptual_hash
from .scan.rows import RowTable, ScannedRow
from .sources.file import UNASSIGNED
from .sources.read import read_source, readers

SPLITS = ("train", "val", "test")

MOST_COMPARED = 20_000
"""Most images that are compared for near duplicates. Of more, only groups and the same bytes are kept together."""


@dataclass(frozen=True, slots=True)
class SplitShares:
    """How images are divided.

    Attributes
    ----------
    shares
        Share of train, val and test; their sum is 1.
    seed
        Another seed gives another division.
    """

    shares: tuple[float, float, float]
    seed: int = 0


def parse_shares(text: str, seed: int) -> SplitShares:
    """Parse ``80/10/10``. Raises UsageError for anything but three numbers, not all zero."""
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    total = sum(numbers)
    if len(numbers) != len(SPLITS) or not 0 < total < float("inf") or min(numbers) < 0:
        raise UsageError(f"--split-by {text}: write the shares of train, val and test, such as 80/10/10.")
    train, val, test = (number / total for number in numbers)
    return SplitShares((train, val, test), seed)


def assign_splits(rows: RowTable, wanted: SplitShares, *, workers: int, progress: Progress) -> RowTable:
    """Return the rows, each with a split.

    Parameters
    ----------
    rows
        Rows, of which some may be unassigned. Those that have a split keep it.
    wanted
        Shares and seed.
    workers
        Threads that read images.
    progress
        Receives a stage for near duplicates, and what is to be said of the division.
    """
    distinct = list({row.key: row for row in rows if row.file.split == UNASSIGNED}.values())
    if not distinct:
        progress.say("Note: --split-by changes nothing: the sources name the split of every image.")
        return rows
    number = {row.key: index for index, row in enumerate(distinct)}
    pairs = _near(distinct, workers, progress)
    leaders: dict[str, int] = {}
    for row in rows:
        if row.key in number and row.file.group and row.file.split == UNASSIGNED:
            pairs.append((leaders.setdefault(row.file.group, number[row.key]), number[row.key]))
    leader = groups(len(distinct), pairs)
    names: dict[int, str] = {}
    for index, row in enumerate(distinct):
        name = f"group {row.file.group}" if row.file.group else f"key {row.key}"
        names[leader[index]] = min(names.get(leader[index], name), name)
    split = {key: _split(names[leader[index]], wanted) for key, index in number.items()}
    _say_what_lacks(split.values(), wanted, len(names), progress)
    return RowTable.of(
        row._replace(file=replace(row.file, split=split[row.key])) if row.file.split == UNASSIGNED else row
        for row in rows
    )


def _split(name: str, wanted: SplitShares) -> str:
    digest = hashlib.sha256(f"{wanted.seed} {name}".encode(errors="surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in zip(SPLITS, wanted.shares, strict=True):
        if place < share:
            return split
        place -= share
    return next(split for split, share in zip(reversed(SPLITS), reversed(wanted.shares), strict=True) if share)


def _near(rows: Sequence[ScannedRow], workers: int, progress: Progress) -> list[tuple[int, int]]:
    """Return pairs of near duplicates; none if there are too many images to compare."""
    if len(rows) > MOST_COMPARED:
        progress.say(
            f"Note: of more than {MOST_COMPARED:,} images, near duplicates are not looked for: --split-by keeps groups and "
            "identical files together."
        )
        return []

    def hash_of(row: ScannedRow) -> PerceptualHash | None:
        try:
            return perceptual_hash(read_source(row.file, row.key))
        except ImageRejected:
            return None  # the build decodes it again, and says why it is rejected

    progress.start("near duplicates", len(rows))
    found = []
    with ThreadPoolExecutor(readers((row.file for row in rows), workers)) as pool:
        for result in pool.map(hash_of, rows):
            found.append(result)
            progress.advance("near duplicates", 1)
    kept = [index for index, result in enumerate(found) if result is not None]
    pairs = near_pairs([result for result in found if result is not None])
    return [(kept[a], kept[b]) for a, b in pairs]


def _say_what_lacks(splits: Iterable[str], wanted: SplitShares, sets: int, progress: Progress) -> None:
    """Say if a split that has a share gets no image."""
    counts = Counter(splits)
    empty = [split for split, share in zip(SPLITS, wanted.shares, strict=True) if share and not counts[split]]
    if empty:
        progress.say(
            f"Note: --split-by leaves {' and '.join(empty)} without images: there are only {sets:,} sets of images that belong "
            "together. Another --split-seed divides them otherwise."
        )
