"""Diffusion models of diffusers: folders of a ``UNet2DModel`` that predicts noise (DDPM); needs ``distil-cache[diffusers]``.

A folder, or ``hf:OWNER/REPO`` such as ``hf:google/ddpm-cifar10-32``, holds ``config.json``, ``scheduler_config.json`` and
``diffusion_pytorch_model.safetensors``; in a folder that a pipeline saved, they are in ``unet`` and ``scheduler``. Of both
configurations, what decides the predicted noise and its schedule is read and checked.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from ...errors import UserError
from ...progress import Progress
from ...storage.json_record import read_record
from ..diffusers_library import diffusers_library
from ..remote_weights import fetch_weights
from ..weights import load_frozen, read_state_dict
from .noise_schedule import NoiseSchedule, betas_of, respaced

ARCHITECTURE = "diffusers-unet2d"
CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
ANCHOR = "time_embedding.linear_1.weight"
"""A key of such a network, which no ADM has."""
_HUB_REPO = re.compile(r"hf:[\w.-]+/[\w.-]+(@[\w.-]+)?")
_Count = Annotated[int, Field(ge=1, le=2**14)]
_Name = Annotated[str, Field(pattern="^[A-Za-z0-9_]{1,64}$")]
_Blocks = Annotated[tuple[_Name, ...], Field(min_length=1, max_length=16)]


class DdpmScheduler(BaseModel):
    """The noise schedule that a network was trained with, with the names and defaults of diffusers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    num_train_timesteps: Annotated[int, Field(ge=1, le=10**5)] = 1000
    beta_start: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    beta_end: Annotated[float, Field(gt=0, lt=1)] = 2e-2
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: Literal["epsilon"] = "epsilon"
    trained_betas: None = None


class DdpmConfig(BaseModel):
    """What decides the noise that a ``UNet2DModel`` predicts, with the names and defaults of diffusers; and its schedule."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    class_name: Literal["UNet2DModel"] = Field(default="UNet2DModel", alias="_class_name")
    sample_size: Annotated[int, Field(ge=8, le=2**14)]
    in_channels: Literal[3] = 3
    out_channels: Literal[3, 6] = 3
    center_input_sample: bool = False
    time_embedding_type: Literal["positional"] = "positional"
    freq_shift: int = 0
    flip_sin_to_cos: bool = True
    down_block_types: _Blocks = ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D")
    up_block_types: _Blocks = ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D")
    block_out_channels: Annotated[tuple[_Count, ...], Field(min_length=1, max_length=16)] = (224, 448, 672, 896)
    layers_per_block: _Count = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: _Name = "conv"
    upsample_type: _Name = "conv"
    act_fn: _Name = "silu"
    attention_head_dim: _Count | None = 8
    norm_num_groups: _Count = 32
    attn_norm_num_groups: _Count | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: _Name = "default"
    add_attention: bool = True
    class_embed_type: None = None
    num_class_embeds: None = None
    scheduler: DdpmScheduler = DdpmScheduler()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.sample_size % 2 ** (len(self.block_out_channels) - 1):
            raise ValueError(
                f"sample_size {self.sample_size} cannot be halved {len(self.block_out_channels) - 1} times"
            )
        return self

    @property
    def image_size(self) -> int:
        """Side of the images that it was trained on, in pixels."""
        return self.sample_size

    @property
    def class_cond(self) -> bool:
        """Whether it is told a class."""
        return False

    @property
    def diffusion_steps(self) -> int:
        """Timesteps of its training."""
        return self.scheduler.num_train_timesteps

    @property
    def flags(self) -> dict[str, str | int | float | bool]:
        """The settings as scalars: lists joined by commas, without those that are None."""
        own = self.model_dump(exclude={"class_name", "scheduler"}, exclude_none=True)
        values = {**own, **self.scheduler.model_dump(exclude={"prediction_type"}, exclude_none=True)}
        return {
            name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()
        }

    @classmethod
    def of_flags(cls, flags: Mapping[str, str | int | float | bool]) -> Self:
        """Return the configuration with these `flags`."""
        listed = ("down_block_types", "up_block_types", "block_out_channels")
        values = {name: str(value).split(",") if name in listed else value for name, value in flags.items()}
        absent = {name: None for name in ("attention_head_dim", "attn_norm_num_groups") if name not in flags}
        return cls.model_validate({**values, **absent, "scheduler": flags})

    def schedule(self, steps: str) -> NoiseSchedule:
        """Return its schedule respaced to ``steps``, see :func:`.noise_schedule.respace`."""
        own = self.scheduler
        if own.beta_schedule == "squaredcos_cap_v2":
            return respaced(steps, betas_of("cosine", own.num_train_timesteps))
        root = 0.5 if own.beta_schedule == "scaled_linear" else 1.0
        betas = np.linspace(own.beta_start**root, own.beta_end**root, own.num_train_timesteps, dtype=np.float64)
        return respaced(steps, betas ** (1 / root))

    def multipliers(self) -> tuple[float, ...]:
        """Return the channel multiplier of each level, finest first."""
        return tuple(channels / self.block_out_channels[0] for channels in self.block_out_channels)

    def largest_map(self, side: int) -> int:
        """Return how many values the largest feature map of an image of ``side`` pixels has."""
        return measured(self, side).largest


class Ddpm(nn.Module):
    """The network with the interface of an ADM.

    Parameters
    ----------
    config
        What decides it.
    """

    def __init__(self, config: DdpmConfig) -> None:
        super().__init__()
        self.config = config
        settings = config.model_dump(exclude={"class_name", "scheduler"})
        try:
            self.unet: nn.Module = diffusers_library().UNet2DModel(**settings)
        except (ValueError, TypeError, AssertionError) as error:
            raise UserError(f"{CONFIG}: diffusers cannot build such a UNet2DModel ({error}).") from error
        self._half: torch.dtype | None = None

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise of states (B, 3, H, W) at original timesteps (B,)."""
        with torch.autocast(x.device.type, dtype=self._half, enabled=self._half is not None):
            found: Tensor = self.unet(x, t).sample
        return found.float()

    def to_half(self, dtype: torch.dtype) -> Self:
        """Run in half precision by autocast, which keeps normalisation in float32; the weights stay as they are."""
        self._half = dtype
        return self


class CallSize(NamedTuple):
    """Of a call on one image: the values of the largest tensor, and the most bytes that are alive at a time."""

    largest: int
    alive: int


class _Measuring(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the sizes of what runs within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest, self.alive = 0, 0
        self._storages: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and look at what it returns."""
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
                storage = tensor.untyped_storage()
                self._storages[StorageWeakRef(storage)] = storage.nbytes()  # type: ignore[no-untyped-call]
        alive = ((ref, size) for ref, size in self._storages.items() if not ref.expired())  # type: ignore[no-untyped-call]
        self._storages = dict(alive)
        self.alive = max(self.alive, sum(self._storages.values()))
        return made


@functools.cache
def measured(config: DdpmConfig, side: int) -> CallSize:
    """Return what a call on one image of ``side`` pixels makes; nothing is computed."""
    with torch.device("meta"):
        model = Ddpm(config).eval().requires_grad_(False)
        x, t = torch.empty(1, 3, side, side), torch.zeros(1, dtype=torch.int64)
    measuring = _Measuring()
    with measuring, torch.inference_mode():
        model.unet(x, t)
    return CallSize(measuring.largest, measuring.alive)


def is_folder(name: str) -> bool:
    """Return whether a name of a diffusion model is a folder, or a repository of the Hub without a file."""
    return _HUB_REPO.fullmatch(name) is not None or Path(name).is_dir()


def folder_file(name: str, file: str, progress: Progress | None = None, sha256: tuple[str, ...] = ()) -> Path:
    """Return the path of a file of a model's folder; one on the Hub is downloaded if necessary."""
    if name.startswith("hf:"):
        return fetch_weights(f"{name}/{file}", sha256 if file == WEIGHTS else (), progress)
    within = "scheduler" if file == SCHEDULER else "unet"
    saved_by_pipeline = Path(name) / within / file
    return saved_by_pipeline if saved_by_pipeline.is_file() else Path(name) / file


def read_ddpm_config(name: str, progress: Progress | None = None) -> DdpmConfig:
    """Return what the folder of a model says of it.

    Raises
    ------
    UserError
        It is no such folder, or its network or schedule is of another kind.
    """
    advice = "Name a folder of a UNet2DModel that predicts noise."
    config = read_record(folder_file(name, CONFIG, progress), _CONFIG, "the configuration of a UNet2DModel", advice)
    own = read_record(folder_file(name, SCHEDULER, progress), _SCHEDULER, "the schedule of a DDPM", advice)
    return config.model_copy(update={"scheduler": own})


def load_ddpm(path: Path, config: DdpmConfig) -> Ddpm:
    """Load weights with a known configuration: float32, on the CPU, evaluation mode, no gradients."""
    state = {f"unet.{name}": value for name, value in read_state_dict(path).items()}
    return load_frozen(lambda: Ddpm(config), state, str(path))


def parameter_bytes(config: DdpmConfig) -> int:
    """Return the bytes of the weights in float32."""
    with torch.device("meta"):
        return sum(parameter.nbytes for parameter in Ddpm(config).parameters())


_CONFIG: TypeAdapter[DdpmConfig] = TypeAdapter(DdpmConfig)
_SCHEDULER: TypeAdapter[DdpmScheduler] = TypeAdapter(DdpmScheduler)
