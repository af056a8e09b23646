"""Settings of one feature alone: ``--set FEATURE.FIELD=VALUE``, a value for any field of the feature's spec."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from ...errors import UsageError
from ...features.contract import Feature
from ...features.registry import FEATURES
from ...storage import AnyPath
from ...storage.json_record import first_fault
from .wanted import unknown_feature

OF_THE_BUILD = frozenset(
    {"adm", "backbone", "calls", "clip", "flags", "lpips", "precision", "real_step", "steps", "weights"}
)
"""Fields that say which networks were called and how. The options of a build that load the networks set them."""


def parse_set(options: Sequence[str], cache: AnyPath) -> dict[str, dict[str, object]]:
    """Parse ``["strips.bins=8"]`` into feature -> field -> value, with the type of the spec's field.

    Raises
    ------
    UserError
        The feature is that of a package which is not installed, see `unknown_feature`.
    UsageError
        The feature or the field does not exist, the value does not fit, or an option of its own sets the field.
    """
    found: dict[str, dict[str, object]] = {}
    for option in options:
        where, equals, text = option.partition("=")
        name, dot, field = where.strip().partition(".")
        if not equals or not dot or not name or not field:
            raise UsageError(f"--set {option}: write FEATURE.FIELD=VALUE.")
        if name not in FEATURES:
            raise unknown_feature(f"--set {option}", name, cache)
        feature = FEATURES[name]
        if not feature.inputs:
            raise UsageError(f"--set {option}: {name} has options of its own, such as --image-size.")
        if field in OF_THE_BUILD and field in feature.settings:
            raise UsageError(
                f"--set {option}: {field} says which network is called, or how. Use the build's option for that."
            )
        if field not in settable(feature):
            known = ", ".join(settable(feature)) or "none that can be set"
            raise UsageError(f"--set {option}: {name} has no field {field!r}; it has {known}.")
        if field in found.setdefault(name, {}):
            raise UsageError(f"--set {option}: {where.strip()} is given twice.")
        try:
            found[name][field] = _value(feature.spec_type.model_fields[field], text.strip())
        except ValidationError as error:
            raise UsageError(f"--set {option}: {first_fault(error)}.") from error
    return found


def settable(feature: Feature[Any]) -> list[str]:
    """Return the fields of a feature's spec that can be set for it alone; none of a feature that is made of no other."""
    return sorted(feature.settings - OF_THE_BUILD - {"algorithm"}) if feature.inputs else []


def _value(field: FieldInfo, text: str) -> object:
    """Return what a text stands for: as it is, or as JSON for lists, null and numbers in a choice."""
    kind: Any = Annotated[field.annotation, field]
    form: TypeAdapter[Any] = TypeAdapter(kind)
    try:
        return form.validate_strings(text)
    except ValidationError as error:
        try:
            return form.validate_json(text)
        except ValidationError:
            raise error from None
