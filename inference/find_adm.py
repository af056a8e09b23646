"""Find the diffusion model of a run: the one whose weights have the digest in the run's specs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, UserError
from ..models.diffusion.checkpoints import OFFICIAL, SHIPPED, UNCHECKED, find_adm, read_adm
from ..models.diffusion.unet import Adm, AdmConfig
from ..models.download import weights_folder
from ..models.weights import file_weights_digest
from ..pipeline.specs import AdmIdentity
from .feature_specs import FeatureSpecs


@dataclass(frozen=True)
class AdmFile:
    """A diffusion model on disk: its file, its identity, and the name by which it was chosen."""

    path: Path
    identity: AdmIdentity
    name: str

    @property
    def config(self) -> AdmConfig:
        """The guided-diffusion flags."""
        return AdmConfig.model_validate(self.identity.flags)

    def load(self) -> Adm:
        """Load the model: float32, on the CPU, in evaluation mode, without gradients."""
        return read_adm(self.path, self.config)


def find_adm_for_run(
    specs: FeatureSpecs, features: Sequence[str], name: str | None, config: Path | None
) -> AdmFile | None:
    """Find the model for some features of a run.

    If the run names no model, the user must, except for a student of the reference implementation.

    Parameters
    ----------
    specs : FeatureSpecs
        The run's.
    features : sequence of str
        Features to compute.
    name : str or None
        File or name that the user chose.
    config : Path or None
        JSON file with the flags of the file ``name``.

    Returns
    -------
    AdmFile or None
        None without features.

    Raises
    ------
    UsageError
        If neither run nor user names a model.
    UserError
        If the model is not the run's, or cannot be found.
    """
    if not features:
        return None
    if specs.adm is not None:
        return matching_adm(name, specs.adm)
    name = name or specs.default_adm
    if name is None:
        why = specs.assumption or "its student uses only the image"
        raise UsageError(
            f"predict: {', '.join(features)} needs a diffusion model, but the run names none ({why}). Use --adm."
        )
    return named_adm(name, config)


def named_adm(name: str, config: Path | None) -> AdmFile:
    """Find a model by file or name, whatever its weights. Raises UserError as `find_adm`."""
    found = find_adm(name, config)
    return AdmFile(found.path, AdmIdentity.of(found.digest, found.config), name)


def matching_adm(name: str | None, identity: AdmIdentity) -> AdmFile:
    """Find the model of an identity.

    Parameters
    ----------
    name : str or None
        File or name; None searches the shipped and downloaded models. A file needs no flags: the identity has them.
    identity : AdmIdentity
        The run's model.

    Raises
    ------
    UserError
        If the weights have another digest, or no model is found.
    """
    if name is None:
        return _known(identity)
    named = name in SHIPPED or name in OFFICIAL or (name in UNCHECKED and not Path(name).exists())
    path = find_adm(name).path if named else Path(name)
    if not path.is_file():
        raise UserError(f"--adm {name}: no such file, and not one of the names {', '.join([*SHIPPED, *OFFICIAL])}.")
    digest = file_weights_digest(path)
    if digest != identity.weights:
        raise UserError(
            f"--adm {name}: is not the model of the student's training: its weights have the digest {digest[:16]}…, "
            f"the run's {identity.weights[:16]}…. Give the file with which the features were built."
        )
    return AdmFile(path, identity, name)


def _known(identity: AdmIdentity) -> AdmFile:
    candidates = [(name, find_adm(name).path) for name in SHIPPED]
    candidates += [(name, weights_folder() / official.file.name) for name, official in OFFICIAL.items()]
    for name, path in candidates:
        if path.is_file() and file_weights_digest(path) == identity.weights:
            return AdmFile(path, identity, name)
    likely = [name for name, one in OFFICIAL.items() if AdmIdentity.of(identity.weights, one.config) == identity]
    hint = f" Its flags are those of {likely[0]}, which --adm {likely[0]} downloads." if likely else ""
    raise UserError(
        f"predict: the student's features come from the diffusion model whose weights have the digest "
        f"{identity.weights[:16]}…, and no shipped or downloaded model has it. Name its file with --adm.{hint}"
    )
