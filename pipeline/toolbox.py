"""The tools of a build, from its arguments: in this process, or in a worker that got them in a message."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..cache.spec import Spec
from ..cache.store import FeatureStore
from .config import BuildConfig
from .ddim import NoiseModel
from .estimate import image_size
from .image_file import Limits
from .networks import adm_batch, adm_on, compiled, teacher_batch, teacher_on
from .schedule import Schedule
from .sources import SourceFile
from .tools import Tools


def make_tools(
    config: BuildConfig,
    device: torch.device,
    schedule: Schedule,
    specs: Mapping[str, Spec],
    stores: Mapping[str, FeatureStore],
    *,
    pictures: FeatureStore | None,
    files: Mapping[str, SourceFile],
    advance: Callable[[str, int], None],
) -> Tools:
    """Return what tasks need besides their keys; see :class:`.tools.Tools`. No model is loaded yet."""

    def load_model() -> NoiseModel:
        model = adm_on(config, device)
        return compiled(model, device) if config.compile else model

    return Tools(
        stores=stores,
        specs=specs,
        pictures=pictures,
        files=files,
        schedule=schedule,
        clip=config.clip,
        real_step=config.real_step,
        device=device,
        decoders=config.workers,
        limits=Limits(max_pixels=config.max_pixels, min_side=config.min_side),
        load_adm=load_model,
        load_teacher=lambda: teacher_on(config, device),
        choose_batch=lambda model: adm_batch(config, device, model, image_size(specs)),
        teacher_batch=teacher_batch(config, device),
        advance=advance,
    )
