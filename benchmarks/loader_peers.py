"""The samples of the loader's benchmark in other programs' formats, read in order and put into batches of tensors.

Each stores a sample as its documentation shows for arrays, uncompressed, and reads local files in this process. One that
is not installed is left out, and named. ``pip install .[bench]`` brings all but mosaicml-streaming, which asks for a numpy
older than 2.2 and is measured where it is installed beside it.
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

Arrays = dict[str, np.ndarray[Any, Any]]
Loading = Callable[[], Iterator[dict[str, torch.Tensor]]]


def peers(folder: Path, samples: Arrays, batch: int) -> dict[str, Loading]:
    """Title with version and bytes a sample -> reader, of each peer that is installed; arrays are (N, ...)."""
    found: dict[str, Loading] = {}
    for module, title, make in (
        ("streaming", "mosaicml-streaming", _mosaic),
        ("webdataset", "webdataset", _webdataset),
        ("litdata", "litdata", _litdata),
        ("datasets", "Hugging Face datasets", _datasets),
    ):
        try:
            version = importlib.import_module(module).__version__
        except ImportError as error:
            print(f"{title} is left out: {error}")
            continue
        root = folder / module
        root.mkdir(parents=True)
        load = make(root, samples, batch)
        rows = len(next(iter(samples.values())))
        stored = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) // rows
        found[f"{title} {version}, {stored:,} bytes"] = load
    return found


def _rows(samples: Arrays) -> Iterator[Arrays]:
    names = list(samples)
    for values in zip(*samples.values(), strict=True):
        yield dict(zip(names, values, strict=True))


def _batches(rows: Iterable[Any], names: Iterable[str], batch: int) -> Iterator[dict[str, torch.Tensor]]:
    """Stack rows, dictionaries of arrays or tensors, into batches."""
    remaining = iter(rows)
    while some := list(islice(remaining, batch)):
        yield {name: torch.stack([torch.as_tensor(row[name]) for row in some]) for name in names}


def _mosaic(root: Path, samples: Arrays, batch: int) -> Loading:
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    columns = {name: f"ndarray:{rows.dtype}:{','.join(map(str, rows.shape[1:]))}" for name, rows in samples.items()}
    with MDSWriter(out=str(root), columns=columns) as out:
        for row in _rows(samples):
            out.write(row)
    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(root), shuffle=False, batch_size=batch)
    return lambda: _batches((dataset[number] for number in range(len(dataset))), samples, batch)


def _webdataset(root: Path, samples: Arrays, batch: int) -> Loading:
    import webdataset

    with webdataset.TarWriter(str(root / "all.tar")) as out:
        for number, row in enumerate(_rows(samples)):
            out.write({"__key__": f"{number:06}", **{f"{name}.npy": _npy(array) for name, array in row.items()}})

    def load() -> Iterator[dict[str, torch.Tensor]]:
        dataset = webdataset.WebDataset(str(root / "all.tar"), shardshuffle=False).decode()
        rows = ({name: row[f"{name}.npy"] for name in samples} for row in dataset)
        return _batches(rows, samples, batch)

    return load


def _npy(array: np.ndarray[Any, Any]) -> bytes:
    data = io.BytesIO()
    np.save(data, array)
    return data.getvalue()


def _litdata(root: Path, samples: Arrays, batch: int) -> Loading:
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(root), chunk_bytes="64MB")
    for number, row in enumerate(_rows(samples)):
        writer.add_item(number, {name: torch.from_numpy(array) for name, array in row.items()})
    writer.done()
    writer.merge()
    dataset = StreamingDataset(str(root))
    return lambda: _batches((dataset[number] for number in range(len(dataset))), samples, batch)


def _datasets(root: Path, samples: Arrays, batch: int) -> Loading:
    import datasets

    features = datasets.Features(
        {name: datasets.Array3D(rows.shape[1:], str(rows.dtype)) for name, rows in samples.items()}
    )
    made = datasets.Dataset.from_dict({name: list(rows) for name, rows in samples.items()}, features=features)
    made.save_to_disk(str(root / "saved"))
    dataset = datasets.load_from_disk(str(root / "saved")).with_format("torch")
    return lambda: iter(dataset.iter(batch_size=batch))
