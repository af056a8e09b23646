"""Estimate the cost of a plan: ADM calls, bytes before compression, device-hours."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ...cache.shards.packed import packed_bytes, packing_of
from ...cache.spec import Spec
from ...images.spec import ImageSpec
from ...models.backbones import build_backbone
from ...models.diffusion.ddim import used_steps
from ...models.diffusion.noise_schedule import NoiseSchedule
from ..specs import DireSpec, EpsSpec, NoiseSpec, ReconSpec, TeacherSpec, one_call_features
from .plan import Plan, Task, routes


def predicted_calls(plan: Plan, specs: Mapping[str, Spec], schedule: NoiseSchedule, real_step: int) -> int:
    """Return images x ADM calls of all tasks, assuming that every image can be decoded."""
    return sum(task_calls(task, specs, schedule, real_step) for task in plan.tasks)


def task_calls(task: Task, specs: Mapping[str, Spec], schedule: NoiseSchedule, real_step: int) -> int:
    """Return images x ADM calls of one task, assuming that every image can be decoded."""
    cost = route_calls(schedule, real_step)
    divided = routes(task.keys, task.missing, one_call_features(specs))
    return sum(cost[route] * len(keys) for route, keys in divided.items())


def route_calls(schedule: NoiseSchedule, real_step: int) -> dict[str, int]:
    """Return the ADM calls per image on each route of :func:`.plan.routes`."""
    inversion = used_steps(schedule, real_step)
    return {"path": 2 * inversion, "inversion": inversion, "first": 1}


def row_bytes(spec: Spec) -> int:
    """Return the size in bytes of one row of a feature, packed as its spec says and not compressed."""
    if isinstance(spec, ImageSpec):
        return 3 * spec.size**2
    if isinstance(spec, EpsSpec | NoiseSpec):
        packed, shape = packing_of(spec.storage), (3, spec.image.size, spec.image.size)
        return packed_bytes(shape, packed) if packed else math.prod(shape) * (4 if spec.storage == "float32" else 2)
    if isinstance(spec, ReconSpec | DireSpec):
        return 3 * spec.image.size**2
    assert isinstance(spec, TeacherSpec)
    return len(spec.views) * 2 * math.prod(teacher_shape(spec))


def teacher_shape(spec: TeacherSpec) -> tuple[int, ...]:
    """Return the shape of a teacher's map of one image, (C, h, w)."""
    with torch.device("meta"):  # shapes only, no arithmetic
        features = build_backbone(spec.backbone)(torch.empty(2, 3, spec.size, spec.size))
    return tuple(features.shape[1:])


def image_size(specs: Mapping[str, Spec]) -> int:
    """Return the side of the cached image in pixels."""
    image = specs["image"]
    assert isinstance(image, ImageSpec)
    return image.size


def device_hours(adm_calls: int, teacher_rows: int, adm_rate: float | None, teacher_rate: float | None) -> float | None:
    """Return the hours that one device needs.

    Parameters
    ----------
    adm_calls
        Images x ADM calls.
    teacher_rows
        Images through the teacher.
    adm_rate
        Images x ADM calls a second; None if unknown.
    teacher_rate
        Images through the teacher a second; None if ``adm_rate`` includes the teacher.

    Returns
    -------
    float or None
        None if there are ADM calls and no rate for them.
    """
    if adm_calls and adm_rate is None:
        return None
    seconds = adm_calls / adm_rate if adm_rate else 0.0
    seconds += teacher_rows / teacher_rate if teacher_rate else 0.0
    return seconds / 3600
