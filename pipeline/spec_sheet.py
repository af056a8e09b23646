"""From the arguments of a build to the specs of its features."""

from __future__ import annotations

from collections.abc import Collection

from ..cache.spec import Spec
from ..errors import UsageError
from .adm import AdmConfig
from .adm_weights import FoundAdm
from .config import BuildConfig
from .image_spec import ImageSpec, parse_harmonization, parse_perturbation
from .perturb import check_perturbation
from .specs import AdmIdentity, DireSpec, EpsSpec, NoiseSpec, ReconSpec
from .teacher import TeacherSpec, default_train_size, normalisation


def make_specs(
    config: BuildConfig, adm: FoundAdm, features: Collection[str], teacher_digest: str | None
) -> dict[str, Spec]:
    """Return feature -> spec for the wanted features.

    teacher_digest : digest of the teacher's weights; needed only if the teacher is among the features.
    Raises UserError or UsageError for steps, sizes or teachers that do not exist or do not fit the ADM.
    """
    schedule = adm.config.schedule(config.steps)
    if config.real_step > len(schedule):
        raise UsageError(f"--real-step {config.real_step}: --steps {config.steps} has only {len(schedule)} steps.")
    size = image_size(config, adm.config)
    identity = AdmIdentity.of(adm.digest, adm.config)
    perturbation = None if config.perturb is None else parse_perturbation(config.perturb)
    if perturbation is not None:
        check_perturbation(perturbation, size)
    harmonization = parse_harmonization(config.harmonize)
    image = ImageSpec(size=size, preset=config.image_preset, harmonize=harmonization, perturb=perturbation)
    path = {
        "image": image,
        "adm": identity,
        "steps": config.steps,
        "real_step": config.real_step % len(schedule),  # all steps by number are all steps
        "clip": config.clip,
        "precision": config.precision,
    }
    specs: dict[str, Spec] = {
        "image": image,
        "eps": EpsSpec(image=image, adm=identity, clip=config.clip, precision=config.precision),
        "recon": ReconSpec.model_validate(path),
        "dire": DireSpec.model_validate(path),
        "noise": NoiseSpec.model_validate({**path, "reduction": config.noise}),
    }
    if "teacher" in features:
        assert teacher_digest is not None
        mean, std = normalisation(config.teacher, config.preset)
        specs["teacher"] = TeacherSpec(
            dire=DireSpec.model_validate(path),
            backbone=config.teacher,
            weights=teacher_digest,
            size=config.train_size or default_train_size(size, config.preset),
            mean=mean,
            std=std,
            precision=config.precision,
        )
    return {feature: spec for feature, spec in specs.items() if feature in features}


def image_size(config: BuildConfig, adm: AdmConfig) -> int:
    """Return the side of the cached image: what was asked for, else the ADM's own.

    Raises UsageError for a size that the UNet cannot halve as often as it has levels.
    """
    size = config.image_size or adm.image_size
    factor = 2 ** (len(adm.multipliers()) - 1)
    if size % factor:
        raise UsageError(f"--image-size {size}: this ADM halves images to 1/{factor}; use a multiple of {factor}.")
    return size
