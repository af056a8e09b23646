"""Lines that let a user choose one of several builds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..choices import preset_name
from .records.builds import BuildRecord
from .store import Cache


def describe(cache: Cache, records: Sequence[BuildRecord]) -> list[str]:
    """Return a line for each build: its option, date, ADM, steps and size, features, and settings in which they differ."""
    settings = [_settings(cache, record) for record in records]
    return [_line(record, own, settings) for record, own in zip(records, settings, strict=True)]


def _line(record: BuildRecord, own: Mapping[str, str], all_settings: Sequence[Mapping[str, str]]) -> str:
    facts = [f"{record.created:%Y-%m-%d %H:%M}"]
    if "adm.weights" in own:
        facts.append(f"ADM {own['adm.weights'][:12]} of {own.get('flags.image_size', '?')} pixels")
    steps = next((value for name, value in own.items() if name.endswith(".steps")), None)
    facts += [steps] if steps else []
    facts += [f"images of {own['image.size']} pixels"] if "image.size" in own else []
    facts.append(", ".join(f"{name} ({'+'.join(built.splits)})" for name, built in record.features.items()))
    named = {"adm.weights", "flags.image_size", "image.size"}
    differing = [
        name for name in own if name not in named and any(other.get(name) != own[name] for other in all_settings)
    ]
    if differing:
        facts.append("with " + ", ".join(f"{name}={own[name]:.12}" for name in differing))
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
