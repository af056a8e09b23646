"""Find the diffusion model of a run: the one whose weights have the digest in the run's specs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError, UserError
from ..features.adm import AdmIdentity
from ..models.class_label import ClassLabel
from ..models.diffusion.checkpoints import OFFICIAL, SHIPPED, digests_of_sets, find_adm, locate_adm, read_adm
from ..models.diffusion.infer_flags import ANCHOR
from ..models.diffusion.kinds import DiffusionModel
from ..models.download import weights_folder
from ..models.weights import file_weights_digest, split_choice
from .feature_specs import FeatureSpecs


@dataclass(frozen=True)
class AdmRequest:
    """What a user says about the diffusion model of a prediction; None and empty for what is not said.

    Attributes
    ----------
    name : str or None
        File, name or address.
    config : Path or None
        JSON file with the flags of the file ``name``.
    class_label : str or None
        Choice of classes for a class-conditional model.
    sha256 : tuple of str
        What the SHA-256 of a downloaded file must be.
    """

    name: str | None = None
    config: Path | None = None
    class_label: str | None = None
    sha256: tuple[str, ...] = ()


@dataclass(frozen=True)
class AdmFile:
    """A diffusion model on disk.

    Attributes
    ----------
    path : Path
        Its file.
    identity : AdmIdentity
    name : str
        By which it was chosen.
    choice : str or None
        Which set of weights of the file it is; None for the only one.
    notes : tuple of str
        What has to be said about it.
    """

    path: Path
    identity: AdmIdentity
    name: str
    choice: str | None = None
    notes: tuple[str, ...] = ()

    def load(self) -> DiffusionModel:
        """Load the model: float32, on the CPU, in evaluation mode, without gradients."""
        return read_adm(self.path, self.identity.config, self.choice)


def find_adm_for_run(specs: FeatureSpecs, features: Sequence[str], asked: AdmRequest) -> AdmFile | None:
    """Find the model for some features of a run.

    If the run names no model, the user must, except for a student of the reference implementation.

    Parameters
    ----------
    specs : FeatureSpecs
        The run's.
    features : sequence of str
        Features to compute.
    asked : AdmRequest
        What the user says.

    Returns
    -------
    AdmFile or None
        None without features.

    Raises
    ------
    UsageError
        If neither run nor user names a model, or the user's choice of classes is not the run's.
    UserError
        If the model is not the run's, or cannot be found.
    """
    if not features:
        return None
    if specs.adm is not None:
        _check_label(asked.class_label, specs.adm)
        return matching_adm(asked.name, specs.adm, asked.sha256)
    name = asked.name or specs.default_adm
    if name is None:
        why = specs.assumption or "its student uses only the image"
        raise UsageError(
            f"predict: {', '.join(features)} needs a diffusion model, but the run names none ({why}). Use --adm."
        )
    return _named(name, asked)


def _check_label(class_label: str | None, identity: AdmIdentity) -> None:
    """Raise UsageError if a choice of classes is not that of the run."""
    if class_label is not None and ClassLabel.parse(class_label).text != identity.class_label:
        theirs = f"with {identity.class_label}" if identity.class_label else "without classes"
        raise UsageError(f"--class-label {class_label}: the run's features were made {theirs}. Leave the option out.")


def _named(name: str, asked: AdmRequest) -> AdmFile:
    """Find a model by file, name or address, whatever its weights. Raises UserError as `find_adm`."""
    found = find_adm(name, asked.config, class_label=asked.class_label, sha256=asked.sha256)
    identity = AdmIdentity.of(found.digest, found.config, asked.class_label)
    return AdmFile(found.path, identity, name, found.choice, found.notes)


def matching_adm(name: str | None, identity: AdmIdentity, sha256: Sequence[str] = ()) -> AdmFile:
    """Find the model of an identity.

    Parameters
    ----------
    name : str or None
        File, name or address; None searches the shipped and downloaded models. A file needs no flags, since the
        identity has them, and of several sets of weights in it the identity's is taken.
    identity : AdmIdentity
        The run's model.
    sha256 : sequence of str
        What the SHA-256 of a downloaded file must be.

    Raises
    ------
    UserError
        If the weights have another digest, or no model is found.
    """
    if name is None:
        return _known(identity)
    location, _ = split_choice(name)
    path = locate_adm(location, sha256=sha256)
    digests = digests_of_sets(path)
    if identity.weights not in digests:
        theirs = " and ".join(f"{digest[:16]}…" for digest in digests)
        raise UserError(
            f"--adm {name}: is not the model of the student's training: its weights have the digest {theirs}, "
            f"the run's {identity.weights[:16]}…. Give the file with which the features were built."
        )
    choice = digests[identity.weights] if len(digests) > 1 else None
    return AdmFile(path, identity, name, choice, (f"weights read from {choice}",) if choice else ())


def _known(identity: AdmIdentity) -> AdmFile:
    candidates = [(name, locate_adm(name)) for name in SHIPPED]
    candidates += [(name, weights_folder() / official.file.name) for name, official in OFFICIAL.items()]
    for name, path in candidates:
        if path.is_file() and file_weights_digest(path, ANCHOR) == identity.weights:
            return AdmFile(path, identity, name)
    likely = [
        name
        for name, one in OFFICIAL.items()
        if AdmIdentity.of(identity.weights, one.config, identity.class_label) == identity
    ]
    each = " or ".join(f"--adm {name}" for name in likely)
    hint = f" Its flags are those of {' and '.join(likely)}; {each} downloads it." if likely else ""
    raise UserError(
        f"predict: the student's features come from the diffusion model whose weights have the digest "
        f"{identity.weights[:16]}…, and no shipped or downloaded model has it. Name its file with --adm.{hint}"
    )
