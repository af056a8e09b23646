"""The order of the rows of an epoch, and which process reads which of them. Pure arithmetic; no file is read here.

The rows are sorted by their position in the cache and cut into blocks of 64 neighbours. An epoch shuffles the blocks,
joins eight of them to a pool, and shuffles the rows of the pool; batches are cut from the pools in sequence. So a
batch mixes rows of eight random blocks, every row comes exactly once per epoch, and at most two pools are in memory.
The price is that two rows of a block always come within the same 512. Each row's flip is drawn separately.

All of this follows from (seed, epoch) and from the division of the rows into shards. So a training that resumes in the
middle of an epoch compares the order's `digest` with the saved one. Several processes share each batch: it is the same
set of rows for any number of processes, and each takes neighbouring rows, so that it reads only some of the blocks.
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

IntArray = npt.NDArray[np.int64]

BLOCK_ROWS = 64
POOL_BLOCKS = 8
POOL_ROWS = BLOCK_ROWS * POOL_BLOCKS
"""Rows that are shuffled together."""
_HASHED_ROWS = 1 << 16


class RankShare(NamedTuple):
    """Position of this process among several: number ``rank`` of ``ranks``."""

    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class ReadBlocks:
    """The rows of a dataset, (N,), by their position in the cache.

    Attributes
    ----------
    order : ndarray, shape (N,)
        Rows in storage order.
    number : ndarray, shape (N,)
        Block of each row.
    position : ndarray, shape (N,)
        Index of each row in ``order``.
    """

    order: IntArray
    number: IntArray
    position: IntArray

    @classmethod
    def of(cls, shard: npt.NDArray[Any], row: npt.NDArray[Any]) -> ReadBlocks:
        """Cut rows at (shard, row), (N,) each, into blocks, at every 64 rows and at the end of each shard."""
        order = np.lexsort((row, shard)).astype(np.int64)
        starts = np.flatnonzero(np.diff(shard[order], prepend=-1))
        in_shard = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
        number, position = np.empty_like(order), np.empty_like(order)
        number[order] = np.cumsum(in_shard % BLOCK_ROWS == 0) - 1
        position[order] = np.arange(len(order))
        return cls(order, number, position)

    def pieces(self) -> list[IntArray]:
        """Return the rows of each block."""
        return np.split(self.order, np.flatnonzero(np.diff(self.number[self.order])) + 1) if len(self.order) else []


@dataclass(frozen=True)
class EpochOrder:
    """The rows of one epoch in the order of training.

    Attributes
    ----------
    rows : ndarray, shape (N,)
        Row numbers.
    flip : ndarray, shape (N,)
        bool, whether to mirror the row.
    pool : ndarray, shape (N,)
        Pool of each row, ascending.
    """

    rows: IntArray
    flip: npt.NDArray[np.bool_]
    pool: IntArray


@dataclass(frozen=True)
class BlockRead:
    """Rows of one block to read together, in storage order, and whether to mirror each; (n,) each."""

    rows: IntArray
    flip: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BatchSlice:
    """The rows of one batch that belong to one process, in the order of the batch.

    Attributes
    ----------
    rows, flip : ndarray, shape (n,)
        Row numbers, and whether to mirror each.
    piece, at : ndarray, shape (n,)
        The `BlockRead` that contains each row, and the row's index in it.
    whole
        Rows of the batch over all processes.
    """

    rows: IntArray
    flip: npt.NDArray[np.bool_]
    piece: IntArray
    at: IntArray
    whole: int


def shuffled(blocks: ReadBlocks, seed: int, epoch: int) -> EpochOrder:
    """Return the order of a training epoch, a function of (seed, epoch) only."""
    rng = np.random.default_rng([seed, epoch])
    pieces = blocks.pieces()
    block_order = rng.permutation(len(pieces))
    rows, sizes = [np.empty(0, np.int64)], []
    for start in range(0, len(pieces), POOL_BLOCKS):
        pool = np.concatenate([pieces[number] for number in block_order[start : start + POOL_BLOCKS]])
        rows.append(rng.permutation(pool))
        sizes.append(len(pool))
    return EpochOrder(
        np.concatenate(rows),
        rng.random(len(blocks.order)) < 0.5,
        np.repeat(np.arange(len(sizes), dtype=np.int64), sizes),
    )


def sequential(blocks: ReadBlocks) -> EpochOrder:
    """Return the storage order, with no row mirrored."""
    return EpochOrder(blocks.order, np.zeros(len(blocks.order), dtype=bool), blocks.number[blocks.order] // POOL_BLOCKS)


def batch_sizes(rows: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of ``rows`` rows.

    A last batch of one row is merged into the previous one: batch normalisation is not defined for a single sample.
    """
    sizes = [min(batch_size, rows - start) for start in range(0, rows, batch_size)]
    if batch_size > 1 and len(sizes) > 1 and sizes[-1] == 1:
        sizes[-2:] = [sizes[-2] + 1]
    return sizes


def digest(order: EpochOrder, keys: KeyArray, sizes: Sequence[int]) -> str:
    """Hash everything that decides which samples each batch of an epoch has, and what is drawn for them.

    Parameters
    ----------
    order
        The epoch's order.
    keys : ndarray, shape (N,)
        Key of each row, S16.
    sizes
        Rows of each batch, over all processes.

    Returns
    -------
    str
        SHA-256 as hex digits. It depends neither on the shards nor on the number of processes that read them.
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
    """Compute what one process reads, in sequence, and how its batches are put together.

    Every row of a batch goes to exactly one process; the numbers of rows per process differ by at most one.

    Parameters
    ----------
    blocks, order
        The rows and their order in this epoch.
    sizes
        Rows of each batch, over all processes.
    skip
        Number of batches to leave out at the beginning.
    share
        This process.

    Returns
    -------
    tuple
        The reads, and the batches that are assembled from them.
    """
    bounds = np.cumsum([0, *sizes])
    mine = [_part(blocks, order, int(start), int(stop), share) for start, stop in pairwise(bounds[skip:])]
    where = np.concatenate([np.empty(0, np.int64), *mine])
    rows = order.rows[where]
    by_piece = np.lexsort((blocks.position[rows], blocks.number[rows], order.pool[where]))
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


def _part(blocks: ReadBlocks, order: EpochOrder, start: int, stop: int, share: RankShare) -> IntArray:
    """Return the ascending order indices of this process' share, which is contiguous, of ``start`` to ``stop``."""
    if share.ranks == 1:
        return np.arange(start, stop)
    by_position = np.argsort(blocks.position[order.rows[start:stop]], kind="stable")
    return start + np.sort(np.array_split(by_position, share.ranks)[share.rank])
