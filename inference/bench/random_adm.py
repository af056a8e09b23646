"""The diffusion model of a benchmark: a real one, only its shape, or random weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...choices import ADM
from ...errors import UsageError
from ...models.diffusion.checkpoints import OFFICIAL, check_classes, find_adm, read_config
from ...models.diffusion.unet import Adm, AdmConfig
from ...progress import Progress


@dataclass(frozen=True)
class BenchModel:
    """Name and flags of a diffusion model; file, digest and set of its weights (see `split_choice`) if there are any."""

    name: str
    config: AdmConfig
    path: Path | None = None
    digest: str | None = None
    choice: str | None = None


def find_model(
    adm: str,
    adm_config: Path | None,
    *,
    random: bool,
    loaded: bool,
    class_label: str | None = None,
    sha256: Sequence[str] = (),
    progress: Progress | None = None,
) -> BenchModel:
    """Find the diffusion model of a benchmark.

    Parameters
    ----------
    adm : str
        File or name, as in a build.
    adm_config : Path or None
        JSON file with guided-diffusion flags.
    random : bool
        Use random weights in the shape of the official model, or of the flags in ``adm_config``.
    loaded : bool
        Whether the weights are needed. If not, an official model needs no file.
    class_label : str or None
        Choice of classes for a class-conditional model.
    sha256 : sequence of str
        What the SHA-256 of a downloaded file must be.
    progress : Progress or None
        Reports a download, and what has to be said about the model.

    Raises
    ------
    UserError
        As `find_adm`.
    UsageError
        If a model is named together with ``random``.
    """
    if random:
        if adm != ADM:
            raise UsageError(f"--random-adm: draws weights in the shape of {ADM} or of --adm-config; leave --adm out.")
        flags = OFFICIAL[ADM].config if adm_config is None else read_config(adm_config)
        shape = ADM if adm_config is None else adm_config.name
        check_classes("--random-adm", flags, class_label)
        return BenchModel(f"random weights in the shape of {shape}", flags)
    if not loaded and adm in OFFICIAL:
        check_classes(adm, OFFICIAL[adm].config, class_label)
        return BenchModel(adm, OFFICIAL[adm].config)
    found = find_adm(adm, adm_config, progress, class_label=class_label, sha256=sha256)
    if not isinstance(found.config, AdmConfig):
        raise UsageError(f"bench: counts the calls of a guided-diffusion ADM, and {adm} is another kind of model.")
    return BenchModel(found.source, found.config, found.path, found.digest, found.choice)


def random_adm(config: AdmConfig) -> Adm:
    """Draw weights, always the same; parameters that the model initialises to zero are drawn too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Adm(config).eval().requires_grad_(False)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return model
