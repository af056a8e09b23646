"""The diffusion model of a bench: found as a build finds it, known by its shape alone, or drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ...choices import ADM
from ...errors import UsageError
from ...models.diffusion.checkpoints import OFFICIAL, find_adm, read_config
from ...models.diffusion.unet import Adm, AdmConfig


@dataclass(frozen=True)
class BenchModel:
    """What it is called, its flags, and the file of its weights with their digest, where there is one."""

    name: str
    config: AdmConfig
    path: Path | None = None
    digest: str | None = None


def find_model(adm: str, adm_config: Path | None, *, random: bool, loaded: bool) -> BenchModel:
    """Find the diffusion model that a bench is asked for.

    random : only the shape counts, the official model's or that of the flags in ``adm_config``. loaded : its weights
    will be needed; an official model whose weights are not is known without its file.
    Raises UserError as `find_adm`, and UsageError for a model beside ``random``.
    """
    if random:
        if adm != ADM:
            raise UsageError(
                f"--random-adm: draws weights for the shape of {ADM}, or of --adm-config; leave --adm out."
            )
        flags = OFFICIAL[ADM].config if adm_config is None else read_config(adm_config)
        shape = ADM if adm_config is None else adm_config.name
        return BenchModel(f"random weights in the shape of {shape}", flags)
    if not loaded and adm in OFFICIAL:
        return BenchModel(adm, OFFICIAL[adm].config)
    found = find_adm(adm, adm_config)
    return BenchModel(found.source, found.config, found.path, found.digest)


def random_adm(config: AdmConfig) -> Adm:
    """Draw weights for these flags, the same ones each time. None is all zero, as layers start that end a branch."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Adm(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return model
