"""Which diffusion model makes the features: the one whose weights the run's specs name by digest, and no other."""

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
    """A diffusion model on disk, what it is, and what to call it."""

    path: Path
    identity: AdmIdentity
    name: str

    @property
    def config(self) -> AdmConfig:
        """Its flags."""
        return AdmConfig.model_validate(self.identity.flags)

    def load(self) -> Adm:
        """Load it: float32, on the CPU, evaluation mode, no gradients."""
        return read_adm(self.path, self.config)


def find_adm_for_run(
    settings: FeatureSpecs, features: Sequence[str], name: str | None, config: Path | None
) -> AdmFile | None:
    """The model for these features of a run; None if there are none. name, config : what the user chose.

    Where the run names no model, the user must, except for a student of the reference implementation, which has its own.
    Raises UsageError if nobody names one, and UserError if it is not the run's or cannot be found.
    """
    if not features:
        return None
    if settings.adm is not None:
        return matching_adm(name, settings.adm)
    name = name or settings.usual_adm
    if name is None:
        why = settings.unknown or "its student sees the image alone"
        raise UsageError(
            f"predict: {', '.join(features)} needs a diffusion model, and the run names none ({why}). Use --adm."
        )
    return any_adm(name, config)


def any_adm(name: str, config: Path | None) -> AdmFile:
    """Take the model that was named, a file or a name of `find_adm`, whatever its weights. Raises UserError as that does."""
    found = find_adm(name, config)
    return AdmFile(found.path, AdmIdentity.of(found.digest, found.config), name)


def matching_adm(name: str | None, identity: AdmIdentity) -> AdmFile:
    """Find the model of ``identity``: the file or name that is given, else one that is shipped or was fetched before.

    A file needs no flags: those of the identity decide. Raises UserError if the weights are others, or none is found.
    """
    if name is None:
        return _known(identity)
    named = name in SHIPPED or name in OFFICIAL or (name in UNCHECKED and not Path(name).exists())
    path = find_adm(name).path if named else Path(name)
    if not path.is_file():
        raise UserError(f"--adm {name}: there is no such file, and it is none of {', '.join([*SHIPPED, *OFFICIAL])}.")
    digest = file_weights_digest(path)
    if digest != identity.weights:
        raise UserError(
            f"--adm {name}: is not the model that the student learnt from: its weights have the digest {digest[:16]}…, "
            f"the run's {identity.weights[:16]}…. Give the file that the features were built with."
        )
    return AdmFile(path, identity, name)


def _known(identity: AdmIdentity) -> AdmFile:
    candidates = [(name, find_adm(name).path) for name in SHIPPED]
    candidates += [(name, weights_folder() / official.file.name) for name, official in OFFICIAL.items()]
    for name, path in candidates:
        if path.is_file() and file_weights_digest(path) == identity.weights:
            return AdmFile(path, identity, name)
    likely = [name for name, one in OFFICIAL.items() if AdmIdentity.of(identity.weights, one.config) == identity]
    hint = f" By its flags it may be {likely[0]}, which --adm {likely[0]} fetches." if likely else ""
    raise UserError(
        f"predict: the student's features come from the diffusion model whose weights have the digest "
        f"{identity.weights[:16]}…, and none that is known here has it. Name its file with --adm.{hint}"
    )
