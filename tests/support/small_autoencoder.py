"""A tiny ``AutoencoderKL`` of diffusers in a folder, and random weights of LPIPS, with every weight drawn from a seed."""

from __future__ import annotations

from pathlib import Path

import torch
from distil_cache.models.lpips import Lpips
from safetensors.torch import save_file

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
FACTOR = 2
"""By how much it lowers the resolution."""


def write_autoencoder(folder: Path, seed: int = 0) -> Path:
    """Save an autoencoder of images with even sides."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    AutoencoderKL(
        down_block_types=(DOWN, DOWN), up_block_types=(UP, UP), block_out_channels=(8, 16), norm_num_groups=4,
        latent_channels=3,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_lpips(path: Path, seed: int = 0) -> Path:
    """Save random weights with the names of the package ``lpips``, which has some of them twice, and constants."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in Lpips().state_dict().items():
        drawn = torch.randn(value.shape, generator=generator)
        spread = 0.01 if value.ndim == 1 else (2 / value[0].numel()) ** 0.5  # each layer keeps the variance
        state[name] = (drawn.abs() if name.startswith("lins") else drawn) * spread
    more = {f"lin{n}.model.1.weight": state[f"lins.{n}.model.1.weight"].clone() for n in range(5)}
    save_file({**state, **more, "scaling_layer.shift": torch.zeros(1, 3, 1, 1)}, path)
    return path
