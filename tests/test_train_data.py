"""Batches from the cache: every occurrence once, in a repeatable order, with the teacher's view that the flip needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from distil_cache.cache.gather import read_rows
from distil_cache.errors import UserError
from distil_cache.train.augment import checked_transform, normalised, test_input
from distil_cache.train.data import BLOCK_ROWS, Part, batch_sizes, shuffled_pools
from distil_cache.train.methods import METHODS
from small_cache import make_cache, make_specs, rows, values_of

FEATURES = ("image", "eps", "teacher")


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    table = rows("train", 60, {"adm": 45})
    table += [{**row, "generator": "again", "path": "copy.png"} for row in table[-8:]]
    cache, build = make_cache(tmp_path_factory.mktemp("data") / "cache", table)
    return Part(cache, build, cache.datasets().read("pictures"), FEATURES, split="train", purpose="the test")


def test_an_epoch_holds_every_occurrence_once_and_its_order_follows_from_seed_and_epoch(part: Part) -> None:
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


def test_skipping_batches_leaves_the_rest_as_it_is(part: Part) -> None:
    whole, rest = list(part.epoch(0, 1, 16)), list(part.epoch(0, 1, 16, skip=3))
    assert len(rest) == len(whole) - 3
    for one, other in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        assert torch.equal(one.features["teacher"], other.features["teacher"])


def test_a_batch_holds_the_features_of_its_rows_and_the_view_of_each_flip(part: Part) -> None:
    specs = make_specs()
    batch = next(part.epoch(0, 1, 24))
    assert 0 < int(batch.flip.sum()) < 24
    for place, row in enumerate(batch.rows):
        key, label = part.table["key"][int(row)].as_py(), int(batch.label[place])
        assert label == part.label[row]
        for name in ("image", "eps"):
            np.testing.assert_array_equal(batch.features[name][place].numpy(), values_of(name, key, label, specs))
        view = values_of("teacher", key, label, specs)[int(batch.flip[place])]
        np.testing.assert_array_equal(batch.features["teacher"][place].numpy(), view)


def test_half_of_all_pictures_is_mirrored_and_each_gets_both_views_over_the_epochs() -> None:
    blocks = [np.arange(start, start + 65) for start in range(0, 650, 65)]
    flips = np.zeros(650)
    for epoch in range(400):
        for pool in shuffled_pools(blocks, 0, epoch):
            flips[pool.rows] += pool.flip
    assert abs(flips.mean() / 400 - 0.5) < 0.02
    assert (flips > 140).all()
    assert (flips < 260).all()


def test_a_batch_mixes_rows_from_many_places() -> None:
    blocks = [np.arange(start, start + BLOCK_ROWS) for start in range(0, 100 * BLOCK_ROWS, BLOCK_ROWS)]
    pool = shuffled_pools(blocks, 0, 1)[0]
    assert len(set(pool.rows[:64] // BLOCK_ROWS)) >= 7


def test_in_order_gives_all_rows_once_unmirrored(part: Part) -> None:
    batches = list(part.in_order(10))
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(113))
    assert not any(bool(batch.flip.any()) for batch in batches)


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(10, 4, [4, 4, 2]), (9, 4, [4, 5]), (8, 4, [4, 4]), (1, 4, [1]), (3, 1, [1, 1, 1]), (0, 4, [])],
)
def test_the_last_batch_is_kept_and_never_a_single_row_behind_others(count: int, size: int, sizes: list[int]) -> None:
    assert batch_sizes(count, size) == sizes


def test_rows_come_in_the_order_asked_whatever_lies_between_them(part: Part) -> None:
    store = part.stores["eps"]
    shard, row = np.array([1, 0, 1, 0, 1]), np.array([23, 2, 0, 24, 23])
    whole = [store.read(name) for name in store.index().shards[:2]]
    expected = np.stack([whole[s][r] for s, r in zip(shard, row, strict=True)])
    np.testing.assert_array_equal(read_rows(store, shard, row), expected)


def test_an_error_while_reading_ahead_reaches_the_loop(tmp_path: Path) -> None:
    cache, build = make_cache(tmp_path / "cache", rows("train", 20, {"adm": 20}))
    data = Part(cache, build, cache.datasets().read("pictures"), ("image",), split="train", purpose="the test")
    for file in (tmp_path / "cache" / "features" / build.features["image"].folder / "shards").rglob("c/*/*/*/*"):
        file.unlink()
    with pytest.raises(UserError, match="image, shard"):
        list(data.epoch(0, 1, 8))


def test_a_teacher_with_one_view_cannot_serve_a_training_that_mirrors(tmp_path: Path) -> None:
    cache, build = make_cache(tmp_path / "cache", rows("train", 4, {"adm": 4}), views=("identity",))
    with pytest.raises(UserError, match="needs identity and hflip"):
        Part(cache, build, cache.datasets().read("pictures"), FEATURES, split="train", purpose="the test")


def test_the_test_crop_is_one_window_for_picture_and_noise() -> None:
    method = METHODS["distildire"]
    image = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    eps = torch.randn(2, 3, 32, 32).half()
    x = test_input({"image": image, "eps": eps}, method, 28, "crop")
    assert torch.equal(x[:, :3], normalised(image[..., 2:30, 2:30].float() / 255))
    assert torch.equal(x[:, 3:], eps[..., 2:30, 2:30].float())
    resized = test_input({"image": image, "eps": eps}, method, 28, "resize")
    assert resized[:, 3:].std() < 0.8 * x[:, 3:].std()
    larger = test_input({"image": image, "eps": eps}, method, 48, "crop")
    assert larger.shape == (2, 6, 48, 48)
    with pytest.raises(UserError, match="no transform 'zoom', only crop, resize"):
        checked_transform("zoom")
