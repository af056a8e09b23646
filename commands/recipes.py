"""Recipe files: the options of a command as TOML, named as on the command line.

``distil-cache build recipe.toml`` reads one. Its values take the place of defaults, so they are parsed and checked as if
they had been typed, and an option on the command line wins.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, UserError
from .options import command_line

if TYPE_CHECKING:
    import typer

SUFFIX = ".toml"
RECIPE = "recipe.toml"
"""Name of the recipe in the folder of a run or a sweep."""
_MOST_BYTES = 1 << 20
NOT_SETTINGS = frozenset(
    {"help", "profile", "write_recipe", "as_json", "strict", "dry_run", "price", "calibrate", "resume"}
)
"""Parameters that do not belong to what a command makes: they are neither written nor read."""


def read_recipe(path: Path, parameters: Sequence[Any], command: str) -> dict[str, Any]:
    """Read a recipe.

    Parameters
    ----------
    path
        The TOML file.
    parameters
        The command's parameters (of click).
    command
        The command's name, for messages.

    Returns
    -------
    dict
        Name of a parameter -> its value.

    Raises
    ------
    UserError, UsageError
        The file cannot be read, or names something that is no option of the command.
    """
    from ..storage.regular import read_regular

    try:
        content = tomllib.loads(read_regular(path, _MOST_BYTES).decode())
    except OSError as error:
        raise UserError(f"{path}: the recipe cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:  # of TOML, or of UTF-8
        raise UserError(f"{path}: is not a recipe in TOML ({error}).") from error
    stated = content.pop("command", command)
    if stated != command:
        raise UsageError(f"{path}: is a recipe for {stated}. Run: distil-cache {stated} {path}")
    known = {key_of(one): one for one in parameters if one.name not in NOT_SETTINGS - {"profile"}}
    settings: dict[str, Any] = {}
    for key, value in content.items():
        found = known.get(key.replace("_", "-"))
        if found is None:
            raise UsageError(f"{path}: {key} is no option of {command}. It takes: {', '.join(sorted(known))}.")
        several = found.nargs == -1 or getattr(found, "multiple", False)
        settings[str(found.name)] = _checked(path, key, value, several=several)
    return settings


def _checked(path: Path, key: str, value: object, *, several: bool) -> object:
    """Return a value as the command line's parser takes it."""
    if several:
        items = value if isinstance(value, list) else [value]
        if all(isinstance(item, (str, int, float)) for item in items):
            return [str(item) for item in items]
    elif isinstance(value, bool):
        return value
    elif isinstance(value, (str, int, float)):
        return str(value)
    raise UsageError(f"{path}: {key} = {value!r} is not a value of this option. See its help.")


def recipe_bytes(ctx: typer.Context) -> bytes:
    """Return the recipe of the command that is running: every option that has a value, its defaults included.

    Raises UserError for a path whose bytes are not UTF-8, which TOML cannot hold.
    """
    lines = [f"command = {json.dumps(ctx.command.name)}"]
    for parameter in ctx.command.params:
        value = ctx.params.get(str(parameter.name))
        if parameter.name in NOT_SETTINGS or value is None or value == [] or value == ():
            continue
        lines.append(f"{key_of(parameter)} = {_toml(value)}")
    try:
        return ("\n".join(lines) + "\n").encode()
    except UnicodeEncodeError as error:
        raise UserError("A recipe cannot hold these options: a name in them is not UTF-8.") from error


def save_recipe(ctx: typer.Context, path: Path) -> dict[str, Any]:
    """Write the recipe of the command that is running to a new file; return what was written and the next command.

    Raises
    ------
    UserError
        The file exists.
    """
    from ..storage.atomic import create_file

    if path.suffix != SUFFIX:
        raise UsageError(f"--write-recipe {path}: a recipe's name ends with {SUFFIX}.")
    if not create_file(path, recipe_bytes(ctx)):
        raise UserError(f"{path}: exists already. Choose another name for the recipe.")
    return {"recipe": str(path), "next": command_line([str(ctx.command.name), path])}


def show_recipe(result: dict[str, Any]) -> None:
    """Print where a recipe was written, and how to run it."""
    from .show.format import new_console, show_next

    console = new_console()
    console.print(f"Wrote {result['recipe']}.", highlight=False, soft_wrap=True)
    show_next(console, result)


@contextmanager
def kept_recipe(ctx: typer.Context, folder: Path) -> Iterator[None]:
    """Leave the recipe of the command that is running in the folder of a run, however the training ends.

    A folder that is no run, or has its recipe from an earlier start, is left as it is.
    """
    try:
        yield
    finally:
        if any((folder / name).is_file() for name in ("config.json", "sweep.json")):
            from ..storage.atomic import create_file

            with suppress(UserError):  # it is a convenience, and the run's record has the same settings
                create_file(folder / RECIPE, recipe_bytes(ctx))


def key_of(parameter: Any) -> str:
    """Return the name of a parameter in a recipe: its long option without dashes, or the argument's name."""
    if parameter.param_type_name == "argument":
        return str(parameter.name).replace("_", "-")
    return str(max(parameter.opts, key=len)).lstrip("-")


def _toml(value: object) -> str:
    """Format a value for TOML, whose strings, numbers, booleans and lists are written as in JSON."""
    plain = [str(item) for item in value] if isinstance(value, (list, tuple)) else value
    plain = plain if isinstance(plain, (list, bool, int, float)) else str(plain)
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")
