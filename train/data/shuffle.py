"""In which order the rows of a part leave, and who reads which of them: numbers alone, no file is touched here.

The rows are sorted by where they lie and cut into blocks of 64 neighbours. An epoch shuffles the blocks, joins eight of
them to a pool, and shuffles the rows of the pool; batches are cut from the pools one after the other. So a batch mixes
rows from eight random places, every row leaves exactly once an epoch, and what must be held in memory is two pools. The
price is that two rows of one block always leave within the same 512. Flips are drawn for every row on its own.

All of that follows from (seed, epoch) and from how the shards are cut. So a training that goes on in the middle of an
epoch compares the order's ``digest`` with the one that it was saved with. Several processes divide each batch among them:
the batch is the same set of rows for any number of them, and each takes the rows that lie next to each other, so that it
reads a part of the blocks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ...cache.shards.keys import KeyArray

Array = npt.NDArray[Any]
Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

BLOCK_ROWS = 64
POOL_BLOCKS = 8
_HASHED_ROWS = 1 << 16


class RankShare(NamedTuple):
    """Which of several processes this one is: number ``rank`` of ``ranks``."""

    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class ReadBlocks:
    """The rows of a part, (N,), by where they lie.

    order : rows in the order of storage. number : block of each row. place : position of each row in ``order``.
    """

    order: Numbers
    number: Numbers
    place: Numbers

    @classmethod
    def of(cls, shard: Array, row: Array) -> ReadBlocks:
        """Cut rows at (shard, row), (N,) each, where a block is full or a shard ends."""
        order = np.lexsort((row, shard)).astype(np.int64)
        starts = np.flatnonzero(np.diff(shard[order], prepend=-1))
        in_shard = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        number, place = np.empty_like(order), np.empty_like(order)
        number[order] = np.cumsum(in_shard % BLOCK_ROWS == 0) - 1
        place[order] = np.arange(len(order))
        return cls(order, number, place)

    def pieces(self) -> list[Numbers]:
        """The rows of each block."""
        return np.split(self.order, np.flatnonzero(np.diff(self.number[self.order])) + 1) if len(self.order) else []


@dataclass(frozen=True)
class EpochOrder:
    """The rows of one epoch, (N,) each, in the order in which they leave.

    flip : which are mirrored. pool : number of the pool that each belongs to, rising.
    """

    rows: Numbers
    flip: Mask
    pool: Numbers


@dataclass(frozen=True)
class BlockRead:
    """Rows of one block that are read together, in the order of storage, and which are mirrored; (n,) each."""

    rows: Numbers
    flip: Mask


@dataclass(frozen=True)
class BatchSlice:
    """One process' rows of one batch, in the order of the batch.

    rows, flip : (n,). piece, at : the piece that each row comes with, and its place in there. whole : rows of the batch
    over all processes.
    """

    rows: Numbers
    flip: Mask
    piece: Numbers
    at: Numbers
    whole: int


def shuffled(blocks: ReadBlocks, seed: int, epoch: int) -> EpochOrder:
    """The order of a training epoch, from (seed, epoch) alone."""
    rng = np.random.default_rng([seed, epoch])
    pieces = blocks.pieces()
    turn = rng.permutation(len(pieces))
    rows, sizes = [np.empty(0, np.int64)], []
    for start in range(0, len(pieces), POOL_BLOCKS):
        pool = np.concatenate([pieces[number] for number in turn[start : start + POOL_BLOCKS]])
        rows.append(rng.permutation(pool))
        sizes.append(len(pool))
    return EpochOrder(
        np.concatenate(rows),
        rng.random(len(blocks.order)) < 0.5,
        np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
    )


def sequential(blocks: ReadBlocks) -> EpochOrder:
    """The order of storage, nothing mirrored."""
    return EpochOrder(blocks.order, np.zeros(len(blocks.order), dtype=bool), blocks.number[blocks.order] // POOL_BLOCKS)


def batch_sizes(rows: int, batch_size: int) -> list[int]:
    """Sizes of the batches that hold ``rows`` rows.

    A last batch of one row joins the batch before it: normalisation over a batch is not defined for one sample.
    """
    sizes = [min(batch_size, rows - start) for start in range(0, rows, batch_size)]
    if batch_size > 1 and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def digest(order: EpochOrder, keys: KeyArray, sizes: Sequence[int]) -> str:
    """Hash what decides which samples each batch of an epoch holds, and what is drawn for them.

    Parameters
    ----------
    order
        The epoch's order.
    keys : (N,) S16
        Key of each row of the part.
    sizes
        Rows of each batch, over all processes.

    Returns
    -------
    str
        SHA-256 as hex digits. It depends neither on the shards that hold the rows nor on how many processes read them.
    """
    hashed = hashlib.sha256(np.array([len(order.rows), *sizes], dtype="<i8").tobytes())
    for start in range(0, len(order.rows), _HASHED_ROWS):
        rows = order.rows[start : start + _HASHED_ROWS]
        hashed.update(rows.astype("<i8").tobytes())
        hashed.update(keys[rows].tobytes())
        hashed.update(order.flip[start : start + _HASHED_ROWS].tobytes())
    return hashed.hexdigest()


def divide(
    blocks: ReadBlocks, order: EpochOrder, sizes: Sequence[int], skip: int, share: RankShare
) -> tuple[list[BlockRead], list[BatchSlice]]:
    """What one process reads, in this order, and how its batches are made of it; the first ``skip`` batches are left out.

    sizes : of all batches. Every row of a batch goes to exactly one process; their numbers of rows differ by one at most.
    """
    bounds = np.cumsum([0, *sizes])
    mine = [_part(blocks, order, int(start), int(stop), share) for start, stop in pairwise(bounds[skip:])]
    where = np.concatenate([np.empty(0, np.int64), *mine])
    rows = order.rows[where]
    by_piece = np.lexsort((blocks.place[rows], blocks.number[rows], order.pool[where]))
    together = rows[by_piece]
    new = (np.diff(blocks.number[together], prepend=-1) != 0) | (np.diff(order.pool[where][by_piece], prepend=-1) != 0)
    starts = np.flatnonzero(new)
    piece, at = np.empty_like(rows), np.empty_like(rows)
    piece[by_piece] = np.cumsum(new) - 1
    at[by_piece] = np.arange(len(rows)) - starts[np.cumsum(new) - 1]
    flip = order.flip[where]
    pieces = [
        BlockRead(together[start:stop], flip[by_piece[start:stop]]) for start, stop in pairwise([*starts, len(rows)])
    ]
    ends = np.cumsum([0, *map(len, mine)])
    cuts = [
        BatchSlice(rows[a:b], flip[a:b], piece[a:b], at[a:b], size)
        for (a, b), size in zip(pairwise(ends), sizes[skip:], strict=True)
    ]
    return pieces, cuts


def _part(blocks: ReadBlocks, order: EpochOrder, start: int, stop: int, share: RankShare) -> Numbers:
    """Positions in the order, rising, of one process' rows of the batch ``start`` to ``stop``: neighbours in the storage."""
    if share.ranks == 1:
        return np.arange(start, stop)
    by_place = np.argsort(blocks.place[order.rows[start:stop]], kind="stable")
    return start + np.sort(np.array_split(by_place, share.ranks)[share.rank])
