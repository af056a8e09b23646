"""Profiles: named sets of defaults, which a recipe and any option on the command line override."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..choices import PROFILES, Profile

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
