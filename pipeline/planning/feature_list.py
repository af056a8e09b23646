"""What can be computed, with its cost at the defaults of a build."""

from __future__ import annotations

from typing import Any

from ...choices import ADM
from ...errors import UserError
from ...features.registry import FEATURES, about_of, networks_of, producers_of, with_inputs
from ...models.diffusion.checkpoints import OFFICIAL
from ..config import BuildConfig
from .make_specs import UNKNOWN_WEIGHTS, specs_of_build
from .own_settings import settable

_FACTS = ("provider", "geometry", "shape", "dtype", "inputs", "settings", "calls", "description", "problem")


def list_features() -> list[dict[str, Any]]:
    """Return what there is to know of each feature; nothing is downloaded or computed.

    Returns
    -------
    list of dict
        ``name``; ``provider``, package and version; ``geometry``, ``shape`` and ``dtype`` of a row; ``inputs``, the
        features that it is made of; ``settings``, the fields that ``--set`` takes; ``calls`` of an image by unit, without
        those of its inputs; ``description``. For a feature that cannot be used, ``problem``, a sentence, and None for all
        others.
    """
    config = BuildConfig.checked(cache="cache", dataset="dataset", sources=("source",))
    return [{"name": name, **dict.fromkeys(_FACTS), **_facts(name, config)} for name in FEATURES]


def _facts(name: str, config: BuildConfig) -> dict[str, Any]:
    try:
        feature = FEATURES[name]
        sources = networks_of(with_inputs({name: frozenset({""})}), dict(config))
        networks = {of: source.fields(UNKNOWN_WEIGHTS) for of, source in sources.items()}
        spec = specs_of_build(config, OFFICIAL[ADM].config, UNKNOWN_WEIGHTS, {"image", name}, networks)[name]
        about = about_of(spec)
    except UserError as error:
        return {"problem": str(error)}
    producers = producers_of({name: spec})
    return {
        "provider": str(about.provider),
        "geometry": about.layout.geometry,
        "shape": list(about.layout.shape),
        "dtype": about.layout.dtype,
        "inputs": sorted(set(feature.inputs.values())),
        "settings": settable(feature),
        "calls": {producer.unit: producer.route(frozenset({name})).calls for producer in producers},
        "description": about.description,
    }
