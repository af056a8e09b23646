"""Profiles, recipes and help pages: what all commands share."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from distil_cache.cli import app
from distil_cache.commands.command import cache_first, typed_again
from distil_cache.commands.help_pages import EXAMPLES, PANELS
from distil_cache.commands.profiles import PROFILES, filled_in
from distil_cache.commands.recipes import recipe_bytes
from distil_cache.errors import UsageError, UserError

GROUP: Any = typer.main.get_command(app)


def commands(group: Any = GROUP, above: str = "") -> dict[str, Any]:
    found = {}
    for name, command in group.commands.items():
        inner = commands(command, f"{above}{name} ") if hasattr(command, "commands") else {above + name: command}
        found |= inner
    return found


COMMANDS = commands()


def parsed(line: str) -> Any:
    """Return the context of a command line, parsed but not run."""
    words = shlex.split(line)
    context = GROUP.make_context("distil-cache", list(words), resilient_parsing=True)
    command: Any = GROUP
    while hasattr(command, "commands"):
        name = words.pop(0)
        command = command.commands[name]
        context = command.make_context(name, list(words), parent=context, resilient_parsing=not words)
    return context


def help_page(name: str, columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises((SystemExit, typer.Exit)):
        GROUP.main([*name.split(), "--help"], prog_name="distil-cache", standalone_mode=True)
    return capsys.readouterr().out


def test_the_help_of_every_command_is_in_groups_that_name_its_parameters_once() -> None:
    assert set(PANELS) == set(EXAMPLES) == set(COMMANDS)
    for name, groups in PANELS.items():
        own = {parameter.name for parameter in COMMANDS[name].params}
        listed = [parameter for names in groups.values() for parameter in names]
        assert set(listed) <= own, name
        assert len(set(listed)) == len(listed), name
        assert len(own - set(listed)) <= 4, f"{name}: {own - set(listed)} are in no group"


@pytest.mark.parametrize("name", COMMANDS)
def test_at_80_columns_no_help_is_cut_and_every_text_has_30_columns(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = help_page(name, 80, monkeypatch, capsys)
    options = page.partition("\nExamples")[0]
    assert "…" not in options.replace("…)", "")
    assert "range>" not in options
    assert max(map(len, options.splitlines())) <= 80
    assert not re.search(r"[{}]|\[\[", options.partition("\n\n")[0])
    for parameter in COMMANDS[name].params:
        first = str(parameter.help).split()[:4]
        assert re.search(r"\s+".join(map(re.escape, first)), options), f"{name} {parameter.name}"
    for line in options.splitlines():
        start = re.match(r"  -.*?\S {2,}(?=\S)", line)
        assert start is None or 80 - start.end() >= 30, line


@pytest.mark.parametrize(("name", "number"), [(name, number) for name in EXAMPLES for number in (0, 1)])
def test_an_example_in_the_help_is_a_command_line_that_parses(name: str, number: int) -> None:
    program, _, line = EXAMPLES[name][number].partition(" ")
    assert program == "distil-cache"
    assert line.startswith(name)
    parsed(line)


def test_a_profile_fills_in_what_is_not_given_and_an_option_wins() -> None:
    small = parsed("build p --cache c --dataset d --profile small").params
    assert {name: small[name] for name in PROFILES["small"]["build"]} == PROFILES["small"]["build"]
    changed = parsed("build p --cache c --dataset d --profile small --adm demo-b").params
    assert (changed["adm"], changed["teacher"]) == ("demo-b", "efficientnet_lite0")
    assert parsed("build p --cache c --dataset d").params["adm"] == "adm256"


def test_what_a_profile_fills_in_is_told_from_what_was_typed_or_stands_in_a_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('cache = "c"\ndataset = "d"\nrun = "r"\nprofile = "small"\nbatch-size = 5\n')
    assert filled_in(parsed(f"train {path} --epochs 3")) == {"backbone", "lr"}
    assert filled_in(parsed("train --cache c --dataset d --run r --epochs 3")) == set()


@pytest.mark.parametrize("line", ["build p q --cache c --dataset d --profile small --no-clip --features image,eps",
                                  "train --cache c --dataset d --dataset e --run r --kd-weight 0.25 --teacher-online"])  # fmt: skip
def test_a_recipe_gives_every_option_of_the_command_that_wrote_it(line: str, tmp_path: Path) -> None:
    before = parsed(line)
    path = tmp_path / "recipe.toml"
    path.write_bytes(recipe_bytes(before))
    after = parsed(f"{before.info_name} {path}")
    assert {**after.params, "profile": None} == {**before.params, "profile": None}
    assert parsed(f"{before.info_name} {path} --cache other").params["cache"] == "other"


def test_a_recipe_may_name_a_profile(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('sources = "p"\ncache = "c"\ndataset = "d"\nprofile = "small"\nteacher = "resnet50"\n')
    found = parsed(f"build {path}").params
    assert (found["adm"], found["teacher"], list(found["sources"])) == ("demo", "resnet50", ["p"])


@pytest.mark.parametrize(
    ("content", "error", "sentence"),
    [
        ("dataset = 'd'\nspeed = 3\n", UsageError, "speed is no option of build"),
        ("dataset = [", UserError, "is not a recipe in TOML"),
        ("command = 'train'\n", UsageError, "is a recipe for train"),
        ("cache = ['a', 'b']\n", UsageError, "is not a value of this option"),
    ],
)
def test_a_wrong_recipe_is_refused_with_a_sentence(
    tmp_path: Path, content: str, error: type[Exception], sentence: str
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    with pytest.raises(error, match=sentence):
        parsed(f"build {path}")
    with pytest.raises(UserError, match="cannot be read"):
        parsed(f"build {tmp_path / 'none.toml'}")


@pytest.mark.parametrize(
    ("words", "first"),
    [
        ("--cache c --dataset d --out o", "c --dataset d --out o"),
        ("--dataset d --cache=c --out o", "c --dataset d --out o"),
        ("SOURCE --dataset d --cache c", "c SOURCE --dataset d"),
        ("c --dataset d --out o", "c --dataset d --out o"),
        ("c -- --cache", "c -- --cache"),
        ("--cache", "--cache"),
    ],
)
def test_the_cache_is_the_first_argument_or_named_by_an_option_as_elsewhere(words: str, first: str) -> None:
    assert cache_first(words.split()) == first.split()


def test_every_cache_command_understands_the_option_of_the_other_commands() -> None:
    lines = {name: example for name, (example, *_) in EXAMPLES.items() if name.startswith("cache ")}
    assert len(lines) >= 7
    for name, example in lines.items():
        words = shlex.split(example)[1 + len(name.split()) :]
        named = parsed(shlex.join([*name.split(), *words[1:], "--cache", words[0]]))
        assert named.params == parsed(shlex.join([*name.split(), *words])).params, name


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("build 'my photos' --dry-run --price 2 --cache c --dataset d", "build 'my photos' --cache c --dataset d"),
        ("build p --price=2 --cache c --json --dataset d --calibrate", "build p --cache c --dataset d"),
    ],
)
def test_a_command_is_told_again_as_it_was_typed_without_what_made_it_a_plan(typed: str, expected: str) -> None:
    again = typed_again(parsed(typed), without=("--dry-run", "--price", "--calibrate"))
    assert again == f"distil-cache {expected}"


def test_an_option_is_added_to_what_was_typed_before_the_end_of_options() -> None:
    assert typed_again(parsed("cache gc c --grace 3"), "--yes") == "distil-cache cache gc c --grace 3 --yes"
    assert typed_again(parsed("cache gc --grace 3 -- -c"), "--yes") == "distil-cache cache gc --grace 3 --yes -- -c"
