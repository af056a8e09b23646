"""The work of one task: read or decode an image shard, compute what is missing, commit it feature by feature.

The slow parts run in batches that never cross a shard; the last one is padded, so every batch has one shape and a build
that was interrupted computes with the very batches of an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..cache.gather import gather
from ..cache.spec import Spec
from ..cache.store import FeatureStore
from .adm import Adm
from .ddim import Extraction, extract
from .decode import decode
from .image_file import ImageRejected, Limits
from .image_spec import ImageSpec
from .plan import PASS_FEATURES, Task, routes
from .scan import read_source
from .schedule import Schedule
from .sources import SourceFile
from .specs import EpsSpec, NoiseSpec, ReconSpec, one_call_features
from .teacher import TeacherSpec, teacher_views

Rows = NDArray[Any]
T = TypeVar("T")


@dataclass
class Tools:
    """What tasks share: where results go, what makes them, and the settings that change only the speed.

    load_adm and load_teacher are called once, when a task first needs the model; the models come back on ``device``.
    """

    stores: Mapping[str, FeatureStore]
    specs: Mapping[str, Spec]
    files: Mapping[str, SourceFile]
    schedule: Schedule
    clip: bool
    real_step: int
    device: torch.device
    batch_size: int
    decoders: int
    limits: Limits
    load_adm: Callable[[], Adm]
    load_teacher: Callable[[], nn.Module]
    advance: Callable[[str, int], None]

    @cached_property
    def adm(self) -> Adm:
        """The diffusion model."""
        return self.load_adm()

    @cached_property
    def teacher(self) -> nn.Module:
        """The frozen backbone."""
        return self.load_teacher()


@dataclass
class Done:
    """What one task did: rows computed by feature, images x ADM calls, and why keys have no picture."""

    computed: dict[str, int] = field(default_factory=dict)
    adm_calls: int = 0
    unusable: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Images:
    """The pictures of a task, uint8 (N, 3, S, S), with their keys, and why the other planned keys have none.

    bad : the reason lies in the file's bytes and is final. gone : the file is no longer what was scanned, which says
    nothing about those bytes. Both map keys to ``reason: detail``.
    """

    keys: tuple[str, ...]
    pixels: Rows
    bad: Mapping[str, str]
    gone: Mapping[str, str]


def run_tasks(tasks: Sequence[Task], tools: Tools) -> Iterator[Done]:
    """Run the tasks in order; the next one's images are read while the current one is computed."""
    with ThreadPoolExecutor(max_workers=1) as ahead:
        waiting = ahead.submit(load_images, tasks[0], tools) if tasks else None
        for number, task in enumerate(tasks):
            assert waiting is not None
            images = waiting.result()
            if number + 1 < len(tasks):
                waiting = ahead.submit(load_images, tasks[number + 1], tools)
            yield run_task(task, images, tools)


def load_images(task: Task, tools: Tools) -> Images:
    """Read the task's pictures from the cache, or decode them from their files. Nothing is written here."""
    if task.image_shard is not None:
        return Images(task.keys, gather(tools.stores["image"], task.keys), {}, {})
    spec = tools.specs["image"]
    assert isinstance(spec, ImageSpec)
    bad: dict[str, str] = {}
    gone: dict[str, str] = {}

    def one(key: str) -> NDArray[np.uint8] | None:
        try:
            data = read_source(tools.files[key], key)
        except ImageRejected as why:
            gone[key] = str(why)
            return None
        try:
            return decode(data, spec, tools.limits)
        except ImageRejected as why:
            bad[key] = str(why)
            return None

    with ThreadPoolExecutor(max_workers=tools.decoders) as pool:
        results = dict(zip(task.keys, pool.map(one, task.keys), strict=True))
    good = {key: picture for key, picture in results.items() if picture is not None}
    pixels = np.stack(list(good.values())) if good else np.empty((0, 3, spec.size, spec.size), np.uint8)
    return Images(tuple(good), pixels, bad, gone)


def run_task(task: Task, images: Images, tools: Tools) -> Done:
    """Compute and commit everything that the task's images lack. Idempotent: what is there already stays."""
    done = Done(unusable={**images.bad, **images.gone})
    if task.image_shard is None:
        _commit_images(task, images, tools, done)
    made = _run_pass(task, images, tools, done)
    for feature in PASS_FEATURES:
        _commit(feature, task, images, made.get(feature), tools, done)
    wanted = _present(task, images, "teacher")
    if wanted:
        fresh = dict(zip(_present(task, images, "dire"), made.get("dire", ()), strict=True))
        old = [key for key in wanted if key not in fresh]
        rows = dict(zip(old, gather(tools.stores["dire"], old), strict=True)) if old else {}
        dire = np.stack([fresh[key] if key in fresh else rows[key] for key in wanted])
        _commit("teacher", task, images, _run_teacher(dire, tools), tools, done)
    return done


def _commit_images(task: Task, images: Images, tools: Tools, done: Done) -> None:
    """Commit the decoded pictures.

    Keys whose bytes cannot be decoded go into the marker with the reason and are never tried again. Those whose file is
    gone are left out of the shard, so the next build wants them again.
    """
    planned = [key for key in task.keys if key not in images.gone]
    if planned:
        tools.stores["image"].commit(planned, images.pixels, keys=images.keys, rejected=images.bad)
    done.computed["image"] = len(images.keys)
    tools.advance("image", len(task.keys))


def _present(task: Task, images: Images, feature: str) -> list[str]:
    """Return the keys that miss the feature and have a picture, in row order."""
    return [key for key in task.missing.get(feature, ()) if key not in images.bad and key not in images.gone]


def _commit(feature: str, task: Task, images: Images, rows: Rows | None, tools: Tools, done: Done) -> None:
    """Commit the rows made for :func:`_present`'s keys, if there are any."""
    keys = _present(task, images, feature)
    if rows is not None and keys:
        tools.stores[feature].commit(keys, rows)
        done.computed[feature] = len(keys)


def _run_pass(task: Task, images: Images, tools: Tools, done: Done) -> dict[str, Rows]:
    """Make eps, recon, dire and noise with as few ADM calls as each row allows.

    Returns feature -> rows, in the order of :func:`_present`.
    """
    lacking = {feature: _present(task, images, feature) for feature in PASS_FEATURES}
    place = {feature: {key: number for number, key in enumerate(keys)} for feature, keys in lacking.items()}
    row_of = {key: row for row, key in enumerate(images.keys)}
    made: dict[str, Rows] = {}
    for route, keys in routes(images.keys, lacking, one_call_features(tools.specs)).items():
        wants = frozenset(feature for feature, places in place.items() if not places.keys().isdisjoint(keys))
        for batch in _batches(keys, tools.batch_size):
            pixels = images.pixels[_padded([row_of[key] for key in batch], tools.batch_size)]
            result = _extract(torch.from_numpy(pixels), frozenset({"eps"}) if route == "first" else wants, tools)
            for feature in wants:
                values = stored_rows(feature, result, tools.specs[feature])
                rows = made.setdefault(feature, np.empty((len(lacking[feature]), *values.shape[1:]), values.dtype))
                for key, value in zip(batch, values, strict=False):
                    if key in place[feature]:
                        rows[place[feature][key]] = value
            done.adm_calls += len(batch) * result.calls
            tools.advance("ADM calls", len(batch) * result.calls)
    return made


def _extract(pixels: Tensor, wants: frozenset[str], tools: Tools) -> Extraction:
    """Run the pass over uint8 pixels (B, 3, S, S) with the tools' settings, which all specs of a build share."""
    x = to_signal(pixels.to(tools.device, non_blocking=True))
    with torch.inference_mode():
        return extract(tools.adm, x, tools.schedule, wants, clip=tools.clip, real_step=tools.real_step)


def to_signal(pixels: Tensor) -> Tensor:
    """Map uint8 pixels to the float32 that a diffusion model sees, in [-1, 1] (k / 255 x 2 - 1, as the reference does)."""
    return pixels.float() / 255 * 2 - 1


def stored_rows(feature: str, result: Extraction, spec: Spec) -> Rows:
    """Return one feature of a pass as it is stored, on the CPU: float16 or float32 noises, uint8 pictures."""
    if isinstance(spec, EpsSpec):
        assert result.eps is not None
        return _numpy(result.eps.to(getattr(torch, spec.storage)))
    if isinstance(spec, NoiseSpec):
        first = result.eps if result.noise_first is None else result.noise_first  # the same, of a pass of one call
        noise = result.noise_mean if spec.reduction == "mean" else first
        assert noise is not None
        return _numpy(noise.to(getattr(torch, spec.storage)))
    if isinstance(spec, ReconSpec):
        assert result.recon is not None
        return _numpy(((result.recon + 1) * 127.5 + 0.5).floor().clamp(0, 255).to(torch.uint8))
    assert result.dire is not None
    return _numpy(result.dire)


def _run_teacher(dire: Rows, tools: Tools) -> Rows:
    """Run the backbone over uint8 DIRE rows (N, 3, S, S); returns (N, V, C, h, w) float16."""
    spec = tools.specs["teacher"]
    assert isinstance(spec, TeacherSpec)
    parts = []
    for batch in _batches(range(len(dire)), tools.batch_size):
        rows = torch.from_numpy(dire[_padded(batch, tools.batch_size)]).to(tools.device, non_blocking=True)
        parts.append(_numpy(teacher_views(tools.teacher, rows, spec))[: len(batch)])
        tools.advance("teacher", len(batch))
    return np.concatenate(parts)


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _padded(rows: Sequence[int], size: int) -> list[int]:
    """Repeat the last row until the batch is full, so that all batches have one shape."""
    return [*rows, *[rows[-1]] * (size - len(rows))]


def _numpy(values: Tensor) -> Rows:
    array: Rows = values.cpu().numpy()
    return array
