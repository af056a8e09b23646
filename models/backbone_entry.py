"""What is known of a backbone: how to build it, what its weights expect, and where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from ..progress import Progress

Triple = tuple[float, float, float]
Interpolation = Literal["bilinear", "bicubic"]
BackboneBuilder = Callable[[int], nn.Module]
"""Builds a network with random weights for a number of input channels."""


@dataclass(frozen=True)
class PublishedWeights:
    """Default weights of a backbone: their name and how to get the file."""

    name: str
    fetch: Callable[[Progress | None], Path]


@dataclass(frozen=True)
class BackboneEntry:
    """A registered backbone.

    Attributes
    ----------
    build
        Builds the network with random weights for a number of input channels.
    channels
        Channels of the feature map.
    description
        One line for the list of backbones.
    mean, std
        Normalisation of images in [0, 1] that the published weights were trained with.
    classifier
        Key prefix of the classifier behind the feature map; these keys of weights files are ignored.
    published
        Weights of the network as a teacher; None if there are none.
    start
        ImageNet weights that a student may start from; by default those of ``published``.
    stem
        Name of the first convolution's weight, the only tensor whose shape depends on the number of input channels.
    size, interpolation
        Side of the inputs that the published weights were trained with, and how images were resized to it.
    build_pooled
        Builds the network up to its pooled features, (B, D), for images; None for the average of the map.
    """

    build: BackboneBuilder
    channels: int
    description: str
    mean: Triple
    std: Triple
    classifier: str | tuple[str, ...]
    published: PublishedWeights | None
    start: PublishedWeights | None
    stem: str
    size: int = 224
    interpolation: Interpolation = "bilinear"
    build_pooled: Callable[[], nn.Module] | None = None

    def pooled(self) -> nn.Module:
        """Build the network for images up to its pooled features, (B, D); its weights have the names of the map's."""
        if self.build_pooled is not None:
            return self.build_pooled()
        network = self.build(3)
        network.register_forward_hook(lambda module, inputs, features: features.mean(dim=(2, 3)))
        return network
