"""Autoencoders of latent diffusion models: folders of diffusers' ``AutoencoderKL``; needs ``distil-cache[diffusers]``.

A folder, or ``hf:OWNER/REPO`` or ``hf:OWNER/REPO/FOLDER`` on the Hugging Face Hub, holds ``config.json`` and
``diffusion_pytorch_model.safetensors``. Of the configuration, what decides an image's way through the network is read and
checked; scaling and shift of the latents cancel out between encoder and decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from torch import Tensor, nn

from ..errors import UsageError, UserError
from ..progress import Progress
from ..storage.json_record import read_record
from .addresses import is_address
from .diffusers_library import diffusers_library
from .remote_weights import fetch_weights
from .weights import file_weights_digest, load_frozen, read_state_dict

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
_Count = Annotated[int, Field(ge=1, le=2**14)]
_Blocks = Annotated[
    tuple[Annotated[str, Field(pattern="^[A-Za-z0-9]{1,64}$")], ...], Field(min_length=1, max_length=16)
]


class AutoencoderConfig(BaseModel):
    """What decides the arithmetic of an ``AutoencoderKL``, with the names and defaults of diffusers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    class_name: Literal["AutoencoderKL"] = Field(alias="_class_name")
    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    down_block_types: _Blocks = ("DownEncoderBlock2D",)
    up_block_types: _Blocks = ("UpDecoderBlock2D",)
    block_out_channels: Annotated[tuple[_Count, ...], Field(min_length=1, max_length=16)] = (64,)
    layers_per_block: _Count = 1
    act_fn: Annotated[str, Field(pattern="^[a-z_]{1,32}$")] = "silu"
    latent_channels: _Count = 4
    norm_num_groups: _Count = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    @property
    def flags(self) -> dict[str, str | int | bool]:
        """The settings as scalars, lists joined by commas."""
        values = self.model_dump(exclude={"class_name"})
        return {
            name: ",".join(map(str, value)) if isinstance(value, tuple) else value for name, value in values.items()
        }


_FORM = TypeAdapter(AutoencoderConfig)


class RoundTrip(nn.Module):
    """An image's way through the autoencoder: encoded to the mode of its latent distribution, and decoded."""

    def __init__(self, autoencoder: nn.Module) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 3, S, S) in [-1, 1] to their reconstructions."""
        model: Any = self.autoencoder
        decoded: Tensor = model.decode(model.encode(x).latent_dist.mode()).sample
        return decoded


@dataclass(frozen=True)
class AutoencoderSource:
    """An autoencoder as options name it: a folder or an address, and what the SHA-256 of a download must be."""

    name: str
    sha256: tuple[str, ...] = ()

    def digest(self, progress: Progress | None = None) -> str:
        """Return the digest of its weights. Raises UserError if they cannot be obtained."""
        return file_weights_digest(self._file(WEIGHTS, progress))

    def fields(self, digest: str) -> Mapping[str, object]:
        """Return what a spec says of it."""
        return {"weights": digest, "flags": self._config().flags}

    def load(self) -> nn.Module:
        """Load it. Raises UserError if the weights do not fit the configuration."""
        path = self._file(WEIGHTS)
        return RoundTrip(load_frozen(self._network, read_state_dict(path), str(path))).eval()

    def build(self) -> nn.Module:
        """Build it with random weights, in evaluation mode."""
        return RoundTrip(self._network()).eval()

    def _network(self) -> nn.Module:
        settings = self._config().model_dump(exclude={"class_name"})
        try:
            network: nn.Module = diffusers_library().AutoencoderKL(**settings)
        except (ValueError, TypeError, AssertionError) as error:
            raise UserError(f"{self.name}/{CONFIG}: diffusers cannot build such an autoencoder ({error}).") from error
        return network

    def _config(self) -> AutoencoderConfig:
        path = self._file(CONFIG)
        return read_record(path, _FORM, "the configuration of an AutoencoderKL", "Name another folder.")

    def _file(self, name: str, progress: Progress | None = None) -> Path:
        if not is_address(self.name):
            return Path(self.name) / name
        return fetch_weights(f"{self.name.rstrip('/')}/{name}", self.sha256 if name == WEIGHTS else (), progress)


def autoencoder_source(name: str | None, sha256: tuple[str, ...] = ()) -> AutoencoderSource:
    """Return the source that an option names. Raises UsageError if it names none."""
    if not name:
        raise UsageError(
            "vae, and vae_error with it, needs an autoencoder. Name its folder: build --autoencoder FOLDER, or predict "
            "--weights-of vae=FOLDER."
        )
    return AutoencoderSource(name, sha256)
