"""Write docs/reference/cli.md: every command with its groups of options and its examples, as ``--help`` shows them.

python tools/cli_reference.py
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from distil_cache.cli import app
from distil_cache.commands.command import PROGRAM, command_name, readable
from distil_cache.commands.help_pages import EXAMPLES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"

INTRODUCTION = """\
# Command line

Every command of `distil-cache`, as `distil-cache COMMAND --help` shows it. [Exit codes](exit-codes.md) have a page
of their own. [Recipes](../how-to/training.md#recipes) are files that hold the options of `build` and `train`.
"""


def commands() -> Iterator[Any]:
    """Yield the context of each command, those of groups such as ``cache`` included, in the order of ``--help``."""
    root = typer.main.get_command(app)
    yield from _below(typer.Context(root, info_name=PROGRAM))


def _below(ctx: Any) -> Iterator[Any]:
    for name, command in ctx.command.commands.items():
        inner = typer.Context(command, info_name=name, parent=ctx)
        if hasattr(command, "commands"):
            yield from _below(inner)
        else:
            yield inner


def page() -> str:
    """Return the text of the page."""
    return "\n".join([INTRODUCTION, *(_section(ctx) for ctx in commands())])


def _section(ctx: Any) -> str:
    name = command_name(ctx)
    usage = " ".join([PROGRAM, name, *ctx.command.collect_usage_pieces(ctx)])
    paragraphs = [" ".join(paragraph.split()) for paragraph in ctx.command.help.split("\n\n")]
    groups = [
        "\n".join([f"**{title}**", "", "| option | what it does |", "|---|---|", *rows])
        for title, parameters in ctx.command.groups(ctx)
        if (rows := [_row(*readable(*one.get_help_record(ctx))) for one in parameters if one.name != "help"])
    ]
    examples = "\n".join(["```bash", *EXAMPLES[name], "```"])
    return "\n\n".join([f"## {name}", f"```text\n{usage}\n```", *paragraphs, *groups, "**Examples**", examples]) + "\n"


def _row(names: str, text: str) -> str:
    """Return a row of a table; GitHub and the site disagree about a bar in a code span, so such names are HTML."""
    code = f"<code>{html.escape(names).replace('|', '&#124;')}</code>" if "|" in names else f"`{names}`"
    escaped = " ".join(text.split()).replace("|", "&#124;").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    return f"| {code} | {escaped} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.name}: {sum(1 for _ in commands())} commands")
