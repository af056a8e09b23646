"""The teacher running during a training, on the cached DIRE, instead of its cached maps.

It does what the feature ``teacher`` did, sample by sample: DIRE / 255, resize, flip, normalise, backbone. So both ways of
training agree but for the float16 in which the maps are cached. ``official-code`` needs it, since its CutMix changes
DIRE first; any other training may ask for it with ``--teacher-online``, at the price of a backbone call a sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...choices import BACKBONE
from ...errors import UserError
from ...models.backbones import HALF, Triple, backbone_entry, load_teacher
from ...models.resize import resize
from ..config import TrainConfig
from .augment import flipped


@dataclass(frozen=True)
class OnlineTeacher:
    """A frozen backbone with what DIRE goes through before it.

    size : side of its input. mean, std : of DIRE in 0..1. facts : backbone, digest and origin of its weights.
    """

    model: nn.Module
    size: int
    mean: Triple
    std: Triple
    facts: Mapping[str, str]

    def __call__(self, dire: Tensor, flip: Tensor) -> Tensor:
        """Map DIRE, (B, 3, S, S) uint8, to features (B, C, h, w) float32; flip : (B,) bool, what is mirrored."""
        images = flipped(resize(dire.float() / 255, self.size), flip)
        mean = images.new_tensor(self.mean).view(3, 1, 1)
        std = images.new_tensor(self.std).view(3, 1, 1)
        with torch.no_grad(), torch.autocast(dire.device.type, enabled=False):
            features: Tensor = self.model((images - mean) / std)
        return features

    def shape(self) -> tuple[int, int, int]:
        """Shape of its map, (C, h, w)."""
        with torch.no_grad():
            _, channels, height, width = self.model(torch.zeros(1, 3, self.size, self.size)).shape
        return channels, height, width


def open_online_teacher(config: TrainConfig, cached: Mapping[str, Any] | None, image_side: int) -> OnlineTeacher:
    """Load the teacher of a training on the CPU.

    cached : spec of the build's feature ``teacher``, if it has one. The preset ``paper`` then means that very teacher:
    backbone, input and weights must be its own. Without it, and in ``official-code``, it is the configuration's, else
    ResNet-50 with torchvision's IMAGENET1K_V2 weights; DIRE is normalised as the preset says.
    Raises UserError for weights that cannot be had, or are not those of the cached teacher.
    """
    method = config.definition
    same = cached if method.preset == "paper" else None
    name = config.teacher or (str(same["backbone"]) if same else BACKBONE)
    if same and name != same["backbone"]:
        raise UserError(f"teacher {name}: this build's teacher is {same['backbone']}. Leave out --teacher.")
    loaded = load_teacher(name, Path(config.teacher_weights) if config.teacher_weights else None)
    if same and loaded.digest != same["weights"]:
        raise UserError(
            f"teacher {name}: the weights of {loaded.source} have the digest {loaded.digest[:12]}…, those of the build's "
            f"teacher {str(same['weights'])[:12]}…, so it would teach something else. Give its file with --teacher-weights."
        )
    entry = backbone_entry(name)
    mean, std = (HALF, HALF) if method.preset == "official-code" else (entry.mean, entry.std)
    size = config.train_size or method.side(image_side, None)
    if same:
        mean, std, size = _triple(same["mean"]), _triple(same["std"]), int(same["size"])
    facts = {"backbone": name, "weights": loaded.digest, "source": loaded.source}
    return OnlineTeacher(loaded.model, size, mean, std, facts)


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue
