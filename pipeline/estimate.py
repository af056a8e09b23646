"""What a plan will cost: ADM calls, and bytes before compression."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ..cache.spec import Spec
from ..models.backbones import build_backbone
from .ddim import used_steps
from .image_spec import ImageSpec
from .plan import Plan, routes
from .schedule import Schedule
from .specs import DireSpec, EpsSpec, NoiseSpec, ReconSpec, one_call_features
from .teacher import TeacherSpec


def predicted_calls(plan: Plan, specs: Mapping[str, Spec], schedule: Schedule, real_step: int) -> int:
    """Return images x ADM calls of all tasks, if every image can be decoded."""
    one_call = one_call_features(specs)
    cost = route_calls(schedule, real_step)
    return sum(
        cost[route] * len(keys)
        for task in plan.tasks
        for route, keys in routes(task.keys, task.missing, one_call).items()
    )


def route_calls(schedule: Schedule, real_step: int) -> dict[str, int]:
    """Return the ADM calls that an image costs on each route of :func:`.plan.routes`."""
    inversion = used_steps(schedule, real_step)
    return {"path": 2 * inversion, "inversion": inversion, "first": 1}


def row_bytes(spec: Spec) -> int:
    """Return the bytes of one uncompressed row of a feature."""
    if isinstance(spec, ImageSpec):
        return 3 * spec.size**2
    if isinstance(spec, EpsSpec | NoiseSpec):
        return 3 * spec.image.size**2 * (4 if spec.storage == "float32" else 2)
    if isinstance(spec, ReconSpec | DireSpec):
        return 3 * spec.image.size**2
    assert isinstance(spec, TeacherSpec)
    with torch.device("meta"):  # shapes only, no arithmetic
        features = build_backbone(spec.backbone)(torch.empty(2, 3, spec.size, spec.size))
    return len(spec.views) * 2 * int(features[0].numel())


def image_size(specs: Mapping[str, Spec]) -> int:
    """Return the side of the cached image in pixels."""
    image = specs["image"]
    assert isinstance(image, ImageSpec)
    return image.size
