"""What a student's features are: the specs that its run recorded, or what is assumed where nobody can say.

A run knows the fingerprints of the features that it learnt from. Their specs stand in its record; those of a run of before
that was so are looked up in its cache. Either way they must hash to the fingerprints. A student of the reference
implementation, or one that learnt from imported files, has no such spec: its features are assumed to be made as the
reference makes them, and the notes say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import ValidationError

from ..cache.spec import Spec, fingerprint_of, imported_from
from ..cache.store import Cache
from ..choices import Precision
from ..errors import UserError
from ..images.spec import ImageSpec
from ..pipeline.specs import AdmIdentity, DireSpec, EpsSpec, NoiseSpec, TeacherSpec
from ..storage import AnyPath, to_path
from ..train.runs.folder import RunRecord

REFERENCE_ADM = "adm256"
"""The model of the reference implementation."""

PassSpec = EpsSpec | DireSpec | NoiseSpec
"""The specs of what the ADM makes."""

_PASS: dict[str, type[PassSpec]] = {"eps": EpsSpec, "dire": DireSpec, "noise": NoiseSpec}
_SPECS: dict[str, type[Spec]] = {"image": ImageSpec, "teacher": TeacherSpec, **_PASS}


@dataclass(frozen=True)
class FeatureSpecs:
    """What decides the values of everything that can be made for a student.

    image : the picture. path : features that the ADM makes, by name, as far as the run knows them. adm : the model that made
    them; None if the run saw none, or nobody knows which.
    unknown : why they are assumptions, in words; empty if they are the run's own. usual_adm : the model to take where the
    run names none, if there is a usual one.
    """

    image: ImageSpec
    path: Mapping[str, PassSpec]
    adm: AdmIdentity | None
    unknown: str = ""
    usual_adm: str | None = None

    def spec(self, feature: str, adm: AdmIdentity, precision: Precision | None = None) -> PassSpec:
        """The spec of eps, dire or noise: the run's, else one that shares with the run's others what they share.

        precision : another arithmetic than the run's.
        """
        shared: dict[str, object] = {"image": self.image, "adm": adm}
        for other in self.path.values():
            shared |= {"clip": other.clip, "precision": other.precision}
            if isinstance(other, DireSpec | NoiseSpec):
                shared |= {"steps": other.steps, "real_step": other.real_step}
        kind = _PASS[feature]
        own = self.path.get(feature) or kind.model_validate({n: v for n, v in shared.items() if n in kind.model_fields})
        return own if precision is None else own.model_copy(update={"precision": precision})


def read_feature_specs(record: RunRecord, cache: AnyPath | None) -> FeatureSpecs:
    """Find the settings of a run's features; ``cache`` is where to look for a run that did not record them.

    Raises UserError if they are not to be found, or are not those of the run's fingerprints.
    """
    if record.imported:
        why = "the student was trained elsewhere, so nothing says which model made its eps; this ADM is assumed"
        return FeatureSpecs(ImageSpec(size=record.train_size), {}, None, why, REFERENCE_ADM)
    stored = record.specs or _in_cache(record, cache)
    for name, fingerprint in record.fingerprints.items():
        if name not in stored or fingerprint_of(stored[name]) != fingerprint:
            raise UserError(
                f"run {record.run}: the settings of {name} in its record are not those it learnt from. Train again."
            )
    origins = sorted({origin for spec in stored.values() if (origin := imported_from(spec))})
    if origins:
        sizes = [size for spec in stored.values() if isinstance(size := spec.get("size"), int)]
        why = f"it learnt from imported files ({'; '.join(origins)}), so its features are made anew as the reference makes them"
        return FeatureSpecs(ImageSpec(size=sizes[0]), {}, None, why)
    return _parsed(record, {name: _SPECS[name] for name in stored if name in _SPECS}, stored)


def _parsed(
    record: RunRecord, kinds: Mapping[str, type[Spec]], stored: Mapping[str, Mapping[str, object]]
) -> FeatureSpecs:
    try:
        specs = {name: kind.model_validate(stored[name]) for name, kind in kinds.items()}
    except ValidationError as error:
        raise UserError(
            f"run {record.run}: its features have settings that this version does not know. Install the version that trained it."
        ) from error
    path = {name: spec for name, spec in specs.items() if isinstance(spec, PassSpec)}
    teacher = specs.get("teacher")
    if isinstance(teacher, TeacherSpec) and isinstance(teacher.dire, DireSpec):
        path.setdefault("dire", teacher.dire)
    images = {spec.image for spec in path.values()} | {spec for spec in specs.values() if isinstance(spec, ImageSpec)}
    adms = {spec.adm.weights: spec.adm for spec in path.values()}
    if len(images) != 1 or len(adms) > 1:
        raise UserError(
            f"run {record.run}: its features were made from different pictures or models, so none can be made anew."
        )
    return FeatureSpecs(images.pop(), path, next(iter(adms.values()), None))


def _in_cache(record: RunRecord, cache: AnyPath | None) -> dict[str, Mapping[str, object]]:
    place = to_path(cache or record.cache)
    if not (place / "cache.json").is_file():
        raise UserError(
            f"run {record.run}: does not hold the settings of its features (it was trained by an older version), and "
            f"{place} is no cache. Name the cache that it learnt from with --cache."
        )
    return {name: Cache.open(place).open_feature(print_).spec for name, print_ in record.fingerprints.items()}
