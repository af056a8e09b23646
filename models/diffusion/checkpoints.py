"""Loading a diffusion model by name, file or address: a shipped one, an official one, or a checkpoint with its flags.

The flags of a file are the first of: those of the official file with its SHA-256; those of ``--adm-config``; those of
the JSON next to it; those in the safetensors metadata; those that the checkpoint holds beside its weights. What they
do not say, and what does not fit the tensors, is inferred from the tensors' shapes, see `.infer_flags`.

A wrapped state dict is looked through, see `..state_dict`. Its digest is that of the plain one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch

from ...errors import UsageError, UserError
from ...progress import Progress
from ...storage.regular import read_regular
from ..addresses import check_sha256
from ..class_label import ClassLabel
from ..download import WeightsFile, download, weights_folder
from ..remote_weights import unchecked, weights_path
from ..state_dict import choose_set, describe_choice, find_sets, tensor_names
from ..weights import (
    file_sha256,
    file_weights_digest,
    load_frozen,
    read_content,
    read_metadata,
    read_weights,
    split_choice,
)
from .ddpm import ANCHOR as DDPM_ANCHOR
from .ddpm import WEIGHTS, DdpmConfig, folder_file, is_folder, load_ddpm, read_ddpm_config
from .infer_flags import ANCHOR, Shapes, infer_flags, why_another_network
from .kinds import DiffusionConfig, DiffusionModel
from .unet import Adm, AdmConfig, is_flag

OFFICIAL_URL = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/"

SHIPPED = ("demo", "demo-b")
"""Small models that come with this package, ``data/adm-NAME.safetensors``."""

NOMINAL_SIZE = 1024
"""Image size with which flags are checked while the real one is not known: it can be halved at every level."""

FLAG_ENTRIES = ("flags", "args", "config", "model_config", "hparams", "hyper_parameters")
"""Entries of a checkpoint in which training scripts keep the flags."""

_MAX_FLAGS = 1 << 20
"""Bytes of a file with flags; guided-diffusion has about thirty of them."""


@dataclass(frozen=True)
class OfficialAdm:
    """A published checkpoint: the file and its guided-diffusion flags."""

    file: WeightsFile
    config: AdmConfig


def _official(name: str, flags: Mapping[str, object]) -> OfficialAdm:
    """Return an official checkpoint of which neither size nor SHA-256 is known."""
    return OfficialAdm(WeightsFile(name, OFFICIAL_URL + name), AdmConfig.from_flags(flags))


_ADM256 = {
    "image_size": 256,
    "num_channels": 256,
    "num_res_blocks": 2,
    "num_head_channels": 64,
    "attention_resolutions": "32,16,8",
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "learn_sigma": True,
}

OFFICIAL = {
    "adm256": OfficialAdm(
        file=WeightsFile(
            name="256x256_diffusion_uncond.pt",
            url=OFFICIAL_URL + "256x256_diffusion_uncond.pt",
            bytes=2_211_383_297,
            sha256="a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1",
        ),
        config=AdmConfig.from_flags(_ADM256),
    ),
    "lsun-bedroom": _official("lsun_bedroom.pt", {**_ADM256, "dropout": 0.1}),
    "adm64-cond": _official(
        "64x64_diffusion.pt",
        {
            **_ADM256, "image_size": 64, "num_channels": 192, "num_res_blocks": 3, "class_cond": True, "dropout": 0.1,
            "noise_schedule": "cosine", "use_new_attention_order": True,
        },
    ),
    "adm128-cond": _official(
        "128x128_diffusion.pt",
        {**_ADM256, "image_size": 128, "num_head_channels": -1, "num_heads": 4, "class_cond": True},
    ),
    "adm256-cond": _official("256x256_diffusion.pt", {**_ADM256, "class_cond": True}),
    "adm512-cond": _official("512x512_diffusion.pt", {**_ADM256, "image_size": 512, "class_cond": True}),
}  # fmt: skip
"""Models of guided-diffusion by name, with the flags of its README.

Only of the first is a SHA-256 published. A download of another one is used as it comes, which is said, unless
``--sha256`` says what it must be. Those ending in -cond are class-conditional.
"""


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
        The name, path or address that the user gave.
    choice
        Which set of weights of the file it is; None for the only one.
    notes
        What has to be said about it: wrappers, entries passed over, flags inferred.
    """

    path: Path
    config: DiffusionConfig
    digest: str
    source: str
    choice: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadedAdm:
    """A diffusion model ready for extraction: float32, on the CPU, evaluation mode, no gradients."""

    model: DiffusionModel
    config: DiffusionConfig
    digest: str
    source: str


def load_adm(
    weights: str | Path,
    config: Path | None = None,
    *,
    class_label: str | None = None,
    sha256: Sequence[str] = (),
) -> LoadedAdm:
    """Find a diffusion model with `find_adm` and load it; weights stored as float16 or bfloat16 become float32.

    Raises
    ------
    UserError
        As `find_adm`, and if the weights do not fit the flags: the message names the first key that differs.
    """
    found = find_adm(weights, config, class_label=class_label, sha256=sha256)
    return LoadedAdm(read_adm(found.path, found.config, found.choice), found.config, found.digest, found.source)


def read_adm(path: Path, config: DiffusionConfig, choice: str | None = None) -> DiffusionModel:
    """Load a weights file with known flags: float32, on the CPU, evaluation mode, no gradients.

    Raises
    ------
    UserError
        The weights do not fit the flags; the message names the first key that differs.
    """
    if isinstance(config, DdpmConfig):
        return load_ddpm(path, config)
    return load_frozen(lambda: Adm(config), read_weights(path, ANCHOR, choice).tensors, str(path))


def find_adm(
    weights: str | Path,
    config: Path | None = None,
    progress: Progress | None = None,
    *,
    class_label: str | None = None,
    sha256: Sequence[str] = (),
) -> FoundAdm:
    """Find weights and flags of a diffusion model; an official or remote one is downloaded if necessary.

    Parameters
    ----------
    weights
        A name in `SHIPPED` or `OFFICIAL`, a file, or an address as in `..remote_weights`. ``#SET`` at its end chooses
        one of several sets of weights. A folder, or a repository of the Hub, is a DDPM of diffusers, see `.ddpm`.
    config
        JSON file with the guided-diffusion flags, for a file of unknown origin.
    progress
        Reports a download, and what has to be said about the model.
    class_label
        Choice of classes for a class-conditional model, see `.class_label`.
    sha256
        What the SHA-256 of a downloaded file must be.

    Raises
    ------
    UserError, UsageError
        There is no such model, its flags are unknown or wrong, or it is class-conditional without a choice of classes.
    """
    source = str(weights)
    location, choice = split_choice(source)
    if location not in (*SHIPPED, *OFFICIAL) and is_folder(location):
        return _find_ddpm(location, config, progress, class_label, check_sha256(sha256))
    if location in OFFICIAL and not Path(location).is_file():
        check_classes(source, OFFICIAL[location].config, class_label)  # before a download of gigabytes
    path = locate_adm(location, progress, sha256)
    flags, notes = _config_of(path, choice, config)
    check_classes(source, flags, class_label)
    found = FoundAdm(path, flags, file_weights_digest(path, ANCHOR, choice), source, choice, notes)
    if progress is not None and notes:
        progress.say(f"{source}: {'; '.join(notes)}.")
    return found


def _find_ddpm(
    folder: str, config: Path | None, progress: Progress | None, class_label: str | None, sha256: tuple[str, ...]
) -> FoundAdm:
    """Find the weights and the configuration of a DDPM; see `find_adm`."""
    if config is not None:
        raise UsageError(f"--adm-config: {folder} says itself what it is. Leave the option out.")
    found = read_ddpm_config(folder, progress)
    check_classes(folder, found, class_label)
    path = folder_file(folder, WEIGHTS, progress, sha256)
    if not path.is_file():
        raise UserError(f"--adm {folder}: has no {WEIGHTS}. Save the model with safe_serialization=True.")
    return FoundAdm(path, found, file_weights_digest(path), folder)


def check_classes(source: str, flags: DiffusionConfig, class_label: str | None) -> None:
    """Raise UserError or UsageError unless there is a choice of classes exactly for a class-conditional model."""
    if class_label is not None:
        ClassLabel.parse(class_label)
        if not flags.class_cond:
            raise UsageError(f"--class-label {class_label}: {source} is not class-conditional. Leave the option out.")
    elif flags.class_cond:
        raise UserError(
            f"{source}: is class-conditional: its noise depends on a class, which these images do not have. Choose with "
            "--class-label random:SEED (drawn for each image, as DIRE's script does) or --class-label N, or use an "
            "unconditional ADM, such as adm256."
        )


def find_flags(weights: str | Path, config: Path | None = None) -> DiffusionConfig:
    """Return a diffusion model's flags as `find_adm` does, but without its weights: nothing is downloaded.

    The flags of a model at an address are read from its file if it was downloaded before.
    """
    location, choice = split_choice(str(weights))
    official = OFFICIAL.get(location)
    if location not in (*SHIPPED, *OFFICIAL) and is_folder(location):
        return read_ddpm_config(location)
    return official.config if official else _config_of(locate_adm(location), choice, config)[0]


def digests_of_sets(path: Path) -> dict[str, str]:
    """Return the digest of every set of weights in a file, with the name of the set.

    Raises
    ------
    UserError
        The file cannot be read, or holds no ADM.
    """
    content = read_content(path, shapes_only=True)
    if DDPM_ANCHOR in content:
        return {file_weights_digest(path): ""}
    sets = find_sets(content, ANCHOR)
    if not sets:
        names = tensor_names(content)
        another = why_another_network(dict.fromkeys([*map(str, content), *names]), {})
        raise UserError(f"{path}: {another or _why_no_network(content, names)}.")
    if len(sets) == 1:
        return {file_weights_digest(path, ANCHOR): sets[0].wrapper}
    return {file_weights_digest(path, ANCHOR, one.wrapper or "model"): one.wrapper or "model" for one in sets}


def locate_adm(name: str, progress: Progress | None = None, sha256: Sequence[str] = ()) -> Path:
    """Return the file of a diffusion model; an official or remote one is downloaded if necessary."""
    if name in SHIPPED:
        return _shipped(name)
    if name in OFFICIAL and not Path(name).is_file():
        return _official_file(name, progress, check_sha256(sha256))
    if is_folder(name):
        return folder_file(name, WEIGHTS, progress, check_sha256(sha256))
    path = weights_path(name, sha256, progress)
    if not path.exists():
        names = ", ".join([*SHIPPED, *OFFICIAL])
        raise UserError(f"--adm {name}: no such file, and not one of the names {names}.")
    return path


def _official_file(name: str, progress: Progress | None, sha256: tuple[str, ...]) -> Path:
    file = OFFICIAL[name].file
    if file.digests:
        if sha256 and not set(sha256) & set(file.digests):
            raise UsageError(f"--sha256: the file of {name} has the SHA-256 {file.digests[0]}. Leave the option out.")
        return download(file, weights_folder(), progress)
    fresh = not (weights_folder() / file.name).exists()
    path = download(WeightsFile(file.name, file.url, also=sha256), weights_folder(), progress)
    if fresh and not sha256 and progress is not None:
        progress.say(f"{unchecked(name, path)[:-1]} to hold later downloads to it. None is published for this model.")
    return path


def _shipped(name: str) -> Path:
    path = Path(str(resources.files(__package__).joinpath("data", f"adm-{name}.safetensors")))
    if not path.is_file():
        raise UserError(f"--adm {name}: {path} is missing from this installation. Install distil-cache again.")
    return path


def _config_of(path: Path, choice: str | None, given: Path | None) -> tuple[AdmConfig, tuple[str, ...]]:
    """Return the flags of a weights file, in the order of precedence of the module's docstring, and what to say."""
    for name, official in OFFICIAL.items():
        if _is_official(path, official):
            if given is not None and read_config(given) != official.config:
                raise UserError(
                    f"{path}: is the official {name}, and its flags differ from {given}. Omit --adm-config."
                )
            return official.config, ()
    content = read_content(path, shapes_only=True)
    names = tensor_names(content)
    sets = find_sets(content, ANCHOR)
    another = why_another_network(dict.fromkeys([*map(str, content), *names]), {})
    if another is None and not sets:
        another = _why_no_network(content, names)
    if another is not None:
        raise UserError(f"{path}: {another}.")
    chosen = choose_set(sets, choice, str(path))
    shapes = {name: tuple(value.shape) for name, value in chosen.tensors.items()}
    another = why_another_network(shapes, shapes)
    if another is not None:
        raise UserError(f"{path}: {another}.")
    stated, where = _stated(path, content, given)
    config, inferred = _fitting(path, shapes, stated, where)
    notes = (describe_choice(content, sets, chosen), inferred)
    return config, tuple(note for note in notes if note)


def _is_official(path: Path, official: OfficialAdm) -> bool:
    """Return whether a file is an official one: by its SHA-256, or if none is known, by its place among the downloads."""
    file = official.file
    if not file.digests:
        return path == weights_folder() / file.name
    return path.is_file() and path.stat().st_size == file.bytes and file_sha256(path) in file.digests


def _why_no_network(content: Mapping[str, object], names: Shapes) -> str:
    if names:
        some = ", ".join(list(names)[:3])
        return f"holds the weights of another network ({some}, …), not an ADM's: none is called {ANCHOR}"
    lists = any(isinstance(value, list) and value for value in content.values())
    what = "lists of weights without names" if lists else f"{', '.join(map(repr, list(content)[:3]))} and no weights"
    return f"holds {what}. Save the ADM's state dict"


def _stated(path: Path, content: Mapping[str, object], given: Path | None) -> tuple[dict[str, object], str]:
    """Return the flags that are stated for a file, and where; empty if there are none."""
    sidecar = path.with_suffix(".json")
    if given is not None:
        return _read_flags(given), str(given)
    if sidecar.is_file() and sidecar != path:
        return _read_flags(sidecar), str(sidecar)
    metadata = read_metadata(path)
    if "flags" in metadata:
        where = f"{path}, metadata `flags`"
        return _parse_flags(metadata["flags"], where), where
    candidates: list[tuple[str, object]] = [
        ("metadata", metadata),
        *((name, content.get(name)) for name in FLAG_ENTRIES),
    ]
    for name, entry in candidates:
        flags = {key: value for key, value in entry.items() if is_flag(str(key))} if isinstance(entry, Mapping) else {}
        if len(flags) > 1:
            return flags, f"{path}, entry `{name}`"
    return {}, str(path)


def _fitting(path: Path, shapes: Shapes, stated: Mapping[str, object], where: str) -> tuple[AdmConfig, str]:
    """Return flags that fit the tensors, and what was inferred.

    Stated flags that fit, with guided-diffusion's defaults for the others, are taken as they are.
    """
    wrong: UserError | None = None
    if stated:
        try:
            config = _config_from(stated, where)
        except UserError as error:
            wrong = error
        else:
            if _fits(config, shapes):
                return config, ""
    inferred = infer_flags(shapes)
    if inferred is None:
        if wrong is not None:
            raise wrong
        if stated:
            return config, ""  # loading names the first key that differs
        raise UserError(f"{path}: its tensors are not built like guided-diffusion's, although it has {ANCHOR}.")
    size = _image_size(stated, where) or inferred.only_size()
    told = inferred.at_size(size)
    given = {name: value for name, value in stated.items() if value is not None}
    config = _config_from({**inferred.at_size(size or NOMINAL_SIZE), **given}, where)
    true = _config_from({**given, **inferred.at_size(size or NOMINAL_SIZE)}, where)
    differ = [name for name in told if name in given and _differs(config, true, name)]
    if differ:
        found = ", ".join(f"{name} {getattr(config, name)} (the tensors: {getattr(true, name)})" for name in differ)
        raise UserError(f"{where}: does not fit the weights in {path}: {found}.")
    missing = _untold(given, size)
    if missing:
        shown = ", ".join(f"{name} {value}" for name, value in told.items() if value != "")
        raise UserError(
            f"{path}: not all of its guided-diffusion flags are known. The shapes of its tensors tell {shown}; they cannot "
            f"tell {', '.join(missing)}. Write these into a JSON file, {path.with_suffix('.json').name} next to it or any "
            "with --adm-config."
        )
    added = [f"{name} {value}" for name, value in told.items() if name not in given and value != ""]
    assumed = [f"{name} {getattr(config, name)}" for name in ("noise_schedule", "diffusion_steps") if name not in given]
    default = f"; guided-diffusion's defaults for {', '.join(assumed)}" if assumed else ""
    return config, f"flags inferred from the shapes of the tensors: {', '.join(added) or 'none'}{default}"


def _differs(config: AdmConfig, true: AdmConfig, name: str) -> bool:
    """Return whether two configurations mean something different by a flag: some have several spellings."""
    if name == "channel_mult":
        return config.multipliers() != true.multipliers()
    if name == "attention_resolutions":
        return config.attention_factors() != true.attention_factors()
    return bool(getattr(config, name) != getattr(true, name))


def _image_size(stated: Mapping[str, object], where: str) -> int | None:
    """Return the stated image size; None if there is none."""
    size = stated.get("image_size")
    if size is None:
        return None
    try:
        found = int(str(size))
    except ValueError:
        found = 0
    if found < 1:
        raise UserError(f"{where}: ADM flag image_size: {size!r} is not a number of pixels.")
    return found


def _untold(flags: Mapping[str, object], size: int | None) -> list[str]:
    """Return the flags that shapes cannot tell and that are not stated."""
    missing = [] if size is not None else ["image_size"]
    if "num_heads" not in flags and "num_head_channels" not in flags:
        missing.append("num_head_channels or num_heads")
    one_head = str(flags.get("num_heads")) == "1" and str(flags.get("num_head_channels", -1)) == "-1"
    if "use_new_attention_order" not in flags and not one_head:
        missing.append("use_new_attention_order")
    return missing


def _fits(config: AdmConfig, shapes: Shapes) -> bool:
    with torch.device("meta"):
        network = Adm(config)
    return {name: tuple(value.shape) for name, value in network.state_dict().items()} == dict(shapes)


def read_config(path: Path) -> AdmConfig:
    """Read guided-diffusion flags from a JSON file.

    Raises
    ------
    UserError
        The file cannot be read, or a flag is unknown or wrong.
    """
    return _config_from(_read_flags(path), str(path))


def _read_flags(path: Path) -> dict[str, object]:
    try:
        return _parse_flags(read_regular(path, _MAX_FLAGS).decode("utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: the ADM's flags cannot be read ({reason}). Pass a JSON file.") from error


def _parse_flags(text: str, where: str) -> dict[str, object]:
    """Parse guided-diffusion flags from JSON: an object of flags, or one that holds it under ``flags``."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: is not JSON ({error}). Write guided-diffusion's flags as one JSON object."
        ) from error
    flags = content.get("flags", content) if isinstance(content, dict) else content
    if not isinstance(flags, dict):
        raise UserError(f"{where}: is not a JSON object. Write guided-diffusion's flags as one JSON object.")
    return flags


def _config_from(flags: Mapping[str, object], where: str) -> AdmConfig:
    try:
        return AdmConfig.from_flags(flags)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
