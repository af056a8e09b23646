"""Backbones of the library timm, by names such as ``timm:resnet18.a1_in1k``; needs ``distil-cache[timm]``.

A name is an architecture, with a tag for one of its weights on the Hugging Face Hub. timm builds the network and says with
which input size, normalisation and interpolation its weights were trained; where weights come from and what is read of
them is this package's matter. Vision transformers have no map of channels first and serve as embeddings alone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from ..errors import UserError
from .backbone_entry import BackboneEntry, Interpolation, PublishedWeights, Triple
from .remote_weights import fetch_weights

PREFIX = "timm:"
WEIGHTS_FILE = "model.safetensors"


@functools.cache
def timm_entry(name: str) -> BackboneEntry:
    """Return the entry of ``timm:NAME``.

    Raises
    ------
    UserError
        timm is not installed, or has no such model.
    """
    model = name.removeprefix(PREFIX)
    with torch.device("meta"):
        network = _create(model, 3, pooled=False)
        facts = cast(Mapping[str, Any], network.pretrained_cfg)
        _, *sides = facts["input_size"]
        shape = tuple(network.eval()(torch.empty(2, 3, *sides)).shape)
    is_map = len(shape) == 4 and shape[2] == shape[3] and getattr(network, "output_fmt", "NCHW") == "NCHW"
    hub = facts.get("hf_hub_id")
    address = f"hf:{hub}/{facts.get('hf_hub_filename') or WEIGHTS_FILE}"
    published = PublishedWeights(address, lambda progress: fetch_weights(address, (), progress)) if hub else None

    def build(in_channels: int) -> nn.Module:
        if not is_map:
            raise UserError(
                f"backbone {name}: has no map of channels over positions, which teachers and students are. "
                "It can make the feature `embedding`."
            )
        return _create(model, in_channels, pooled=False)

    return BackboneEntry(
        build=build,
        channels=shape[1],
        description=f"{model} of timm",
        mean=_triple(facts["mean"]),
        std=_triple(facts["std"]),
        classifier=tuple(f"{layer}." for layer in _names(facts.get("classifier"))),
        published=published,
        start=published,
        stem=next((f"{layer}.weight" for layer in _names(facts.get("first_conv"))), next(iter(network.state_dict()))),
        size=max(sides),
        interpolation=_interpolation(facts.get("interpolation")),
        build_pooled=lambda: _create(model, 3, pooled=True),
    )


def _create(model: str, in_channels: int, *, pooled: bool) -> nn.Module:
    """Build a network without its classifier, with random weights."""
    timm = _library()
    if not timm.is_model(model):
        raise UserError(f"{PREFIX}{model}: timm {timm.__version__} has no such model. Its list_models() names them.")
    options: dict[str, Any] = {} if pooled else {"global_pool": ""}
    try:
        network: nn.Module = timm.create_model(model, pretrained=False, in_chans=in_channels, num_classes=0, **options)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise UserError(f"{PREFIX}{model}: timm {timm.__version__} cannot build it so ({error}).") from error
    return network


def _library() -> ModuleType:
    try:
        import timm
    except ImportError as error:
        raise UserError("timm: is not installed. Install it with: pip install 'distil-cache[timm]'") from error
    return timm


def _names(layers: object) -> tuple[str, ...]:
    """Return the names of layers as timm gives them: none, one or several."""
    return () if not layers else (layers,) if isinstance(layers, str) else tuple(layers)  # type: ignore[arg-type]


def _triple(values: Any) -> Triple:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _interpolation(text: object) -> Interpolation:
    """Return how inputs are resized: as timm says, or bicubic, its most common word, where it says anything else."""
    return "bilinear" if text == "bilinear" else "bicubic"
