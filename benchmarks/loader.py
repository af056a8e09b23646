"""Batches for a training of DistilDIRE at 256 pixels: this loader, flat files, other programs, the papers' data set.

A sample is the image, eps and one view of the teacher's features. The papers' code reads a PNG image, a PNG DIRE and a
float32 ``.pt`` of eps, one file each, and runs the teacher. Then a whole step: with the teacher's features from the
cache, and with the teacher running. All files are in the page cache: this measures decoding and copying, not a disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from compare import Comparison, Ways
from distil_cache.cache.records.builds import BuildRecord, BuiltFeature
from distil_cache.cache.records.datasets import SCHEMA
from distil_cache.cache.shards.zarr import CODECS
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache
from distil_cache.choices import CodecChoice, FloatStorage
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.dire import DireSpec
from distil_cache.features.builtin.eps import EpsSpec
from distil_cache.features.builtin.teacher import TeacherSpec
from distil_cache.images.spec import ImageSpec
from distil_cache.models.backbones import IMAGENET_MEAN, IMAGENET_STD, build_backbone
from distil_cache.train.data.augment import train_input
from distil_cache.train.data.dataset import Batch, FeatureDataset
from distil_cache.train.data.examples import OnlineTeacher
from distil_cache.train.loss import losses
from distil_cache.train.methods.registry import METHODS
from distil_cache.train.students.pixels import PixelStudent
from loader_peers import Loading, peers
from PIL import Image

SIDE, TRAIN_SIDE = 256, 224
ROWS, BATCH = 192, 64
STEP_BATCH = 4
FORMS: tuple[tuple[str, CodecChoice, FloatStorage], ...] = (
    ("webdataset", "none", "float16"),
    *(("zarr", codec, "float16") for codec in CODECS),
    ("zarr", "auto", "int8"),
    ("zarr", "auto", "int4"),
)
METHOD = METHODS["distildire"]
Values = dict[str, np.ndarray]


def loader_comparisons(folder: Path) -> list[Comparison]:
    """Reading a sample, without and with the resizing of training; a step with the teacher cached, and online."""
    values = _values()
    keys = [f"{number:032x}" for number in range(ROWS)]
    parts = {}
    for form, codec, storage in FORMS:
        root = folder / f"{form}-{codec}-{storage}"
        part = _part(root, form, keys, values, ("image", "eps", "teacher"), codec, storage)
        parts[f"{form} {codec} {storage}, {_bytes_per_sample(root):,} bytes"] = part
    ways: Ways = {"numpy.memmap, blocks of 64": _mapped(folder, values)}
    ways["PNG, PNG and .pt, as the papers' code"] = _papers(folder / "loose", values)
    ways |= {name: _epoch(part) for name, part in parts.items()}
    samples = {"image": values["image"], "eps": values["eps"], "teacher": values["teacher"][:, 0]}
    others = peers(folder / "peers", samples, BATCH)
    resized = {f"{name}, resized": _resized(way) for name, way in ways.items()}
    online = _part(
        folder / "online",
        "zarr",
        keys[:STEP_BATCH],
        {n: v[:STEP_BATCH] for n, v in values.items()},
        ("image", "eps", "dire"),
    )
    return [
        Comparison(
            "a sample: image, eps, one teacher view",
            {name: _drained(way) for name, way in (ways | others).items()},
            ROWS,
        ),
        Comparison("the same, resized to 224", {name: _drained(way) for name, way in resized.items()}, ROWS),
        _steps(next(part for name, part in parts.items() if name.startswith("zarr auto float16")), online),
    ]


def _values() -> Values:
    """Pictures that compress as photographs do, noise, and feature maps of which four fifths are 0, (ROWS, ...) each."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.normal(128, 60, (ROWS, 3, 20, 20))).float()
    smooth = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic").numpy()
    image = (smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
    dire = np.abs(rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)
    eps = rng.normal(0, 0.5, image.shape).astype(np.float16)  # as wide as the demo's
    teacher = (rng.normal(size=(ROWS, 2, 2048, 7, 7)) - 0.8).clip(min=0).astype(np.float16)
    return {"image": image, "eps": eps, "dire": dire, "teacher": teacher}


def _part(
    root: Path,
    form: str,
    keys: list[str],
    values: Values,
    features: tuple[str, ...],
    codec: CodecChoice = "auto",
    storage: FloatStorage = "float16",
) -> FeatureDataset:
    cache, specs = Cache.create(root), _specs(storage)
    table = pa.Table.from_pylist([_row(number, key) for number, key in enumerate(keys)], schema=SCHEMA)
    revision = cache.datasets().write("pictures", table)
    built = {}
    for name in features:
        store = cache.feature(specs[name], form, codec)
        shard = store.commit(keys, values[name]).shard
        built[name] = BuiltFeature(
            fingerprint=store.fingerprint, folder=store.folder.name, shards=(shard,), splits=("train",)
        )
    record = BuildRecord.new("pictures", revision, built, {})
    return FeatureDataset(cache, record, table, features, split="train", purpose="the benchmark")


def _bytes_per_sample(root: Path) -> int:
    """Return the bytes of what is read: of the two views of a teacher, one."""
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.rglob("shards/**/*") if path.is_file())
        for folder in root.glob("features/*")
    }
    return sum(size // 2 if name.startswith("teacher") else size for name, size in sizes.items()) // ROWS


def _specs(storage: FloatStorage) -> dict[str, Spec]:
    image, adm = ImageSpec(size=SIDE), AdmIdentity(weights="0" * 64, flags={})
    dire = DireSpec(image=image, adm=adm)
    teacher = TeacherSpec(
        dire=dire, backbone="resnet50", weights="1" * 64, size=TRAIN_SIDE, mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
    return {"image": image, "eps": EpsSpec(image=image, adm=adm, storage=storage), "dire": dire, "teacher": teacher}


def _row(number: int, key: str) -> dict[str, object]:
    fixed = {"source": "", "split": "train", "generator": "", "family": "", "group": "", "format": "PNG", "bytes": 1}
    return fixed | {"key": key, "path": f"{number}.png", "label": number % 2, "width": SIDE, "height": SIDE}


def _mapped(folder: Path, values: Values) -> Loading:
    maps = {}
    for name, array in (("image", values["image"]), ("eps", values["eps"]), ("teacher", values["teacher"][:, 0])):
        path = folder / f"{name}.flat"
        array.tofile(path)
        maps[name] = np.memmap(path, array.dtype, "r", shape=array.shape)

    def load() -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, ROWS, BATCH):
            yield {name: torch.from_numpy(np.array(flat[start : start + BATCH])) for name, flat in maps.items()}

    return load


def _papers(folder: Path, values: Values) -> Loading:
    folder.mkdir()
    for number in range(ROWS):
        for name in ("image", "dire"):
            Image.fromarray(values[name][number].transpose(1, 2, 0)).save(folder / f"{number}-{name}.png")
        torch.save(torch.from_numpy(values["eps"][number]).float(), folder / f"{number}.pt")

    def picture(number: int, name: str) -> torch.Tensor:
        with Image.open(folder / f"{number}-{name}.png") as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)

    def load() -> Iterator[dict[str, torch.Tensor]]:
        for start in range(0, ROWS, BATCH):
            numbers = range(start, start + BATCH)
            yield {
                "image": torch.stack([picture(number, "image") for number in numbers]),
                "dire": torch.stack([picture(number, "dire") for number in numbers]),
                "eps": torch.stack([torch.load(folder / f"{number}.pt", weights_only=True) for number in numbers]),
            }

    return load


def _epoch(part: FeatureDataset) -> Loading:
    return lambda: (batch.features for batch in part.epoch(0, 1, BATCH))


def _resized(load: Loading) -> Loading:
    flip = torch.arange(BATCH) % 2 == 0

    def resize() -> Iterator[dict[str, torch.Tensor]]:
        for features in load():
            yield train_input(features, flip, METHOD, TRAIN_SIDE)

    return resize


def _drained(load: Loading) -> Callable[[], object]:
    def drain() -> None:
        assert sum(len(next(iter(features.values()))) for features in load()) == ROWS

    return drain


def _steps(cached: FeatureDataset, online: FeatureDataset) -> Comparison:
    """One step of ResNet-50 on a small batch, reading included."""
    teacher = build_backbone("resnet50").eval().requires_grad_(requires_grad=False)
    run = OnlineTeacher(teacher, TRAIN_SIDE, IMAGENET_MEAN, IMAGENET_STD, {})
    student = PixelStudent.of("resnet50", 3 * len(METHOD.inputs))
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-4)

    def step(part: FeatureDataset, target: Callable[[Batch], torch.Tensor]) -> Callable[[], object]:
        def once() -> None:
            batch = next(part.epoch(0, 1, STEP_BATCH))
            logit, features = student(train_input(batch.features, batch.flip, METHOD, TRAIN_SIDE))
            loss = losses(logit, batch.label, features, target(batch), 0.5)
            optimiser.zero_grad()
            loss.total.backward()
            optimiser.step()

        return once

    ways = {
        "teacher online, on the cached DIRE": step(online, lambda batch: run(batch.features["dire"], batch.flip)),
        "teacher from the cache": step(cached, lambda batch: batch.features["teacher"]),
    }
    return Comparison("a sample of a step: ResNet-50, 224 pixels", ways, STEP_BATCH, rounds=3)
