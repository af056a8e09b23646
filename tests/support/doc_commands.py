"""The commands in the documentation's code blocks, and whether the command line knows them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
from distil_cache.cli import app
from distil_cache.commands.recipes import SUFFIX
from markdown_it import MarkdownIt

PROGRAM = "distil-cache"
SHELLS = ("", "bash", "sh", "console", "text")
"""Languages of blocks that hold commands; a block without one is indented."""


def shell_blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page that may hold commands, or those in the given languages alone."""
    blocks = [one for one in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")) if one.tag == "code"]
    return [one.content for one in blocks if one.info.strip() in (languages or SHELLS)]


def command_lines(block: str) -> Iterator[str]:
    """Yield the lines of a block in which the program is run, continued lines joined and what stands before it cut off."""
    for line in block.replace("\\\n", " ").splitlines():
        found = re.search(rf"(?:^|[-;|$] ){PROGRAM} (?=[a-z-])(.*)", line.strip())
        if found:
            yield f"{PROGRAM} {found[1]}"


def words_of(line: str) -> tuple[list[str], bool]:
    """Split a line; the second value says whether it is abbreviated or marks what may be left out.

    ``...``, ``…``, comments and the brackets of optional parts are dropped.
    """
    short = bool(re.search(r"\.\.\.|…|\[-| \[", line))
    plain = re.sub(r"\[(-[^]]*|[^]\s]*\s[^]]*)\]", r"\1", line)
    plain = re.sub(r"[|;&]\s.*$", "", plain)
    words = shlex.split(plain, comments=True)
    return [word for one in words if (word := one.rstrip("…").removesuffix("..."))], short


def check(line: str) -> None:
    """Raise what the command line's parser raises for a line of the documentation, without running the command."""
    words, short = words_of(line)
    command = _program()
    context = command.make_context(words.pop(0), list(words), resilient_parsing=True)
    while hasattr(command, "commands"):
        name = words.pop(0)
        command = command.commands[name]
        group = hasattr(command, "commands")
        context = typer.Context(command, info_name=name, parent=context) if group else context
    known = {option for parameter in command.get_params(context) for option in _options(parameter)}
    used = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
    assert used <= known, f"{line}: {command.name} has no {', '.join(sorted(used - known))}"
    from_recipe = words[:1] and words[0].endswith(SUFFIX)
    if not short and not from_recipe and "--resume" not in words:
        command.make_context(command.name, words, parent=context)


@cache
def _program() -> Any:
    return typer.main.get_command(app)


def _options(parameter: Any) -> list[str]:
    return [*getattr(parameter, "opts", ()), *getattr(parameter, "secondary_opts", ())]
