"""A small random ADM, a small random teacher and a folder of images, for tests that run a whole build in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distil_cache.models.backbones import build_backbone
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from image_bytes import noise, saved
from safetensors.torch import save_file

SIDE = 16
STEPS = "ddim4"
"""Four steps of inversion and four of sampling: DIRE costs 8 calls."""

CONFIG = AdmConfig(
    image_size=SIDE,
    num_channels=32,
    num_res_blocks=1,
    channel_mult="1,1",
    attention_resolutions="8",
    num_heads=1,
    learn_sigma=True,
)

TINY_FLAGS: dict[str, Any] = {
    "image_size": 16,
    "num_channels": 32,
    "num_res_blocks": 1,
    "channel_mult": "1,2",
    "num_head_channels": 32,
    "attention_resolutions": "8",
    "resblock_updown": True,
}
"""Flags of guided-diffusion for a network of two levels."""


def write_adm(path: Path, seed: int = 0, config: AdmConfig = CONFIG) -> Path:
    """Save a random ADM of 16 x 16 pixels with its flags. All weights are drawn, also those that start at zero."""
    generator = torch.Generator().manual_seed(seed)
    state = {
        name: 0.05 * torch.randn(value.shape, generator=generator) + (0.5 if value.ndim == 1 else 0)
        for name, value in Adm(config).state_dict().items()
    }
    save_file(state, path, {"flags": json.dumps(config.model_dump())})
    return path


def write_teacher(path: Path, seed: int = 0) -> Path:
    """Save random weights of the backbone ``small``."""
    torch.manual_seed(seed)
    save_file(build_backbone("small").state_dict(), path)
    return path


def write_material(folder: Path, counts: dict[str, int]) -> Path:
    """Save a small ADM, a small teacher and images in a folder: ``adm.safetensors``, ``teacher.safetensors``, ``images``."""
    write_adm(folder / "adm.safetensors")
    write_teacher(folder / "teacher.safetensors")
    write_images(folder / "images", counts)
    return folder


def computed(result: dict[str, Any]) -> dict[str, int]:
    """Rows of each feature that a build says it computed."""
    return {name: row["computed"] for name, row in result["features"].items()}


def write_images(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write PNG noise in the layout cnndet: split -> images of each class, of generator ``gen``, 20 x 24 pixels."""
    for split, count in counts.items():
        for label, name in enumerate(("0_real", "1_fake")):
            place = folder / split / "gen" / name
            place.mkdir(parents=True)
            for number in range(count):
                unique = int(np.random.default_rng([seed, label, number, len(split)]).integers(2**31))
                (place / f"{number:03d}.v1 é.png").write_bytes(saved(noise(20, 24, unique)))
    return folder
