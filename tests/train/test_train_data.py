"""Batches from the cache: every row once, in a repeatable order, with the teacher's view of the flip."""

from __future__ import annotations

import errno
import os
import signal
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from distil_cache.cache.gather import read_rows
from distil_cache.cache.records.builds import BuildRecord, BuiltFeature
from distil_cache.cache.records.datasets import SCHEMA
from distil_cache.cache.store import FORMATS, MAX_OPEN, Cache
from distil_cache.errors import UserError
from distil_cache.images.spec import ImageSpec
from distil_cache.train.data.augment import checked_transform, normalize
from distil_cache.train.data.dataset import Batch, FeatureDataset
from distil_cache.train.data.readers import AHEAD, LoaderOptions, ReaderPool
from distil_cache.train.data.shuffle import (
    BLOCK_ROWS,
    POOL_BLOCKS,
    RankShare,
    ReadBlocks,
    batch_sizes,
    divide,
    sequential,
    shuffled,
)
from distil_cache.train.methods.registry import METHODS
from joined_input import test_input
from small_cache import darker, make_cache, make_specs, rows, values_of
from torch import Tensor

FEATURES = ("image", "eps", "teacher")


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> FeatureDataset:
    table = rows("train", 60, {"adm": 45})
    table += [{**row, "generator": "again", "path": "copy.png"} for row in table[-8:]]
    cache, build = make_cache(tmp_path_factory.mktemp("data") / "cache", table)
    return FeatureDataset(cache, build, cache.datasets().read("pictures"), FEATURES, split="train", purpose="the test")


def stored(count: int, shard_rows: int = 500) -> ReadBlocks:
    """Rows stored in shards of ``shard_rows``, in the order of their numbers."""
    return ReadBlocks.of(np.arange(count) // shard_rows, np.arange(count) % shard_rows)


def assert_same(one: Batch, other: Batch) -> None:
    np.testing.assert_array_equal(one.rows, other.rows)
    assert torch.equal(one.flip, other.flip)
    assert all(torch.equal(one.features[name], other.features[name]) for name in one.features)


def test_an_epoch_holds_every_occurrence_once_and_its_order_follows_from_seed_and_epoch(part: FeatureDataset) -> None:
    orders = {
        (seed, epoch): np.concatenate([batch.rows for batch in part.epoch(seed, epoch, 16)])
        for seed in (0, 1)
        for epoch in (1, 2)
    }
    assert all(sorted(order) == list(range(113)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()}) == 4
    again = np.concatenate([batch.rows for batch in part.epoch(0, 1, 16)])
    np.testing.assert_array_equal(again, orders[0, 1])
    other_size = np.concatenate([batch.rows for batch in part.epoch(0, 1, 7)])
    np.testing.assert_array_equal(other_size, orders[0, 1])


def test_worker_processes_bring_the_batches_that_the_thread_brings(part: FeatureDataset) -> None:
    with ReaderPool(1) as readers:
        for epoch in (1, 2):
            found = list(part.epoch(0, epoch, 32, loading=LoaderOptions(readers), change=darker))
            expected = list(part.epoch(0, epoch, 32, change=darker))
            assert len(found) == len(expected) == 4
            for one, other in zip(found, expected, strict=True):
                assert_same(one, other)
        process = next(iter(readers._pool._processes))  # type: ignore[union-attr]
        os.kill(process, signal.SIGKILL)
        with pytest.raises(UserError, match="--workers 1: a reader process was killed"):
            list(part.epoch(0, 1, 32, loading=LoaderOptions(readers)))


def without_shared_memory(images: torch.Tensor, rows: np.ndarray, epoch: int) -> torch.Tensor:
    """Fail as torch does when /dev/shm is full."""
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def test_too_little_shared_memory_is_said_in_a_sentence(part: FeatureDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = r"--workers 1: there is too little shared memory .*/dev/shm .*No space left.*--shm-size.*--workers 0"
    with ReaderPool(1) as readers, pytest.raises(UserError, match=sentence):
        list(part.epoch(0, 1, 32, loading=LoaderOptions(readers), change=without_shared_memory))

    def refused(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("distil_cache.train.data.readers.ProcessPoolExecutor", refused)
    with ReaderPool(1) as readers, pytest.raises(UserError, match=sentence):
        list(part.epoch(0, 1, 32, loading=LoaderOptions(readers)))


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_processes_divide_each_batch_of_one_process_among_them_and_read_nothing_twice(
    part: FeatureDataset, ranks: int
) -> None:
    whole = list(part.epoch(3, 1, 16, skip=2))
    shares = [list(part.epoch(3, 1, 16, 2, LoaderOptions(share=RankShare(rank, ranks)))) for rank in range(ranks)]
    for number, batch in enumerate(whole):
        pieces = [share[number] for share in shares]
        assert sorted(np.concatenate([piece.rows for piece in pieces])) == sorted(batch.rows)
        sizes = {len(piece.rows) for piece in pieces}
        assert max(sizes) - min(sizes) <= 1
        assert all(piece.whole == batch.whole == len(batch.rows) for piece in pieces)
        flips = dict(zip(batch.rows.tolist(), batch.flip.tolist(), strict=True))
        assert all(
            flips[row] == flip for p in pieces for row, flip in zip(p.rows.tolist(), p.flip.tolist(), strict=True)
        )


def test_a_process_reads_its_part_of_the_blocks_and_not_all_of_them() -> None:
    blocks = stored(4 * BLOCK_ROWS * POOL_BLOCKS, BLOCK_ROWS * POOL_BLOCKS)
    order = shuffled(blocks, 0, 1)
    sizes = batch_sizes(len(order.rows), 64)
    alone = len(divide(blocks, order, sizes, 0, RankShare())[0])
    of_two = [len(divide(blocks, order, sizes, 0, RankShare(rank, 2))[0]) for rank in (0, 1)]
    assert alone == 4 * POOL_BLOCKS
    assert all(pieces <= 0.8 * alone for pieces in of_two)


@pytest.mark.parametrize("ranks", [1, 2, 3, 20])
def test_evaluation_scores_every_occurrence_exactly_once_on_any_number_of_processes(
    part: FeatureDataset, ranks: int
) -> None:
    seen = np.zeros(len(part), dtype=int)
    for rank in range(ranks):
        for batch in part.in_order(16, LoaderOptions(share=RankShare(rank, ranks))):
            np.add.at(seen, batch.rows, 1)
            assert not bool(batch.flip.any())
    assert (seen == 1).all()


def test_skipping_batches_leaves_the_rest_as_it_is_and_reads_nothing_of_what_is_skipped(part: FeatureDataset) -> None:
    whole, rest = list(part.epoch(0, 1, 16)), list(part.epoch(0, 1, 16, skip=3))
    assert len(rest) == len(whole) - 3
    for one, other in zip(whole[3:], rest, strict=True):
        assert_same(one, other)
    assert list(part.epoch(0, 1, 16, skip=len(whole))) == []
    blocks = stored(5000)
    pieces = divide(blocks, shuffled(blocks, 0, 1), batch_sizes(5000, 50), 90, RankShare())[0]
    assert sum(len(piece.rows) for piece in pieces) == 500


def test_a_batch_holds_the_features_of_its_rows_and_the_view_of_each_flip(part: FeatureDataset) -> None:
    specs = make_specs()
    batch = next(part.epoch(0, 1, 24))
    assert 0 < int(batch.flip.sum()) < 24
    for index, row in enumerate(batch.rows):
        key, label = part.table["key"][int(row)].as_py(), int(batch.label[index])
        assert label == part.label[row]
        for name in ("image", "eps"):
            np.testing.assert_array_equal(batch.features[name][index].numpy(), values_of(name, key, label, specs))
        view = values_of("teacher", key, label, specs)[int(batch.flip[index])]
        np.testing.assert_array_equal(batch.features["teacher"][index].numpy(), view)


def test_flips_are_drawn_for_each_row_and_epoch_on_their_own() -> None:
    blocks, epochs = stored(1280, 640), 200
    flips = np.zeros((epochs, 1280))
    for epoch in range(epochs):
        order = shuffled(blocks, 0, epoch)
        flips[epoch, order.rows] = order.flip
    assert abs(flips.mean() - 0.5) < 0.005
    assert (abs(flips.mean(axis=0) - 0.5) < 0.2).all()
    neighbours = np.corrcoef(flips[:, :-1].ravel(), flips[:, 1:].ravel())[0, 1]
    later = np.corrcoef(flips[:-1].ravel(), flips[1:].ravel())[0, 1]
    assert abs(neighbours) < 0.01
    assert abs(later) < 0.01
    of_blocks = flips.reshape(epochs, -1, BLOCK_ROWS).sum(axis=2)
    assert of_blocks.var() == pytest.approx(BLOCK_ROWS / 4, rel=0.1)


def test_a_batch_mixes_as_many_places_as_a_draw_from_eight_blocks_can() -> None:
    blocks = stored(100 * BLOCK_ROWS, 500)
    order = shuffled(blocks, 0, 1)
    batches = [order.rows[start : start + 64] for start in range(0, len(order.rows) - 511, 64)]
    of_batch = [len(np.unique(blocks.number[batch])) for batch in batches]
    assert min(of_batch) >= 6
    assert np.mean(of_batch) > 7.5
    halves = [abs(np.mean(batch < len(order.rows) / 2) - 0.5) for batch in batches]
    assert np.mean(halves) < 0.2  # eight blocks at random: 0.14; batches in the order of storage: 0.5


def test_two_rows_of_a_block_part_again_in_the_next_epoch() -> None:
    blocks = stored(100 * BLOCK_ROWS, 500)
    together = []
    for epoch in (1, 2):
        batch_of = np.empty(len(blocks.order), dtype=int)
        batch_of[shuffled(blocks, 0, epoch).rows] = np.arange(len(blocks.order)) // 64
        together.append(batch_of)
    pairs = np.random.default_rng(0).integers(0, BLOCK_ROWS, (100, 50, 2)) + np.arange(100)[:, None, None] * BLOCK_ROWS
    same = [batch_of[pairs[..., 0]] == batch_of[pairs[..., 1]] for batch_of in together]
    apart = pairs[..., 0] != pairs[..., 1]
    assert np.mean(same[0][apart]) < 0.2
    assert np.mean((same[0] & same[1])[apart]) < 0.04


def test_in_order_gives_all_rows_once_unmirrored(part: FeatureDataset) -> None:
    batches = list(part.in_order(10))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(113))
    assert not any(bool(batch.flip.any()) for batch in batches)
    blocks = stored(1000, 300)
    assert [len(piece) for piece in blocks.pieces()] == [64, 64, 64, 64, 44] * 3 + [64, 36]
    np.testing.assert_array_equal(sequential(blocks).rows, np.arange(1000))


class CountingReaders(ReaderPool):
    """A reader thread that counts the rows it has handed out and that are still referenced."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.most = 0, 0

    def read(self, *args: Any, **kwargs: Any) -> Iterator[dict[str, Tensor]]:
        for piece in super().read(*args, **kwargs):
            (values,) = piece.values()
            self.rows += len(values)
            self.most = max(self.most, self.rows)
            weakref.finalize(values, self._forget, len(values))
            del values
            yield piece
            del piece

    def _forget(self, rows: int) -> None:
        self.rows -= rows


@pytest.mark.slow
def test_what_an_epoch_holds_in_memory_and_keeps_open_does_not_grow_with_the_dataset(tmp_path: Path) -> None:
    most, open_files = [], []
    for name, count in (("small", 540), ("large", 1080)):
        cache, build = make_cache(
            tmp_path / name, rows("train", count, {"adm": count}), features={"image": ["train"]}, shard_rows=30
        )
        table = cache.datasets().read("pictures")
        data = FeatureDataset(cache, build, table, ("image",), split="train", purpose="the test")
        before = set(Path("/proc/self/fd").iterdir())
        readers = CountingReaders()
        assert sum(len(batch.rows) for batch in data.epoch(0, 1, 50, loading=LoaderOptions(readers))) == 2 * count
        most.append(readers.most)
        open_files.append(len(set(Path("/proc/self/fd").iterdir()) - before))
        assert readers.rows == 0
    assert max(most) <= 2 * POOL_BLOCKS * 30 + AHEAD * 30 < 2 * 540
    assert max(open_files) <= MAX_OPEN < 2 * 1080 // 30


def test_large_rows_are_read_straight_into_their_batches(tmp_path: Path) -> None:
    count = 40
    rng = np.random.default_rng(0)
    spec = ImageSpec(size=160)
    pixels = rng.integers(0, 256, (count, 3, 160, 160), dtype=np.uint8)
    table = sorted(rows("train", count // 2, {"adm": count // 2}), key=lambda row: row["key"])
    for form in FORMATS:
        cache = Cache.create(tmp_path / form)
        revision = cache.datasets().write("pictures", pa.Table.from_pylist(table, schema=SCHEMA))
        store = cache.feature(spec, form)
        shards = (store.commit([row["key"] for row in table], pixels).shard,)
        built = BuiltFeature(fingerprint=store.fingerprint, folder=store.folder.name, shards=shards, splits=("train",))
        build = BuildRecord.new("pictures", revision, {"image": built}, {})
        data = FeatureDataset(
            cache, build, cache.datasets().read("pictures"), ("image",), split="train", purpose="the test"
        )
        readers = CountingReaders()
        found = list(data.epoch(0, 1, 8, loading=LoaderOptions(readers)))
        assert readers.most == count
        for batch in found:
            np.testing.assert_array_equal(batch.features["image"].numpy(), pixels[batch.rows])
        halves = [list(data.epoch(0, 1, 8, 2, LoaderOptions(share=RankShare(rank, 2)))) for rank in (0, 1)]
        assert sorted(row for half in halves for batch in half for row in batch.rows) == sorted(
            row for batch in found[2:] for row in batch.rows
        )


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1]), (0, 4, [])],
)
def test_the_last_batch_is_kept_and_never_a_single_row_behind_others(count: int, size: int, sizes: list[int]) -> None:
    assert batch_sizes(count, size) == sizes


def test_rows_come_in_the_requested_order_whatever_is_between_them(part: FeatureDataset) -> None:
    store = part.stores["eps"]
    shard, row = np.array([1, 0, 1, 0, 1]), np.array([23, 2, 0, 24, 23])
    whole = [store.read(name) for name in store.index().shards[:2]]
    expected = np.stack([whole[s][r] for s, r in zip(shard, row, strict=True)])
    for gap in (0, 8):
        found = read_rows(store, store.index().shards, shard, row, max_gap=gap)
        np.testing.assert_array_equal(found, expected)


def test_each_row_can_ask_for_its_own_view(part: FeatureDataset) -> None:
    store = part.stores["teacher"]
    shard, row, view = np.array([0, 0, 1, 0, 0]), np.array([3, 4, 4, 3, 5]), np.array([0, 1, 1, 1, 0])
    whole = [store.read(name) for name in store.index().shards[:2]]
    expected = np.stack([whole[s][r][v] for s, r, v in zip(shard, row, view, strict=True)])
    read = partial(read_rows, store, store.index().shards, shard, row)
    np.testing.assert_array_equal(read(view), expected)
    np.testing.assert_array_equal(read(view, max_gap=0), expected)
    np.testing.assert_array_equal(read(1), np.stack([whole[s][r][1] for s, r in zip(shard, row, strict=True)]))


def test_an_error_while_reading_ahead_reaches_the_loop(tmp_path: Path) -> None:
    cache, build = make_cache(tmp_path / "cache", rows("train", 20, {"adm": 20}))
    data = FeatureDataset(
        cache, build, cache.datasets().read("pictures"), ("image",), split="train", purpose="the test"
    )
    for file in (tmp_path / "cache" / "features" / build.features["image"].folder / "shards").rglob("c/*/*/*/*"):
        file.unlink()
    with pytest.raises(UserError, match="image, shard"):
        list(data.epoch(0, 1, 8))


def test_a_teacher_with_one_view_cannot_serve_a_training_that_mirrors(tmp_path: Path) -> None:
    cache, build = make_cache(tmp_path / "cache", rows("train", 4, {"adm": 4}), views=("identity",))
    with pytest.raises(UserError, match="needs identity and hflip"):
        FeatureDataset(cache, build, cache.datasets().read("pictures"), FEATURES, split="train", purpose="the test")


def test_the_test_crop_is_the_same_window_for_image_and_noise() -> None:
    method = METHODS["distildire"]
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    eps = torch.randn(2, 3, 32, 32).half()
    x = test_input({"image": image, "eps": eps}, method, 28, "crop")
    assert torch.equal(x[:, :3], normalize(image[..., 2:30, 2:30].float() / 255))
    assert torch.equal(x[:, 3:], eps[..., 2:30, 2:30].float())
    resized = test_input({"image": image, "eps": eps}, method, 28, "resize")
    assert resized[:, 3:].std() < 0.8 * x[:, 3:].std()
    larger = test_input({"image": image, "eps": eps}, method, 48, "crop")
    assert larger.shape == (2, 6, 48, 48)
    with pytest.raises(UserError, match="unknown transform 'zoom'; use crop or resize"):
        checked_transform("zoom")
