"""A small real cache of 32-pixel pictures, written through the cache's own API, for the tests of training.

Generated pictures are brighter in the middle, so that a student has something to learn. Eps and DIRE are drawn at
random, the teacher's features come from a real (untrained) backbone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import Cache
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.dire import DireSpec
from distil_cache.features.builtin.eps import EpsSpec
from distil_cache.features.builtin.noise import NoiseSpec
from distil_cache.features.builtin.teacher import TeacherSpec, teacher_views
from distil_cache.images.spec import ImageSpec, parse_harmonization
from distil_cache.models.backbones import HALF, build_backbone
from distil_cache.models.diffusion.unet import AdmConfig
from distil_cache.models.weights import weights_digest
from plain_cache import SHARD_ROWS, SIDE, Row, write_cache
from plain_cache import rows as rows
from torch import Tensor

TRAIN_SIDE = 28


def make_cache(
    root: Path,
    table: Sequence[Row],
    *,
    features: Mapping[str, Sequence[str]] | None = None,
    steps: str = "ddim20",
    adm: str = "a",
    name: str = "pictures",
    views: tuple[str, ...] = ("identity", "hflip"),
    shard_rows: int = SHARD_ROWS,
    form: str = "zarr",
    harmonize: str | None = None,
) -> tuple[Cache, BuildRecord]:
    """Write a dataset, its features and the build record.

    features : feature -> splits; by default the teacher for train and all others for every split.
    """
    specs = make_specs(steps, adm, views, harmonize)

    def value_of(feature: str, key: str, label: int) -> np.ndarray:
        return values_of(feature, key, label, specs)

    return write_cache(root, table, specs, value_of, features=features, name=name, shard_rows=shard_rows, form=form)


def make_specs(
    steps: str = "ddim20",
    adm: str = "a",
    views: tuple[str, ...] = ("identity", "hflip"),
    harmonize: str | None = None,
) -> dict[str, Spec]:
    """The specs of the features."""
    image = ImageSpec(size=SIDE, harmonize=parse_harmonization(harmonize))
    identity = AdmIdentity.of(adm * 64, AdmConfig(image_size=SIDE, num_channels=32, channel_mult="1,2"))
    dire = DireSpec(image=image, adm=identity, steps=steps)
    teacher = TeacherSpec(
        dire=dire, backbone="small", weights=_teacher_digest(), size=TRAIN_SIDE, mean=HALF, std=HALF, views=views
    )
    noise = NoiseSpec(image=image, adm=identity, steps=steps)
    return {"image": image, "eps": EpsSpec(image=image, adm=identity), "dire": dire, "teacher": teacher, "noise": noise}


def values_of(feature: str, key: str, label: int, specs: Mapping[str, Spec]) -> np.ndarray:
    """One row of a feature, from the key alone."""
    rng = np.random.default_rng([int(key[:12], 16), ("image", "eps", "dire", "teacher", "noise").index(feature)])
    if feature in ("eps", "noise"):
        return rng.normal(size=(3, SIDE, SIDE)).astype(np.float16)
    if feature == "dire":
        return rng.integers(0, 90, (3, SIDE, SIDE), dtype=np.uint8)
    if feature == "image":
        pixels = rng.integers(0, 200, (3, SIDE, SIDE), dtype=np.uint8)
        pixels[:, 8:24, 8:24] += np.uint8(50 * label)
        return pixels
    spec = specs["teacher"]
    assert isinstance(spec, TeacherSpec)
    dire = torch.from_numpy(values_of("dire", key, label, specs))[None]
    return teacher_views(teacher_network(), dire, spec)[0].numpy()


@functools.cache
def teacher_network() -> torch.nn.Module:
    """The untrained backbone that teaches in these tests, always the same.

    Its normalisations know the range of DIRE here, so that its features are of the order of one and a wrong one shows.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        network = build_backbone("small", 3)
        for layer in network.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
        network(torch.rand(64, 3, TRAIN_SIDE, TRAIN_SIDE) * 180 / 255 - 1)
        return network.eval()


@functools.cache
def _teacher_digest() -> str:
    return weights_digest(teacher_network().state_dict())


def darker(images: Tensor, rows: np.ndarray, epoch: int) -> Tensor:
    """A change of pictures that depends on the row and on the epoch. Here, where worker processes can import it from."""
    return images // (1 + epoch) + torch.from_numpy(rows % 7).to(torch.uint8)[:, None, None, None]
