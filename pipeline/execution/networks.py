"""The networks of a build on their device, and their batch sizes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from ...cache.spec import Spec
from ...choices import Precision
from ...errors import UsageError
from ...features.contract import Network, Producer, Single
from ...features.registry import walk_of
from ...models.device import HALF_TYPES, arithmetic
from ...models.diffusion.checkpoints import find_adm, load_adm
from ...models.diffusion.conditioning import with_classes
from ...models.diffusion.ddim import NoiseModel
from ...models.diffusion.fused_norm import fault_on, kind_of, use_fused_norms
from ...models.diffusion.kinds import DiffusionConfig, DiffusionModel
from ...models.diffusion.unet import Adm
from ...models.diffusion.winograd import use_winograd
from ...models.layout import move_network
from ...models.user_cache import user_cache_folder
from ..config import BuildConfig
from ..planning.host_memory import check_memory, free_limit, host_memory
from .batches import CPU_BATCH, CUDA_VALUES, BatchSize, most_images, remembered_size

SINGLE_BATCH = {"cpu": CPU_BATCH, "cuda": 32}
"""Automatic batch of what is made by one call of another network, or by none."""


def adm_on(config: BuildConfig, device: torch.device, *, reduced: bool = True) -> DiffusionModel:
    """Load the diffusion model onto the device, in the build's precision or in float32."""
    model = load_adm(config.adm, config.adm_config, class_label=config.class_label, sha256=config.sha256).model
    return placed(model, config.precision if reduced else "fp32", device)


def placed(model: DiffusionModel, precision: Precision, device: torch.device) -> DiffusionModel:
    """Convert a loaded diffusion model to its precision and move it to its device.

    The memory format is channels-last: cuDNN's half-precision convolutions need it for full speed, oneDNN's avoid
    copying every feature map, and attention reads feature maps without a copy. On CPU in float32, large 3x3
    convolutions use Winograd's algorithm. On CUDA, group normalisation uses fused kernels where they work.
    """
    if precision in HALF_TYPES:
        model.to_half(HALF_TYPES[precision])
    elif device.type == "cpu" and isinstance(model, Adm):
        use_winograd(model)
    if device.type == "cuda" and isinstance(model, Adm) and not fault_on(device):
        use_fused_norms(model)
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def compiled(model: DiffusionModel) -> NoiseModel:
    """Compile a model for the batch shape of a build; the next build reuses the code from disk.

    No CUDA graphs: PyTorch keeps their memory for each thread, and versions of it fail in any but the first, while a
    batch of a build is long enough to hide what launching its kernels costs. What earlier builds of this process
    compiled is forgotten: beyond a few versions of a model, PyTorch runs the next one uncompiled.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_folder() / "compiled"))
    torch.compiler.reset()
    code = torch.compile(model, dynamic=False)

    def call(x: Tensor, t: Tensor, *classes: Tensor) -> Tensor:
        # the states of a pass come in either memory format, and code is compiled for one
        return cast(Tensor, code(x.contiguous(memory_format=torch.channels_last), t, *classes))

    return call


def network_on(producer: Single, config: BuildConfig, device: torch.device) -> nn.Module | None:
    """Load the network of a feature onto the device; None for a feature without one."""
    source = producer.feature.network(dict(config))
    return None if source is None else move_network(source.load(), device)


def adm_batch(
    config: BuildConfig, device: torch.device, model: DiffusionModel, size: int, specs: Mapping[str, Spec]
) -> BatchSize:
    """Return the configured batch size, or find one for images of ``size`` pixels; see :mod:`.batches`.

    The model is not a compiled one, which would be compiled again for each size that is tried.
    """
    check_memory(config, device, specs)
    if config.batch_size != "auto":
        return given_batch(config.batch_size, device, model.config, size)
    if config.memory is not None:
        return BatchSize(host_memory(config, specs).bounded_batch())
    most = None if device.type != "cpu" else max(1, host_memory(config, specs, 0).largest_batch(free_limit()))
    found = find_adm(config.adm, config.adm_config, class_label=config.class_label, sha256=config.sha256)
    walk = walk_of(specs)
    held = 0 if walk is None else walk.held_bytes
    return automatic_batch(found.digest, config.precision, device, model, size, config.class_label, most, held)


def given_batch(images: int, device: torch.device, flags: DiffusionConfig, size: int) -> BatchSize:
    """Return a batch size that the user chose. Raises UsageError if a feature map would be too large for CUDA."""
    values = flags.largest_map(size)
    most = most_images(values, device)
    if most is not None and images > most:
        raise UsageError(
            f"--batch-size {images}: this diffusion model has feature maps of {values:,} values an image, and tensors on "
            f"CUDA are limited to {CUDA_VALUES:,}; use at most {most}."
        )
    return BatchSize(images)


def automatic_batch(
    digest: str,
    precision: Precision,
    device: torch.device,
    model: DiffusionModel,
    size: int,
    class_label: str | None,
    most: int | None = None,
    held: int = 0,
) -> BatchSize:
    """Return the batch size for a model (by the digest of its weights) and images of ``size`` pixels, at most ``most``.

    ``held`` are the bytes an image that a pass keeps beside its calls.
    """

    def attempt(images: int) -> None:
        beside = torch.ones(images * held, dtype=torch.uint8, device=device)  # zeros would take no memory on a CPU
        told = with_classes(model, class_label, [""] * images, device)
        with arithmetic(precision, device), torch.inference_mode():
            told(
                torch.zeros(images, 3, size, size, device=device), torch.zeros(images, dtype=torch.int64, device=device)
            )
        del beside

    identity: dict[str, str | int] = {"model": digest, "size": size, "precision": precision}
    if held:
        identity["held"] = held
    limits = [limit for limit in (most, most_images(model.config.largest_map(size), device)) if limit is not None]
    return remembered_size(identity, device, attempt, min(limits, default=None))


def single_batch(config: BuildConfig, device: torch.device) -> BatchSize:
    """Return the batch size without the ADM. It does not depend on the ADM's, which a build may not need."""
    return BatchSize(SINGLE_BATCH[device.type] if config.batch_size == "auto" else config.batch_size)


class Models:
    """The networks of a build on its device, each loaded on first use.

    Other batch sizes do not depend on whether the ADM was loaded, so a build that was interrupted between the two writes
    the same bytes.

    Parameters
    ----------
    config
        Configuration of the build.
    device
        Device of the networks.
    size
        Side of the cached image in pixels.
    specs
        By feature.

    Attributes
    ----------
    others
        The networks of other features than the ADM's that are loaded, by feature.
    """

    def __init__(self, config: BuildConfig, device: torch.device, size: int, specs: Mapping[str, Spec]) -> None:
        self.device = device
        self.others: dict[str, nn.Module | None] = {}
        self._config, self._size, self._specs = config, size, specs

    def load(self, producer: Producer) -> None:
        """Load the network of a producer, unless it is loaded, and find its batch size."""
        _ = self.batch(producer), self.network(producer)

    def network(self, producer: Producer) -> Network | None:
        """Return the network of a producer; None if it has none."""
        if not isinstance(producer, Single):
            return self.adm
        name = producer.feature.name
        if name not in self.others:
            self.others[name] = network_on(producer, self._config, self.device)
        return self.others[name]

    def batch(self, producer: Producer) -> BatchSize:
        """Return the batch size of a producer."""
        return self.single_batch if isinstance(producer, Single) else self.adm_batch

    @cached_property
    def adm(self) -> NoiseModel:
        """The diffusion model, compiled if that is configured."""
        return compiled(self._eager_adm) if self._config.compile else self._eager_adm

    @cached_property
    def adm_batch(self) -> BatchSize:
        """Batch size of the ADM."""
        return adm_batch(self._config, self.device, self._eager_adm, self._size, self._specs)

    @property
    def normalisation(self) -> str:
        """How the diffusion model normalises, in words; compiled code fuses the plain operations itself."""
        return "compiled" if self._config.compile else kind_of(self._eager_adm)

    @cached_property
    def _eager_adm(self) -> DiffusionModel:
        return adm_on(self._config, self.device)

    @cached_property
    def single_batch(self) -> BatchSize:
        """Batch size of what is made without the ADM."""
        return single_batch(self._config, self.device)
