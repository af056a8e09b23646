"""Make the specs of a build's features from its configuration."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from pydantic import ValidationError

from ...cache.spec import Spec
from ...choices import STORED_PRESETS
from ...errors import UsageError
from ...features.adm import AdmIdentity
from ...features.registry import make_specs, networks_of
from ...images.perturb import check_perturbation
from ...images.spec import ImageSpec, parse_harmonization, parse_perturbation
from ...models.diffusion.checkpoints import find_adm, find_flags
from ...models.diffusion.kinds import DiffusionConfig
from ...models.download import AbsentWeightsError
from ...progress import Progress
from ...storage.json_record import first_fault
from ..config import BuildConfig
from .own_settings import parse_set

UNKNOWN_WEIGHTS = "0" * 64
"""Stands for the digest of weights that a dry run has not got."""


def specs_of_build(
    config: BuildConfig,
    flags: DiffusionConfig,
    adm_digest: str | None,
    features: Collection[str],
    networks: Mapping[str, Mapping[str, object]],
) -> dict[str, Spec]:
    """Return feature -> spec for the wanted features.

    Parameters
    ----------
    config
        Configuration of the build.
    flags
        Flags of the ADM.
    adm_digest
        Digest of the ADM's weights; None if no feature needs the ADM.
    features
        Wanted features.
    networks
        Feature -> fields of its spec that name its network, see `network_fields`.

    Raises
    ------
    UserError, UsageError
        For steps, sizes or teachers that do not exist or do not fit the ADM, and for settings of a feature that do not fit
        each other, or are of a feature that is not wanted.
    """
    alone = parse_set(config.set, config.cache)
    for name in alone:
        if name not in features:
            raise UsageError(
                f"--set {name}.…: this build makes no {name}. Name it with --features, or leave the option out."
            )
    schedule = flags.schedule(config.steps)
    if config.real_step > len(schedule):
        raise UsageError(f"--real-step {config.real_step}: --steps {config.steps} has only {len(schedule)} steps.")
    size = config.image_size or flags.image_size
    if adm_digest is not None:
        _check_size(size, flags)
    perturbation = None if config.perturb is None else parse_perturbation(config.perturb)
    if perturbation is not None:
        check_perturbation(perturbation, size)
    harmonization = parse_harmonization(config.harmonize)
    preset = STORED_PRESETS[config.image_preset]
    image = ImageSpec(size=size, preset=preset, harmonize=harmonization, perturb=perturbation)
    settings: dict[str, object] = {
        "steps": config.steps,
        "real_step": config.real_step % len(schedule),  # 0 also means all steps
        "calls": config.calls,
        "clip": config.clip,
        "precision": config.precision,
        "storage": config.storage,
        "reduction": config.noise,
        "preset": config.preset,
        "train_size": config.train_size,
    }
    if adm_digest is not None:
        settings["adm"] = AdmIdentity.of(adm_digest, flags, config.class_label)
    own = {name: {**networks.get(name, {}), **alone.get(name, {})} for name in features}
    try:
        return make_specs(features, settings, {"image": image}, own)
    except ValidationError as error:
        raise UsageError(f"{error.title}: {first_fault(error)}.") from error


def flags_and_digest(
    config: BuildConfig, *, needed: bool, progress: Progress | None = None
) -> tuple[DiffusionConfig, str | None]:
    """Return the ADM's flags and the digest of its weights.

    If the model is not ``needed``, the digest is None and no weights are looked for. Raises UserError as
    :func:`...models.diffusion.checkpoints.find_adm` does.
    """
    if not needed:
        return find_flags(config.adm, config.adm_config), None
    found = find_adm(config.adm, config.adm_config, progress, class_label=config.class_label, sha256=config.sha256)
    return found.config, found.digest


def network_fields(
    config: BuildConfig, features: Collection[str], progress: Progress | None = None
) -> tuple[dict[str, Mapping[str, object]], list[str]]:
    """Return what the specs of features say of their networks, those of the diffusion model's pass left out.

    Returns
    -------
    dict
        Feature -> fields of its spec.
    list
        Of a dry run: a sentence for each file of weights that is not here. The digest of such a network is unknown.

    Raises
    ------
    UserError
        Weights cannot be obtained, or do not fit.
    """
    fields, absent = {}, []
    for name, source in networks_of(features, dict(config)).items():
        try:
            digest = source.digest(progress)
        except AbsentWeightsError as error:  # only in a dry run
            absent.append(str(error))
            digest = UNKNOWN_WEIGHTS
        fields[name] = source.fields(digest)
    return fields, absent


def _check_size(size: int, flags: DiffusionConfig) -> None:
    """Raise UsageError for a size that the UNet cannot halve once per level."""
    factor = 2 ** (len(flags.multipliers()) - 1)
    if size % factor:
        raise UsageError(f"--image-size {size}: this ADM downsamples images by {factor}; use a multiple of {factor}.")
