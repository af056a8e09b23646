"""Lines that let a user choose one of several builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..choices import preset_name
from .records.builds import BuildRecord
from .store import Cache


def describe(cache: Cache, records: Sequence[BuildRecord]) -> list[str]:
    """Return a line for each build: its option, date, ADM, steps and size, features, and settings in which they differ."""
    settings = [_settings(cache, record) for record in records]
    names = [cache.builds().adm_name(record.id) for record in records]
    return [_line(record, name, own, settings) for record, name, own in zip(records, names, settings, strict=True)]


def _line(
    record: BuildRecord, name: str | None, own: Mapping[str, str], all_settings: Sequence[Mapping[str, str]]
) -> str:
    facts = [f"{record.created:%Y-%m-%d %H:%M}"]
    if "adm.weights" in own:
        digest = own["adm.weights"][:12]
        shown = digest if name is None else f"{name} ({digest})"
        facts.append(f"ADM {shown} of {own.get('flags.image_size', '?')} pixels")
    steps = next((value for key, value in own.items() if key.endswith(".steps")), None)
    facts += [steps] if steps else []
    facts += [f"images of {own['image.size']} pixels"] if "image.size" in own else []
    facts.append(", ".join(f"{one} ({'+'.join(built.splits)})" for one, built in record.features.items()))
    named = {"adm.weights", "flags.image_size", "image.size"}
    differing = [key for key in own if key not in named and any(other.get(key) != own[key] for other in all_settings)]
    if differing:
        facts.append("with " + ", ".join(f"{key}={own[key]:.12}" for key in differing))
    return f"  --build {record.id}  {'; '.join(facts)}"


def _settings(cache: Cache, record: BuildRecord) -> dict[str, str]:
    """Return all settings of a build's features, flat, such as ``dire.steps`` -> ``ddim20``."""
    settings: dict[str, str] = {}
    pending = [(name, cache.open_feature(built.folder).spec) for name, built in record.features.items()]
    while pending:
        owner, spec = pending.pop()
        for name, value in spec.items():
            if isinstance(value, dict):
                pending.append((name, value))
            else:
                settings[f"{owner}.{name}"] = str(preset_name(value) if name == "preset" else value)
    return settings
