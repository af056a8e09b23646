"""Feature specs and their fingerprints.

A spec is everything that decides a feature's values. Its fingerprint is the SHA-256 of the spec as canonical JSON
(RFC 8785), so it depends on no path, time, field order or version of Python.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import ClassVar

import rfc8785
from pydantic import BaseModel, ConfigDict

FOLDER_DIGITS = 16
FOLDER_NAME = re.compile(r"[a-z0-9_]+-[0-9a-f]{16}")
"""Names of feature folders."""


def fingerprint_of(canonical: Mapping[str, object]) -> str:
    """Return the SHA-256, 64 hex digits, of a JSON object in its RFC 8785 form."""
    return hashlib.sha256(rfc8785.dumps(dict(canonical))).hexdigest()  # type: ignore[arg-type]


class SpecPart(BaseModel):
    """A frozen group of settings inside a spec, such as the description of a network's weights.

    Fields hold strings, integers, finite floats, booleans, None, further parts, or tuples and mappings of these.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ADDED: ClassVar[frozenset[str]] = frozenset()
    """Fields added after the first release. At their default they are left out, so old fingerprints stay valid."""

    def canonical(self) -> dict[str, object]:
        """Return the settings as nested JSON values, without the fields in ``ADDED`` that have their default."""
        fields = type(self).model_fields
        result: dict[str, object] = {}
        for name in fields:
            value = getattr(self, name)
            if name in self.ADDED and value == fields[name].get_default(call_default_factory=True):
                continue
            result[name] = _plain(value, f"{type(self).__name__}.{name}")
        return result


class Spec(SpecPart):
    """The spec of one feature. Subclasses narrow ``feature`` and ``algorithm`` to literals with a default.

    Attributes
    ----------
    feature
        The feature's name, such as ``eps``.
    algorithm
        Version of the computation. Raise it when the same settings give other values.
    """

    feature: str
    algorithm: int

    def fingerprint(self) -> str:
        """Return the spec's SHA-256 as 64 hex digits."""
        return fingerprint_of(self.canonical())

    @property
    def folder(self) -> str:
        """Name of the feature's folder: the feature and the first 16 digits of the fingerprint."""
        return folder_name(self.feature, self.fingerprint())


def folder_name(feature: str, fingerprint: str) -> str:
    """Return the name of the folder of a feature with this fingerprint."""
    return f"{feature}-{fingerprint[:FOLDER_DIGITS]}"


def fingerprint_without(spec: Mapping[str, object], ignored: str) -> str:
    """Return the fingerprint that a feature would have without a setting, at any depth.

    Parameters
    ----------
    spec
        Its settings as nested JSON values.
    ignored
        Name of the setting, such as ``perturb`` or ``algorithm``.
    """
    return fingerprint_of(without(spec, ignored))


def without(spec: Mapping[str, object], ignored: str) -> dict[str, object]:
    """Return the settings of a spec without one of them, at any depth."""
    return {
        name: without(value, ignored) if isinstance(value, Mapping) else value
        for name, value in spec.items()
        if name != ignored
    }


def with_decoding(spec: Mapping[str, object], algorithm: int) -> dict[str, object]:
    """Return a spec as it would be if its images, at any depth, were decoded by the rules of this ``algorithm``."""
    changed = {
        name: with_decoding(value, algorithm) if isinstance(value, Mapping) else value for name, value in spec.items()
    }
    return {**changed, "algorithm": algorithm} if spec.get("feature") == "image" else changed


def image_of(spec: Mapping[str, object]) -> Mapping[str, object]:
    """Return the spec of the images from which a feature derives, at any depth; empty if there is none."""
    if spec.get("feature") == "image":
        return spec
    return next((image for part in spec.values() if isinstance(part, Mapping) and (image := image_of(part))), {})


def harmonization_of(spec: Mapping[str, object]) -> str:
    """Return the compression that all images of a feature got first, such as ``jpeg:95``; empty for none."""
    found = spec.get("harmonize")
    if isinstance(found, Mapping):
        return ":".join(str(found[name]) for name in ("codec", "quality") if name in found)
    parts = (harmonization_of(value) for value in spec.values() if isinstance(value, Mapping))
    return next((part for part in parts if part), "")


def algorithms(spec: Mapping[str, object]) -> tuple[int, ...]:
    """Return the algorithms of a feature and of what it derives from, in the order of its settings."""
    found: tuple[int, ...] = ()
    for name, value in spec.items():
        if name == "algorithm" and isinstance(value, int):
            found += (value,)
        elif isinstance(value, Mapping):
            found += algorithms(value)
    return found


def imported_from(spec: Mapping[str, object]) -> str:
    """Return where a feature's values, or those that it derives from, were imported from.

    Parameters
    ----------
    spec
        Its settings as nested JSON values.

    Returns
    -------
    str
        ``kind: origin`` of each import, joined with ``; ``. Empty if everything was computed by this program.
    """
    parts = [value for value in spec.values() if isinstance(value, Mapping)]
    own = spec.get("imported")
    found = {f"{own.get('kind')}: {own.get('origin')}"} if isinstance(own, Mapping) else set()
    return "; ".join(sorted(found | {origin for part in parts if (origin := imported_from(part))}))


def _plain(value: object, where: str) -> object:
    if isinstance(value, SpecPart):
        return value.canonical()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, tuple):
        return [_plain(item, where) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item, where) for key, item in value.items()}
    raise TypeError(f"{where}: a spec cannot hold a {type(value).__name__}")
