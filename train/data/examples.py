"""From a batch of the cache to the examples of a training step, on the batch's device.

The teacher may run online, during the training, on the cached DIRE. It does the same as the feature ``teacher``,
sample by sample: DIRE / 255, resize, flip, normalise, backbone. So both ways of training agree up to the float16 of
the cached maps. ``official-code`` needs it, since its CutMix changes DIRE first; any other training may request it
with ``--teacher-online``, at the cost of one backbone call per sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...cache.records.about import Geometry
from ...choices import BACKBONE
from ...errors import UserError
from ...models.backbone_entry import Triple
from ...models.backbones import HALF, backbone_entry, load_teacher, per_channel, resize
from ...models.layout import memory_layout
from ..config import TrainConfig
from ..methods.method import Method
from .augment import cutmix, flipped, mix_draws, sample_draws, train_input
from .dataset import Batch


@dataclass(frozen=True)
class OnlineTeacher:
    """A frozen backbone with its preprocessing of DIRE.

    Attributes
    ----------
    model
        The backbone.
    size
        Side of its input in pixels.
    mean, std
        Normalisation of DIRE in 0..1.
    facts
        Backbone, digest and origin of its weights, for the run's record.
    """

    model: nn.Module
    size: int
    mean: Triple
    std: Triple
    facts: Mapping[str, str]

    def __call__(self, dire: Tensor, flip: Tensor) -> Tensor:
        """Compute the teacher's map.

        Parameters
        ----------
        dire : Tensor, shape (B, 3, S, S)
            uint8.
        flip : Tensor, shape (B,)
            bool, samples to mirror.

        Returns
        -------
        Tensor, shape (B, C, h, w)
            float32.
        """
        images = flipped(resize(dire.float() / 255, self.size), flip)
        x = (images - per_channel(self.mean, images)) / per_channel(self.std, images)
        with torch.no_grad(), torch.autocast(dire.device.type, enabled=False):
            features: Tensor = self.model(x.contiguous(memory_format=memory_layout(x.device)))
        return features

    def shape(self) -> tuple[int, int, int]:
        """Return the shape of its map, (C, h, w)."""
        with torch.no_grad():
            _, channels, height, width = self.model(torch.zeros(1, 3, self.size, self.size)).shape
        return channels, height, width


class Example(NamedTuple):
    """Floats that a step learns from: input by feature (B, ...), label (B,), the teacher's map (B, C, h, w) or None."""

    x: Mapping[str, Tensor]
    label: Tensor
    taught: Tensor | None


@dataclass(frozen=True)
class ExampleBuilder:
    """Makes the examples of one training.

    Attributes
    ----------
    method, size, seed
        Method, side of the student's input in pixels, and seed of the training.
    online
        The teacher; None if cached maps serve, or if the method needs none.
    geometry
        What the rows of each feature are.
    """

    method: Method
    size: int
    seed: int
    online: OnlineTeacher | None
    geometry: Mapping[str, Geometry]

    def __call__(self, batch: Batch, epoch: int) -> Example:
        """Prepare a batch of an epoch, from 1. The result, mixing included, depends only on (seed, epoch, rows)."""
        method, features, label = self.method, dict(batch.features), batch.label
        rows = batch.rows
        if method.cutmix:
            drawn = mix_draws(self.seed, epoch, int(rows[0]))
            if drawn.mix < method.cutmix:
                features, label = cutmix(features, label, drawn)
        window = sample_draws(self.seed, epoch, rows) if method.window == "random-crop" else None
        x = train_input(features, batch.flip, method, self.size, window, self.geometry)
        if self.online is None:
            return Example(x, label, None if method.target is None else features.get(method.target))
        flip = batch.flip if method.flips else batch.flip.new_zeros(batch.flip.shape)
        return Example(x, label, self.online(features[method.online_input], flip))


def open_online_teacher(config: TrainConfig, cached: Mapping[str, Any] | None, image_side: int) -> OnlineTeacher:
    """Load the teacher of a training on the CPU.

    If the build has cached teacher maps, the preset ``paper`` uses that very teacher: same backbone, input and weights.
    Otherwise, and in ``official-code``, it is the teacher of the configuration, by default ResNet-50 with torchvision's
    IMAGENET1K_V2 weights, and the preset decides how DIRE is normalised.

    Parameters
    ----------
    config
        The configuration of the training.
    cached
        Spec of the build's feature ``teacher``, or None.
    image_side
        Side of the cached images in pixels.

    Raises
    ------
    UserError
        The weights cannot be obtained, or are not those of the cached teacher.
    """
    method = config.definition
    same = cached if method.preset == "paper" else None
    name, size = name_and_side(config, cached, image_side)
    loaded = load_teacher(name, config.teacher_weights)
    if same and loaded.digest != same["weights"]:
        raise UserError(
            f"teacher {name}: the weights of {loaded.source} have the digest {loaded.digest[:12]}…, those of the "
            f"build's teacher {str(same['weights'])[:12]}…. Pass the build's weights with --teacher-weights."
        )
    entry = backbone_entry(name)
    mean, std = (HALF, HALF) if method.preset == "official-code" else (entry.mean, entry.std)
    if same:
        mean, std = _triple(same["mean"]), _triple(same["std"])
    facts = {"backbone": name, "weights": loaded.digest, "source": loaded.source}
    return OnlineTeacher(loaded.model, size, mean, std, facts)


def name_and_side(config: TrainConfig, cached: Mapping[str, Any] | None, image_side: int) -> tuple[str, int]:
    """Return the backbone of the online teacher and the side of its input, without loading it.

    Parameters and errors are those of `open_online_teacher`.
    """
    same = cached if config.definition.preset == "paper" else None
    name = config.teacher or (str(same["backbone"]) if same else BACKBONE)
    if same and name != same["backbone"]:
        raise UserError(f"teacher {name}: this build's teacher is {same['backbone']}. Omit --teacher.")
    return name, int(same["size"]) if same else config.train_size or config.definition.side(image_side, None)


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
