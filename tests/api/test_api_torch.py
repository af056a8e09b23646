"""Features as datasets of torch: what a DataLoader makes of them."""

from __future__ import annotations

import distil_cache as dc
import numpy as np
import pytest
import torch
from plain_cache import make_cache, rows
from torch.utils.data import DataLoader, DistributedSampler

TABLE = [*rows("train", 40, {"adm": 40}), *rows("test", 5, {"adm": 5})]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dc.DatasetView:
    root = tmp_path_factory.mktemp("torch") / "cache"
    make_cache(root, TABLE)
    return dc.open(root).dataset("pictures")


def test_a_loader_gets_features_with_labels_and_splits(data: dc.DatasetView) -> None:
    rows_of = data.to_torch("image", "eps")
    assert len(rows_of) == len(TABLE)
    batch = next(iter(DataLoader(rows_of, batch_size=8)))
    assert batch["image"].dtype == torch.uint8
    assert batch["eps"].dtype == torch.float16
    assert batch["key"] == data.keys[:8]
    assert batch["label"].tolist() == data.table["label"].to_pylist()[:8]
    assert batch["split"] == data.table["split"].to_pylist()[:8]
    assert np.array_equal(batch["eps"].numpy(), data.feature("eps").numpy()[:8])


def test_a_sample_is_read_by_its_row(data: dc.DatasetView) -> None:
    eps = data.feature("eps").to_torch(columns=("label",))
    assert set(eps[-1]) == {"eps", "label"}
    assert np.array_equal(eps[-1]["eps"].numpy(), data.feature("eps").numpy()[-1])
    with pytest.raises(IndexError):
        eps[len(eps)]
    with pytest.raises(dc.UsageError, match="there is no colour"):
        data.to_torch("eps", columns=("colour",))


def test_a_loader_reads_a_batch_at_once(data: dc.DatasetView, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    rows_of = data.to_torch("eps")
    monkeypatch.setattr(type(rows_of), "__getitem__", lambda *_: pytest.fail("read one by one"))
    samples = rows_of.__getitems__
    monkeypatch.setattr(type(rows_of), "__getitems__", lambda _, rows: asked.append(len(rows)) or samples(rows))
    assert sum(len(batch["label"]) for batch in DataLoader(rows_of, batch_size=32, shuffle=True)) == len(TABLE)
    assert asked == [32, 32, 26]


def test_processes_share_the_rows_through_a_sampler(data: dc.DatasetView) -> None:
    rows_of = data.to_torch("eps", columns=("key",))
    keys = []
    for rank in range(2):
        sampler = DistributedSampler(rows_of, num_replicas=2, rank=rank, seed=3)
        keys += [key for batch in DataLoader(rows_of, batch_size=16, sampler=sampler) for key in batch["key"]]
    assert sorted(keys) == data.keys


def test_reader_processes_read_the_same(data: dc.DatasetView) -> None:
    train = data.split("train")
    loader = DataLoader(train.to_torch("eps"), batch_size=64, num_workers=1, multiprocessing_context="spawn")
    assert np.array_equal(torch.cat([batch["eps"] for batch in loader]).numpy(), train.feature("eps").numpy())


def test_a_stream_has_every_row_once_in_an_order_of_seed_and_epoch(data: dc.DatasetView) -> None:
    def order(seed: int, epoch: int, workers: int = 0) -> list[str]:
        stream = data.to_torch("eps", streaming=True, seed=seed)
        stream.set_epoch(epoch)
        return [key for batch in DataLoader(stream, batch_size=16, num_workers=workers) for key in batch["key"]]

    first = order(0, 1)
    assert sorted(first) == data.keys
    assert first != data.keys
    assert order(0, 1) == first
    assert order(1, 1) != first
    assert order(0, 2) != first
    assert sorted(order(0, 1, workers=2)) == data.keys


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_a_stream_has_a_new_order_in_each_pass_that_the_seed_of_torch_repeats(
    data: dc.DatasetView, workers: int, persistent: bool
) -> None:
    def passes() -> list[list[str]]:
        torch.manual_seed(5)
        stream = data.to_torch("eps", streaming=True)
        loader = DataLoader(stream, batch_size=16, num_workers=workers, persistent_workers=persistent)
        return [[key for batch in loader for key in batch["key"]] for _ in range(2)]

    first, second = passes()
    assert sorted(first) == sorted(second) == data.keys
    assert first != second
    assert passes() == [first, second]


def test_worker_processes_that_persist_see_the_epoch(data: dc.DatasetView) -> None:
    stream = data.to_torch("eps", streaming=True)
    loader = DataLoader(stream, batch_size=16, num_workers=1, persistent_workers=True)
    orders = []
    for epoch in (1, 2, 1):
        stream.set_epoch(epoch)
        orders.append([key for batch in loader for key in batch["key"]])
    assert orders[0] == orders[2] != orders[1]


def test_a_stream_has_no_length_at_which_a_trainer_would_stop(data: dc.DatasetView) -> None:
    with pytest.raises(TypeError, match="has no len"):
        len(DataLoader(data.to_torch("eps", streaming=True), num_workers=2))


def test_a_stream_joins_rows_as_they_belong_together(data: dc.DatasetView) -> None:
    expected = dict(zip(data.keys, data.feature("eps").numpy(), strict=True))
    for sample in data.to_torch("image", "eps", streaming=True):
        assert np.array_equal(sample["eps"].numpy(), expected[sample["key"]])
