"""Find the specs of a student's features: those that its run recorded, or assumed ones if there are none.

A run records the fingerprints of its features and their specs; specs of older runs are read from the cache. Either way
they must hash to the fingerprints. A student of the reference implementation, or one trained on imported files, has no
such specs: its features are assumed to be made as in the reference, and the notes of the detector say so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from ..cache.spec import Spec, fingerprint_of, imported_from
from ..cache.store import Cache
from ..choices import Precision, StoredPreset
from ..errors import UserError
from ..features.adm import AdmIdentity
from ..features.registry import FEATURES, all_specs, make_specs, walk_of, with_their_inputs
from ..features.walk import WalkFeature, WalkSpec
from ..images.spec import ImageSpec
from ..storage import AnyPath, to_path
from ..train.runs.folder import RunRecord

REFERENCE_ADM = "adm256"
"""The diffusion model of the reference implementation."""


@dataclass(frozen=True)
class FeatureSpecs:
    """The specs of all features that can be made for a student.

    Attributes
    ----------
    image : ImageSpec
    features : Mapping
        Specs of the run's features and of all that these are made of, by name.
    adm : AdmIdentity or None
        The model that made them; None if there is none or it is unknown.
    assumption : str
        Why the specs are assumptions; empty if they are the run's own.
    default_adm : str or None
        Model to use if the run names none.
    """

    image: ImageSpec
    features: Mapping[str, Spec]
    adm: AdmIdentity | None
    assumption: str = ""
    default_adm: str | None = None

    def needs_adm(self, features: Collection[str]) -> list[str]:
        """Return those of some features that the ADM makes, or that are made of what it makes, sorted."""

        def parts(name: str) -> Iterable[str]:
            own = self.features.get(name)
            return with_their_inputs([name]) if own is None else all_specs({name: own})

        return sorted(name for name in features if any(isinstance(FEATURES[part], WalkFeature) for part in parts(name)))

    def specs(
        self, features: Iterable[str], adm: AdmIdentity | None, precision: Precision | None = None
    ) -> dict[str, Spec]:
        """Return the specs of features and of all that they are made of, by name and in the order of computation.

        They are the run's, else such with the settings of its other features.

        Parameters
        ----------
        features : iterable of str
            Their names.
        adm : AdmIdentity or None
            Model for features that the run does not have.
        precision : str, optional
            Replaces the run's in what the ADM makes.

        Raises
        ------
        UserError
            The run does not say which network makes a feature.
        """
        found = {}
        walk = walk_of(self.features)
        settings = {**({} if walk is None else walk.settings), "adm": adm}
        for name in features:
            try:
                found[name] = self.features.get(name) or make_specs([name], settings, {"image": self.image})[name]
            except (ValidationError, LookupError) as error:
                raise UserError(
                    f"predict: the run does not say which network makes its {name}. Train again."
                ) from error
        return {
            name: spec.model_copy(update={"precision": precision}) if precision and isinstance(spec, WalkSpec) else spec
            for name, spec in all_specs(found).items()
        }


def read_feature_specs(record: RunRecord, cache: AnyPath | None) -> FeatureSpecs:
    """Find the specs of a run's features.

    Parameters
    ----------
    record : RunRecord
    cache : path or None
        Cache to read them from if the run did not record them; None for the run's own.

    Raises
    ------
    UserError
        If they are not found, do not hash to the run's fingerprints, or are unknown to this version.
    """
    if record.imported:
        why = "the student was trained elsewhere and does not say which model made its eps; this ADM is assumed"
        return FeatureSpecs(_assumed_image(record, record.train_size), {}, None, why, REFERENCE_ADM)
    stored = record.specs or _in_cache(record, cache)
    for name, fingerprint in record.fingerprints.items():
        if name not in stored or fingerprint_of(stored[name]) != fingerprint:
            raise UserError(
                f"run {record.run}: the recorded spec of {name} does not match its fingerprint. Train again."
            )
    origins = sorted({origin for spec in stored.values() if (origin := imported_from(spec))})
    if origins:
        sizes = [size for spec in stored.values() if isinstance(size := spec.get("size"), int)] or [record.train_size]
        why = f"the student was trained on imported files ({'; '.join(origins)}); its features are made as in the reference"
        preset: StoredPreset = "dire-center-crop" if any(map(_is_of_dire, stored.values())) else "distildire"
        return FeatureSpecs(_assumed_image(record, sizes[0], preset), {}, None, why)
    return _parsed(record, {name: FEATURES[name].spec_type for name in stored if name in FEATURES}, stored)


def _assumed_image(record: RunRecord, size: int, preset: StoredPreset = "distildire") -> ImageSpec:
    """Return the spec of the images of a student that does not say how its images were made."""
    try:
        return ImageSpec(size=size, preset=preset)
    except ValidationError as error:
        raise UserError(f"run {record.run}: its images have {size} pixels a side, which none here can have.") from error


def _is_of_dire(spec: Mapping[str, object]) -> bool:
    """Return whether a feature, or one that it derives from, was imported from what DIRE's script wrote."""
    imported = spec.get("imported")
    if isinstance(imported, Mapping):
        return imported.get("kind") == "dire"
    return any(_is_of_dire(part) for part in spec.values() if isinstance(part, Mapping))


def _parsed(
    record: RunRecord, kinds: Mapping[str, type[Spec]], stored: Mapping[str, Mapping[str, object]]
) -> FeatureSpecs:
    try:
        specs = {name: kind.model_validate(stored[name]) for name, kind in kinds.items()}
    except ValidationError as error:
        raise UserError(
            f"run {record.run}: its features have settings unknown to this version. Install the version that trained it."
        ) from error
    parts = [part for spec in specs.values() for part in all_specs({spec.feature: spec}).values()]
    images = {part for part in parts if isinstance(part, ImageSpec)}
    adms = {part.adm.weights: part.adm for part in parts if isinstance(part, WalkSpec)}
    if len(images) != 1 or len(adms) > 1:
        raise UserError(
            f"run {record.run}: its features were made from different images or models, so they cannot be computed together."
        )
    return FeatureSpecs(images.pop(), {part.feature: part for part in parts}, next(iter(adms.values()), None))


def _in_cache(record: RunRecord, cache: AnyPath | None) -> dict[str, Mapping[str, object]]:
    path = to_path(cache or record.cache)
    if not (path / "cache.json").is_file():
        raise UserError(
            f"run {record.run}: does not record the specs of its features (it was trained by an older version), and "
            f"{path} is not a cache. Name the cache of the run with --cache."
        )
    return {name: Cache.open(path).open_feature(fingerprint).spec for name, fingerprint in record.fingerprints.items()}
