"""The kinds of diffusion models: guided-diffusion's ADM, and DDPMs of diffusers."""

from __future__ import annotations

from .ddpm import Ddpm, DdpmConfig
from .unet import Adm, AdmConfig

DiffusionConfig = AdmConfig | DdpmConfig
"""What decides a network, apart from its weights: image size, levels and noise schedule among others."""
DiffusionModel = Adm | Ddpm
"""A network that predicts noise."""
