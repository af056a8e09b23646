"""Profiles: named sets of defaults, which a recipe and any option on the command line override."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ..choices import ADM, BACKBONE, STEPS, Profile

PROFILES: Mapping[Profile, Mapping[str, Mapping[str, Any]]] = {
    "small": {
        "build": {"adm": "demo", "teacher": "efficientnet_lite0", "train_size": 96},
        "train": {"backbone": "small32", "epochs": 40, "batch_size": 16, "lr": 1e-3},
        "bench": {"adm": "demo", "backbone": "small32"},
    },
    "paper": {
        "build": {"adm": ADM, "teacher": BACKBONE, "steps": STEPS},
        "train": {"backbone": BACKBONE},
        "bench": {"adm": ADM, "backbone": BACKBONE},
    },
}
"""Profile -> command -> the defaults that it replaces, by the name of the parameter.

``small`` runs offline on a CPU: the ADM is in this package and the teacher's weights come with ``distil-cache[demo]``.
At 96 pixels the maps of its teacher and its student have 3x3 positions. Small batches and many epochs let a few dozen
images make enough steps.
"""

_FILLED_IN = "distil_cache.profile"


def _apply(ctx: typer.Context, profile: Profile | None) -> Profile | None:
    """Let a profile fill in what neither the command line nor a recipe says."""
    if profile is not None:
        settings = PROFILES[profile][str(ctx.command.name)]
        recipe = ctx.default_map or {}
        ctx.default_map = {**settings, **recipe}
        ctx.meta[_FILLED_IN] = settings.keys() - recipe.keys()
    return profile


def filled_in(ctx: typer.Context) -> set[str]:
    """Return the names of the parameters that have their values from the profile."""
    return {name for name in ctx.meta.get(_FILLED_IN, ()) if not _is_typed(ctx, name)}


def _is_typed(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


ProfileOption = Annotated[
    Profile | None,
    typer.Option(
        "--profile",
        is_eager=True,
        callback=_apply,
        help="Defaults for other options: small (small models, offline, on a CPU) or paper (ADM-256, ResNet-50). "
        "An option that is given wins.",
        show_default=False,
    ),
]


def chosen_profile(ctx: typer.Context, profile: Profile | None) -> Profile | None:
    """Return the profile that was named or, as in a recipe that ``small`` wrote, whose values all stand; else None."""
    small = PROFILES["small"][str(ctx.command.name)]
    return profile or ("small" if all(ctx.params[name] == value for name, value in small.items()) else None)


def profile_settings(ctx: typer.Context, profile: Profile | None) -> dict[str, Any] | None:
    """Return the profile and the values that its options have now, for the result of a command; None without one."""
    if profile is None:
        return None
    names = PROFILES[profile][str(ctx.command.name)]
    return {"name": profile, "settings": {name.replace("_", "-"): ctx.params[name] for name in names}}
