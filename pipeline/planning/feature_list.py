"""What can be computed, with its cost at the defaults of a build."""

from __future__ import annotations

from typing import Any

from ... import __version__
from ...choices import ADM
from ...errors import UserError
from ...features.registry import FEATURES, layout_of, networks_of, producers_of, with_their_inputs
from ...models.diffusion.checkpoints import OFFICIAL
from ...plugins import Package
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
        those of its inputs; ``description``; ``problem``, a sentence on what a build needs for it, or why it cannot be used
        at all. What is not known is None.
    """
    config = BuildConfig.checked(cache="cache", dataset="dataset", sources=("source",))
    return [{"name": name, **dict.fromkeys(_FACTS), **_facts(name, config)} for name in FEATURES]


def _facts(name: str, config: BuildConfig) -> dict[str, Any]:
    try:
        feature = FEATURES[name]
    except UserError as error:
        return {"problem": str(error)}
    package = FEATURES.package(name) or Package("distil-cache", __version__)
    known = {
        "provider": str(package),
        "inputs": sorted(set(feature.inputs.values())),
        "settings": settable(feature),
        "description": feature.description,
    }
    try:
        of_all = with_their_inputs([name])
        networks = {of: source.fields(UNKNOWN_WEIGHTS) for of, source in networks_of(of_all, dict(config)).items()}
        spec = specs_of_build(config, OFFICIAL[ADM].config, UNKNOWN_WEIGHTS, {"image", *of_all}, networks)[name]
        layout = layout_of(spec)
    except UserError as error:
        return {**known, "problem": str(error)}
    return {
        **known,
        "geometry": layout.geometry,
        "shape": list(layout.shape),
        "dtype": layout.dtype,
        "calls": {one.unit: one.route(frozenset({name})).calls for one in producers_of({name: spec})},
    }
