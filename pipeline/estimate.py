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
    inversion = used_steps(schedule, real_step)
    one_call = one_call_features(specs)
    cost = {"path": 2 * inversion, "inversion": inversion, "first": 1}
    return sum(
        cost[route] * len(keys)
        for task in plan.tasks
        for route, keys in routes(task.keys, task.missing, one_call).items()
    )


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
