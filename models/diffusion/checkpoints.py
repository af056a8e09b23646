"""Loading a diffusion model by name or path: a shipped one, an official one, or a file with its flags.

The flags of a file are the first of: those of the official file with its SHA-256; those of ``--adm-config``; those of
the JSON next to it; those in the safetensors metadata. Official files without a published SHA-256 are not downloaded
by name.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from ...errors import UserError
from ...progress import Progress
from ..download import WeightsFile, download, weights_folder
from ..weights import file_sha256, file_weights_digest, load_frozen, read_metadata, read_state_dict
from .unet import Adm, AdmConfig

OFFICIAL_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"

SHIPPED = ("demo", "demo-b")
"""Small models that come with this package, ``data/adm-NAME.safetensors``."""


@dataclass(frozen=True)
class OfficialAdm:
    """A published checkpoint that can be verified: the file and its guided-diffusion flags."""

    file: WeightsFile
    config: AdmConfig


OFFICIAL = {
    "adm256": OfficialAdm(
        file=WeightsFile(
            name="256x256_diffusion_uncond.pt",
            url=OFFICIAL_URL + "256x256_diffusion_uncond.pt",
            bytes=2_211_383_297,
            sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
        ),
        config=AdmConfig(
            image_size=256,
            num_channels=256,
            num_res_blocks=2,
            num_head_channels=64,
            attention_resolutions="32,16,8",
            use_scale_shift_norm=True,
            resblock_updown=True,
            learn_sigma=True,
        ),
    ),
}

UNCHECKED = {
    "lsun-bedroom": "lsun_bedroom.pt",
    "adm64-cond": "64x64_diffusion.pt",
    "adm128-cond": "128x128_diffusion.pt",
    "adm256-cond": "256x256_diffusion.pt",
    "adm512-cond": "512x512_diffusion.pt",
}
"""Official files without a published SHA-256; those ending in -cond are class-conditional."""


@dataclass(frozen=True)
class FoundAdm:
    """A diffusion model on disk, identified without loading the network.

    Attributes
    ----------
    path
        The weights file.
    config
        Its flags.
    digest
        Weights digest of the tensors as stored.
    source
        The name or path that the user gave.
    """

    path: Path
    config: AdmConfig
    digest: str
    source: str


@dataclass(frozen=True)
class LoadedAdm:
    """A diffusion model ready for extraction: float32, on the CPU, evaluation mode, no gradients."""

    model: Adm
    config: AdmConfig
    digest: str
    source: str


def load_adm(weights: str | Path, config: Path | None = None) -> LoadedAdm:
    """Find a diffusion model with `find_adm` and load it; weights stored as float16 or bfloat16 become float32.

    Raises
    ------
    UserError
        As `find_adm`, and if the weights do not fit the flags: the message names the first key that differs.
    """
    found = find_adm(weights, config)
    return LoadedAdm(read_adm(found.path, found.config), found.config, found.digest, found.source)


def read_adm(path: Path, config: AdmConfig) -> Adm:
    """Load a weights file with known flags: float32, on the CPU, evaluation mode, no gradients.

    Raises
    ------
    UserError
        The weights do not fit the flags; the message names the first key that differs.
    """
    return load_frozen(lambda: Adm(config), read_state_dict(path), str(path))


def find_adm(weights: str | Path, config: Path | None = None, progress: Progress | None = None) -> FoundAdm:
    """Find weights and flags of a diffusion model; an official one is downloaded if necessary.

    Parameters
    ----------
    weights
        A name in `SHIPPED` or `OFFICIAL`, or a file.
    config
        JSON file with the guided-diffusion flags, for a file of unknown origin.
    progress
        Reports a download.

    Raises
    ------
    UserError
        There is no such model, its flags are unknown or wrong, or it is class-conditional.
    """
    name = str(weights)
    official = OFFICIAL.get(name)
    path = download(official.file, weights_folder(), progress) if official else _file_of(name)
    flags = _config_of(path, config)
    if flags.class_cond:
        raise UserError(
            f"{path}: is class-conditional. Its noise depends on a label that these images do not have, and "
            "features from randomly drawn labels could not be reproduced. Use an unconditional ADM, such as adm256."
        )
    return FoundAdm(path, flags, file_weights_digest(path), name)


def find_flags(weights: str | Path, config: Path | None = None) -> AdmConfig:
    """Return a diffusion model's flags as `find_adm` does, but without its weights: nothing is downloaded."""
    official = OFFICIAL.get(str(weights))
    return official.config if official else _config_of(_file_of(str(weights)), config)


def _file_of(name: str) -> Path:
    """Return the file of a model that is not official."""
    if name in SHIPPED:
        return _shipped(name)
    if name in UNCHECKED and not Path(name).exists():
        raise UserError(_why_unchecked(name))
    path = Path(name)
    if not path.is_file():
        names = ", ".join([*SHIPPED, *OFFICIAL])
        raise UserError(f"--adm {name}: no such file, and not one of the names {names}.")
    return path


def _shipped(name: str) -> Path:
    path = Path(str(resources.files(__package__).joinpath("data", f"adm-{name}.safetensors")))
    if not path.is_file():
        raise UserError(f"--adm {name}: {path} is missing from this installation. Install distil-cache again.")
    return path


def _why_unchecked(name: str) -> str:
    if name.endswith("-cond"):
        return f"--adm {name}: is class-conditional. Use an unconditional ADM, such as adm256."
    return (
        f"--adm {name}: no SHA-256 of this file is published, so it is not downloaded by name. "
        f"Download {OFFICIAL_URL}{UNCHECKED[name]} yourself and pass it with --adm FILE "
        "--adm-config JSON (its guided-diffusion flags)."
    )


def _config_of(path: Path, given: Path | None) -> AdmConfig:
    """Return the flags of a weights file, in the order of precedence of the module's docstring."""
    for name, official in OFFICIAL.items():
        if path.stat().st_size == official.file.bytes and file_sha256(path) == official.file.sha256:
            if given is not None and read_config(given) != official.config:
                raise UserError(
                    f"{path}: is the official {name}, and its flags differ from {given}. Omit --adm-config."
                )
            return official.config
    sidecar = path.with_suffix(".json")
    if given is not None:
        return read_config(given)
    if sidecar.is_file():
        return read_config(sidecar)
    metadata = read_metadata(path)
    if "flags" in metadata:
        return _parse_config(metadata["flags"], f"{path}, metadata `flags`")
    raise UserError(
        f"{path}: its flags are unknown: it is not an official file, there is no {sidecar.name} next to it, and it has "
        "no metadata `flags`. Pass the guided-diffusion flags with --adm-config JSON."
    )


def read_config(path: Path) -> AdmConfig:
    """Read guided-diffusion flags from a JSON file.

    Raises
    ------
    UserError
        The file cannot be read, or a flag is unknown or wrong.
    """
    try:
        return _parse_config(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the ADM's flags cannot be read ({error}). Pass a JSON file.") from error


def _parse_config(text: str, where: str) -> AdmConfig:
    """Parse guided-diffusion flags from JSON: an object of flags, or one that holds it under ``flags``."""
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{where}: is not JSON ({error}). Write guided-diffusion's flags as one JSON object."
        ) from error
    flags = content.get("flags", content) if isinstance(content, dict) else content
    if not isinstance(flags, dict):
        raise UserError(f"{where}: is not a JSON object. Write guided-diffusion's flags as one JSON object.")
    try:
        return AdmConfig.from_flags(flags)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
