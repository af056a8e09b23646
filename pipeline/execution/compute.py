"""Compute the features of a task on its device: the fused pass of the ADM, then the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...cache.gather import gather
from ...cache.shards.packed import BITS, BLOCK, LEAST_EXPONENT, most_exponent, packing_of
from ...cache.spec import Spec
from ...choices import FloatStorage
from ...errors import UserError
from ...models.diffusion.conditioning import with_classes
from ...models.diffusion.ddim import Extraction, extract
from ...models.transfer import HostArray, HostCopy, to_device
from ..planning.estimate import route_calls
from ..planning.plan import PASS_FEATURES, Task, routes
from ..specs import EpsSpec, NoiseSpec, ReconSpec, TeacherSpec, check_teacher, one_call_features, teacher_views
from .batches import pad_batch, run_batches
from .context import TaskContext
from .load import TaskImages

FINITE = "finite"


def load_models(task: Task, images: TaskImages, context: TaskContext) -> None:
    """Load the models that :func:`compute` needs for this task, unless they are loaded."""
    if any(images.to_compute(task, feature) for feature in PASS_FEATURES):
        _ = context.models.adm_batch
    if images.to_compute(task, "teacher"):
        _ = context.models.teacher


def compute(task: Task, images: TaskImages, context: TaskContext) -> tuple[dict[str, HostArray], int]:
    """Compute all features, except the images, that the task's images lack and for which no row is taken over.

    Returns
    -------
    dict of str to array
        Feature -> rows, in the order of ``images.to_compute``.
    int
        Images x ADM calls.

    Raises
    ------
    UserError
        If a model returns values that are not finite, or the device has too little memory.
    """
    made, calls = run_pass(task, images, context)
    wanted = images.to_compute(task, "teacher")
    if wanted:
        computed = dict(zip(images.to_compute(task, "dire"), made.get("dire", ()), strict=True))
        fresh = {**images.taken.get("dire", {}), **computed}
        old = [key for key in wanted if key not in fresh]
        rows = dict(zip(old, gather(context.stores["dire"], old), strict=True)) if old else {}
        made["teacher"] = run_teacher(np.stack([fresh[key] if key in fresh else rows[key] for key in wanted]), context)
    return made, calls


def run_pass(task: Task, images: TaskImages, context: TaskContext) -> tuple[dict[str, HostArray], int]:
    """Compute eps, recon, dire and noise with as few ADM calls as possible; returns the same as :func:`compute`."""
    lacking = {feature: images.to_compute(task, feature) for feature in PASS_FEATURES}
    index = {feature: {key: number for number, key in enumerate(keys)} for feature, keys in lacking.items() if keys}
    row_of = {key: row for row, key in enumerate(images.keys)}
    cost = route_calls(context.schedule, context.config.real_step)
    made: dict[str, HostArray] = {}
    calls = 0
    for route, keys in routes(images.keys, lacking, one_call_features(context.specs)).items():
        step = _Pass(route, cost[route], images.pixels, row_of, index, made, context)
        step.run(keys)
        calls += len(keys) * cost[route]
    return made, calls


@dataclass
class _Pass:
    """The images of a task that take one route. Their results go to row ``index[feature][key]`` of ``made``."""

    route: str
    cost: int
    pixels: HostArray
    row_of: Mapping[str, int]
    index: Mapping[str, Mapping[str, int]]
    made: dict[str, HostArray]
    context: TaskContext

    def run(self, keys: Sequence[str]) -> None:
        """Run the pass over the images of these keys."""
        self.wants = [feature for feature, rows in self.index.items() if not rows.keys().isdisjoint(keys)]
        run_batches(keys, self.context.models.adm_batch, self._launch, self._land)

    def _launch(self, batch: Sequence[str], size: int) -> HostCopy:
        context = self.context
        keys = pad_batch(batch, size)
        pixels = to_device(self.pixels[[self.row_of[key] for key in keys]], context.models.device)
        requested = {"eps"} if self.route == "first" else set(self.wants)
        with torch.inference_mode():
            x = to_signal(pixels)
            found = extract(
                with_classes(context.models.adm, context.config.class_label, keys, context.models.device),
                x,
                context.schedule,
                requested,
                clip=context.config.clip,
                real_step=context.config.real_step,
            )
            rows = {feature: stored_rows(feature, found, context.specs[feature]) for feature in self.wants}
            return HostCopy({**rows, FINITE: found.finite})

    def _land(self, batch: Sequence[str], values: dict[str, HostArray]) -> None:
        _check_finite(batch, values.pop(FINITE), self.wants)
        for feature, rows in values.items():
            index = self.index[feature]
            target = self.made.setdefault(feature, np.empty((len(index), *rows.shape[1:]), rows.dtype))
            for key, row in zip(batch, rows, strict=False):  # the rows may be padded
                if key in index:
                    target[index[key]] = row
        self.context.progress.advance("ADM calls", len(batch) * self.cost)


def _check_finite(keys: Sequence[str], finite: HostArray, wants: Sequence[str]) -> None:
    """Raise UserError if the model returned values that are not finite for an image of the batch."""
    bad = [key for key, fine in zip(keys, finite.tolist(), strict=False) if not fine]
    if bad:
        raise UserError(
            f"{', '.join(wants)}: the diffusion model gave NaN or Inf for {len(bad)} of {len(keys)} images "
            f"(first: {bad[0]}), "
            "so nothing was stored for them. Try --precision fp32; if that is set already, the weights are damaged."
        )


def to_signal(pixels: Tensor) -> Tensor:
    """Map uint8 pixels to a diffusion model's float32 input in [-1, 1]: k / 255 x 2 - 1, as the reference does.

    Except on a CPU, where it would change the last bits, the input has the memory format of the model's weights.
    """
    x = pixels.float() / 255 * 2 - 1
    return x if x.device.type == "cpu" else x.contiguous(memory_format=torch.channels_last)


def stored_rows(feature: str, found: Extraction, spec: Spec) -> Tensor:
    """Return one feature of a pass as it is read from a cache: eps and noise in float, images in uint8."""
    if isinstance(spec, EpsSpec):
        assert found.eps is not None
        return stored_floats(found.eps, spec.storage)
    if isinstance(spec, NoiseSpec):
        first = found.eps if found.noise_first is None else found.noise_first  # equal for a pass of one call
        noise = found.noise_mean if spec.reduction == "mean" else first
        assert noise is not None
        return stored_floats(noise, spec.storage)
    if isinstance(spec, ReconSpec):
        assert found.recon is not None
        return ((found.recon + 1) * 127.5).clamp(0, 255).to(torch.uint8)  # truncated, as DIRE's script writes it
    assert found.dire is not None
    return found.dire


def stored_floats(x: Tensor, storage: FloatStorage) -> Tensor:
    """Return float32 values (N, ...) as a cache that stores them so gives them back, on their device.

    For integers this is the rounding of :func:`...cache.shards.packed.pack`, to the bit: what a student is trained on and
    what ``predict`` computes are the same.
    """
    packed = packing_of(storage)
    if packed is None:
        return x.to(getattr(torch, storage))
    bits, values = BITS[packed], x[0].numel()
    block = functional.pad(x.half().float().flatten(1), (0, -values % BLOCK)).reshape(len(x), -1, BLOCK)
    exponent = torch.frexp(block.abs().amax(-1, keepdim=True)).exponent - (bits - 1)
    exponent = exponent.clamp(LEAST_EXPONENT, most_exponent(packed))
    most = 2 ** (bits - 1) - 1
    codes = torch.ldexp(block, -exponent).round().clamp(-most, most)
    return torch.ldexp(codes, exponent).half().flatten(1)[:, :values].reshape(x.shape)


def run_teacher(dire: HostArray, context: TaskContext) -> HostArray:
    """Run the backbone over uint8 DIRE rows (N, 3, S, S); returns (N, V, C, h, w) float16."""
    spec = context.specs["teacher"]
    assert isinstance(spec, TeacherSpec)
    parts: list[HostArray] = []

    def launch(batch: Sequence[int], size: int) -> HostCopy:
        rows = to_device(dire[pad_batch(batch, size)], context.models.device)
        return HostCopy({"teacher": teacher_views(context.models.teacher, rows, spec)})

    def land(batch: Sequence[int], values: dict[str, HostArray]) -> None:
        check_teacher(values["teacher"], spec)
        parts.append(values["teacher"][: len(batch)])
        context.progress.advance("teacher", len(batch))

    run_batches(range(len(dire)), context.models.teacher_batch, launch, land)
    return np.concatenate(parts)
