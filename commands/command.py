"""What all commands share: options that a recipe or a profile fills in, and a help page in groups with examples."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from .help_pages import EXAMPLES, PANELS, RECIPES
from .options import command_line
from .recipes import SUFFIX, read_recipe

PROGRAM = "distil-cache"
_NAMES = 28
"""Columns of the names of options, at most: at 80 columns, 48 are left for what they do."""
_WIDEST = 110
_PLACEHOLDERS = {"str": "TEXT", "int": "N", "float": "X", "path": "PATH", "bool": ""}
_TYPED = "distil_cache.typed"
_OTHER = "Output"
"""The last group of every command, with what no other group names."""


UsageProblem: Any = typer.BadParameter.__mro__[1]
"""What the parser of the command line raises; typer names just this kind of it."""


def visible_problem(problem: Any) -> Any:
    """Return an error of the command line with its text made harmless: it quotes arguments, which may be names of files."""
    from ..storage.text import visible

    problem.message = visible(problem.message)
    return problem


class Group(TyperGroup):
    """The program, or its commands on one subject."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the options before a command's name."""
        try:
            return super().parse_args(ctx, args)
        except UsageProblem as problem:
            raise visible_problem(problem) from None


class Command(TyperCommand):
    """A command of the program; its groups and examples are in :mod:`.help_pages`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the values of a recipe, the first argument, as defaults, and ``--cache`` also for an argument; then parse."""
        if self.params and self.params[0].name == "cache" and self.params[0].param_type_name == "argument":
            args = cache_first(args)
        ctx.meta[_TYPED] = tuple(args)
        if self.name in RECIPES and args and args[0].endswith(SUFFIX) and not ctx.resilient_parsing:
            path, *args = args
            ctx.default_map = read_recipe(Path(path), self.params, str(self.name))
        try:
            return super().parse_args(ctx, args)
        except UsageProblem as problem:
            raise visible_problem(problem) from None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the line of usage."""
        recipe = [f"[RECIPE{SUFFIX}]"] if self.name in RECIPES else []
        pieces = super().collect_usage_pieces(ctx)
        return [*recipe, *(re.sub(r"\{(\w+)\}", r"\1", piece) for piece in pieces)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help page: what the command does, its options in groups, and examples."""
        console = Console(width=min(shutil.get_terminal_size().columns, _WIDEST), markup=False, highlight=False)
        name = command_name(ctx)
        pieces = " ".join(self.collect_usage_pieces(ctx))
        console.print(Text.assemble(("Usage: ", "bold"), f"{PROGRAM} {name} {pieces}"))
        for paragraph in (self.help or "").split("\n\n"):
            console.print()
            console.print(Padding(Text(" ".join(paragraph.split())), (0, 0, 0, 2)))
        for title, parameters in self.groups(ctx):
            console.print()
            console.print(Text(title, style="bold"))
            console.print(_options(ctx, parameters))
        console.print()
        console.print(Text("Examples", style="bold"))
        for example in EXAMPLES[name]:
            console.print(Padding(Text(example), (0, 0, 0, 2)), soft_wrap=True)

    def groups(self, ctx: Any) -> list[tuple[str, list[Any]]]:
        """Return the titles of the groups of options and arguments, and what is in each."""
        by_name = {str(one.name): one for one in self.get_params(ctx)}
        titles = PANELS[command_name(ctx)]
        groups = [(title, [by_name.pop(name) for name in names]) for title, names in titles.items()]
        return [*groups, (_OTHER, list(by_name.values()))]


def cache_first(args: list[str]) -> list[str]:
    """Return the words of a command that takes the cache as its first argument, where they name it by ``--cache`` as others do.

    Words without ``--cache`` are returned as they are.
    """
    for place, word in enumerate(args):
        if word == "--":
            return args
        if word == "--cache" and place + 1 < len(args):
            return [args[place + 1], *args[:place], *args[place + 2 :]]
        if word.startswith("--cache="):
            return [word.removeprefix("--cache="), *args[:place], *args[place + 1 :]]
    return args


def typed_again(ctx: Any, *added: str, without: Sequence[str] = ()) -> str:
    """Return the command that is running as it was typed, for the line that says what to do next.

    Parameters
    ----------
    ctx
        Context of the command.
    *added
        Options to add at its end.
    without
        Options to leave out, with their values; ``--json`` always is.
    """
    flags = {name for one in ctx.command.params if getattr(one, "is_flag", False) for name in one.opts}
    kept, skipped = [], False
    for word in ctx.meta[_TYPED]:
        name, equals, _ = word.partition("=")
        if name in (*without, "--json"):
            skipped = name not in flags and not equals
        elif skipped:
            skipped = False
        else:
            kept.append(word)
    end = kept.index("--") if "--" in kept else len(kept)
    return command_line([*command_name(ctx).split(), *kept[:end], *added, *kept[end:]])


def command_name(ctx: Any) -> str:
    """Return the full name of the command of a context, without the program: ``cache ls``."""
    names: list[str] = []
    while ctx.parent is not None:
        names.insert(0, str(ctx.info_name))
        ctx = ctx.parent
    return " ".join(names)


def _options(ctx: Any, parameters: list[Any]) -> Padding:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(max_width=_NAMES, overflow="fold", style="cyan")
    table.add_column(overflow="fold", ratio=1)
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is not None:
            table.add_row(*map(Text, readable(*record)))
    return Padding(table, (0, 0, 0, 2))


def readable(names: str, text: str) -> tuple[str, str]:
    """Return names and help of an option as one types them: types as placeholders, choices that may break between two."""
    names = re.sub(r"<(?:list\[)?(\w+)(?: range)?\]?>", lambda found: _PLACEHOLDERS.get(found[1], found[0]), names)
    text = re.sub(r"\[default: \((.*?)\)(?=[];])", r"[default: \1", text.replace("\\[", "["))
    return re.sub(r"\s*\|\s*", " | ", names).strip(), text
