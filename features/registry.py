"""The features that there are, of this package and of others, and what follows from all of their specs."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from graphlib import TopologicalSorter
from types import MappingProxyType
from typing import Any, get_args

from .. import __version__
from ..cache.records.about import About, Layout, Provider
from ..cache.spec import Spec
from ..images.spec import ImageSpec
from ..plugins import Package, Registry, same_distribution
from .builtin.bands import Bands
from .builtin.dire import Dire
from .builtin.embedding import PooledFeatures
from .builtin.eps import Eps
from .builtin.image import Image
from .builtin.noise import Noise
from .builtin.recon import Recon
from .builtin.stepwise import Stepwise
from .builtin.teacher import Teacher
from .builtin.trajectory import Trajectory
from .builtin.vae import Autoencoded
from .builtin.vae_error import AutoencoderError
from .contract import Feature, NetworkSource, Producer, Single, SingleFeature
from .imported import ImportedSpec
from .walk import Walk, WalkFeature, WalkSpec

_NAME = re.compile(r"[a-z0-9_]{1,40}")
RESERVED = frozenset({"by", "harmonize", "imported", "perturb"})
"""Names of neither a feature nor a field of a spec but theirs: readers look for them at any depth of a spec."""

BUILT_IN: tuple[Feature[Any], ...] = (
    Image(),
    Eps(),
    Recon(),
    Dire(),
    Noise(),
    Teacher(),
    Stepwise(),
    Trajectory(),
    Bands(),
    PooledFeatures(),
    Autoencoded(),
    AutoencoderError(),
)


def in_order(features: Iterable[Feature[Any]]) -> dict[str, Feature[Any]]:
    """Return features by name, each after its inputs, otherwise in the order in which they are given."""
    named = {feature.name: feature for feature in features}
    order = TopologicalSorter({name: list(feature.inputs.values()) for name, feature in named.items()})
    return {name: named[name] for name in order.static_order()}


def checked(name: str, loaded: object, package: Package) -> Feature[Any]:
    """Return the feature that an entry point of another package loaded, a class; ValueError if it cannot be used."""
    if not (isinstance(loaded, type) and issubclass(loaded, (SingleFeature, WalkFeature))):
        raise ValueError("it is no class derived from SingleFeature or WalkFeature.")
    try:
        feature = loaded()
    except TypeError as error:  # it lacks a method
        raise ValueError(f"{error}.") from error
    kind = getattr(feature, "spec_type", None)
    if not (isinstance(kind, type) and issubclass(kind, Spec)):
        raise ValueError("its spec_type is no class derived from Spec.")
    if feature.name != name or not _NAME.fullmatch(name) or name in RESERVED:
        raise ValueError(
            f"its spec names the feature {feature.name!r}, and the entry point {name!r}: both must be the same, of small "
            f"letters, digits and underscores, and none of {', '.join(sorted(RESERVED))}."
        )
    taken = (RESERVED - {"by"}) & kind.model_fields.keys()
    if taken:
        raise ValueError(f"its spec has a field {min(taken)!r}, a name that has a meaning of its own.")
    by = kind.model_fields.get("by")
    if by is None or get_args(by.annotation) != (by.default,) or not same_distribution(str(by.default), package.name):
        raise ValueError(f"its spec must have the field: by: Literal[{package.name!r}] = {package.name!r}.")
    absent = [needed for needed in feature.inputs.values() if needed not in FEATURES]
    if absent:
        raise ValueError(f"it is made of {absent[0]}, which no package here provides.")
    return feature


FEATURES: Registry[Feature[Any]] = Registry("feature", in_order(BUILT_IN), checked)
"""By name."""


def with_their_inputs(names: Iterable[str]) -> dict[str, Feature[Any]]:
    """Return features with all that they are made of, by name, in the order of computation."""
    needed: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in needed:
            needed.add(name)
            pending += FEATURES[name].inputs.values()
    return in_order(FEATURES[name] for name in FEATURES if name in needed)


def with_inputs(wanted: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]]:
    """Add the features that the wanted ones (feature -> splits) are made of, and sort them in the order of computation."""
    full = {name: splits for name, splits in wanted.items() if splits}
    order = with_their_inputs(full)
    for name in reversed(order):
        for needed in order[name].inputs.values():
            full[needed] = full.get(needed, frozenset()) | full[name]
    return {name: full[name] for name in order}


def needs_adm(names: Iterable[str]) -> bool:
    """Return whether the diffusion model makes any of these features, or of what they are made of."""
    return any(isinstance(feature, WalkFeature) for feature in with_their_inputs(names).values())


def make_specs(
    wanted: Collection[str],
    settings: Mapping[str, Any],
    made: Mapping[str, Spec] | None = None,
    own: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
) -> dict[str, Spec]:
    """Make the specs of features from settings.

    Parameters
    ----------
    wanted
        Names of features.
    settings
        By the names of the specs' fields. A field without a setting has its default.
    made
        Specs that are there already, by feature: they are inputs of the others.
    own
        Settings of a single feature, by its name.

    Returns
    -------
    dict
        Feature -> spec, in the order of computation.

    Raises
    ------
    pydantic.ValidationError
        A setting that has no default is missing, or a value is not allowed.
    """
    specs = dict(made or {})

    def spec_of(name: str) -> Spec:
        if name not in specs:
            feature = FEATURES[name]
            inputs = {field: spec_of(needed) for field, needed in feature.inputs.items()}
            given = {**settings, **own.get(name, {})}
            chosen = {field: given[field] for field in feature.settings & given.keys()}
            values = {**chosen, **inputs, **feature.derived(given, inputs), **own.get(name, {})}
            specs[name] = feature.spec_type.model_validate(values)
        return specs[name]

    return {name: spec_of(name) for name in with_their_inputs(wanted) if name in wanted}


def layout_of(spec: Spec) -> Layout:
    """Return what a row of a feature with this spec is."""
    return spec.layout if isinstance(spec, ImportedSpec) else FEATURES[spec.feature].layout(spec)


def about_of(spec: Spec) -> About:
    """Return what readers of a feature with this spec must know."""
    package = FEATURES.package(spec.feature) or Package("distil-cache", __version__)
    provider = Provider(distribution=package.name, version=package.version)
    return About(layout=layout_of(spec), description=FEATURES[spec.feature].description, provider=provider)


def warnings_of_specs(specs: Mapping[str, Spec]) -> list[str]:
    """Return a sentence for each of these specs whose rows will be of little use."""
    return [sentence for spec in specs.values() for sentence in FEATURES[spec.feature].warnings(spec)]


def all_specs(specs: Mapping[str, Spec]) -> dict[str, Spec]:
    """Return specs by feature, with those of everything that these are made of, in the order of computation."""
    found: dict[str, Spec] = {}

    def add(spec: Spec) -> None:
        for field in type(spec).model_fields:
            if isinstance(part := getattr(spec, field), Spec):
                add(part)
        found.setdefault(spec.feature, spec)

    for spec in specs.values():
        add(spec)
    return {name: found[name] for name in FEATURES if name in found}


def networks_of(features: Iterable[str], options: Mapping[str, Any]) -> dict[str, NetworkSource]:
    """Return where the networks of features come from, by feature; those of the diffusion model's pass are left out.

    Parameters
    ----------
    features
        Names of features.
    options
        Options of a build by name.
    """
    found = {}
    for name in features:
        feature = FEATURES[name]
        source = feature.network(options) if isinstance(feature, SingleFeature) else None
        if source is not None:
            found[name] = source
    return found


def walk_of(specs: Mapping[str, Spec]) -> Walk | None:
    """Return the pass through the diffusion model for those of the specs that need one; None if none does.

    Raises
    ------
    UserError
        One pass cannot make them.
    """
    pairs = []
    for name, spec in specs.items():
        feature = FEATURES[name]
        if isinstance(feature, WalkFeature) and isinstance(spec, WalkSpec):
            pairs.append((feature, spec))
    return Walk(pairs) if pairs else None


def producers_of(specs: Mapping[str, Spec]) -> list[Producer]:
    """Return what makes the features of these specs, each producer after those whose rows it reads."""
    walk = walk_of(specs)
    found: list[Producer] = [] if walk is None else [walk]
    for name, feature in with_their_inputs(specs).items():
        if name in specs and isinstance(feature, SingleFeature):
            found.append(Single(feature, specs[name]))
    return found


def with_image_algorithm(spec: Spec, algorithm: int) -> Spec:
    """Return the spec that a feature has if its images were decoded by the rules of this ``ImageSpec.algorithm``.

    Specs of imported features are returned as they are: their images are not part of them.
    """
    if isinstance(spec, ImageSpec):
        return spec.model_copy(update={"algorithm": algorithm})
    parts = {name: getattr(spec, name) for name in type(spec).model_fields}
    nested = {name: part for name, part in parts.items() if isinstance(part, Spec)}
    return spec.model_copy(update={name: with_image_algorithm(part, algorithm) for name, part in nested.items()})
