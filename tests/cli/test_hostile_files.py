"""Whatever is in the place of a file that a command reads, the command ends, without a traceback and in bounded memory."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loose_files import write_dire, write_distildire
from small_models import STEPS, write_material
from watched_commands import TRACEBACK, Commands, watched_commands

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

BUILD = f"--cache {{out}} --dataset d --adm {{m}}/adm.safetensors --steps {STEPS} --features image"
ADM = "--cache {out} --dataset d --features image,eps"
TRAIN = "--dataset d --method eps --backbone small --epochs 1"
PREDICT = "predict --adm {m}/adm.safetensors {m}/one.png"
IMPORT = "cache import {{out}} {{tree}} --kind {kind} --dataset d"
BENCH = "--method eps --backbone small --no-timing"

# Name -> folder of the material that is copied to {tree} (empty: an empty one), place of the file {bad} in it, command.
PLACES = {
    **{f"a source {s}": ("", f"source{s}", f"build {{bad}} {BUILD}") for s in (".json", ".jsonl", ".txt", ".tsv", "")},
    "a table": ("", "source.csv", f"build {{bad}} {BUILD}"),
    "Parquet": ("", "source.parquet", f"build {{bad}} {BUILD}"),
    "a tar": ("", "source.tar", f"build {{bad}} {BUILD}"),
    "a zip": ("", "source.zip", f"build {{bad}} {BUILD}"),
    "a tar in a folder": ("", "part.tar", f"build {{tree}} {BUILD}"),
    "a zip in a folder": ("", "part.zip", f"build {{tree}} {BUILD}"),
    "Parquet in a folder": ("", "part.parquet", f"build {{tree}} {BUILD}"),
    "metadata": ("images", "metadata.csv", f"build {{tree}} {BUILD}"),
    "JSON metadata": ("images", "metadata.jsonl", f"build {{tree}} {BUILD} --layout metadata"),
    "a table beside images": ("images/train/gen/0_real", "p.csv", f"build {{tree}} {BUILD}"),
    "an image of a source": ("images", "train/gen/0_real/new.png", f"build {{tree}} {BUILD}"),
    "a file of a source": ("images", "train/gen/0_real/new", f"build {{tree}} {BUILD}"),
    "an image of --real": ("images/train/gen", "0_real/new.png", f"build --real {{tree}}/0_real --fake g={{tree}}/1_fake {BUILD}"),
    "--real": ("", "real", f"build --real {{bad}} --fake g={{m}}/images {BUILD}"),
    "--cache": ("", "cache", "build {m}/images --cache {bad} --dataset d --adm demo --features image"),
    **{f"--adm {s}": ("", f"adm{s}", f"build {{m}}/images --adm {{bad}} {ADM}") for s in (".safetensors", ".json", "")},
    "--adm": ("", "adm.pt", f"build {{m}}/images --adm {{bad}} {ADM}"),
    "--adm-config": ("", "flags.json", f"build {{m}}/images --adm {{m}}/adm.safetensors --adm-config {{bad}} {ADM}"),
    "--teacher-weights": ("", "t.pt", f"build {{m}}/images {BUILD},teacher --teacher small --teacher-weights {{bad}}"),
    "audited source": ("", "source.csv", "audit {bad}"),
    "an audited image": ("images", "train/gen/0_real/new.png", "audit {tree}"),
    "verified source": ("", "source.csv", "cache verify {m}/cache --sources {bad}"),
    "a verified image": ("images", "train/gen/0_real/new.png", "cache verify {m}/cache --sources {tree}"),
    **{
        f"an imported {part}": ("loose", f"train/{part}/reals/img000{suffix}", IMPORT.format(kind="distildire"))
        for part, suffix in (("images", ".png"), ("eps", ".pt"), ("dire", ".png"))
    },
    **{
        f"DIRE's {part}": ("dire", f"{part}/train/0_real/a.png", IMPORT.format(kind="dire"))
        for part in ("images", "recons", "dire")
    },
    "imported eps": ("loose", "train/eps", IMPORT.format(kind="distildire")),
    "import": ("", "source", "cache import {out} {bad} --kind dire --dataset d"),
    **{f"predict {s}": ("", f"new{s}", f"{PREDICT} --run {{m}}/run {{bad}}") for s in (".png", "")},
    "a video": ("", "new.mp4", f"{PREDICT} --run {{m}}/run {{bad}}"),
    "a folder to predict": ("", "new.png", f"{PREDICT} --run {{m}}/run {{tree}}"),
    "--run": ("", "run", f"{PREDICT} --run {{bad}}"),
    "--weights": ("", "w.pth", f"{PREDICT} --weights {{bad}}"),
    "--explain": ("", "explained", f"{PREDICT} --run {{m}}/run --explain {{bad}}"),
    "the cache of a training": ("", "cache", f"train --cache {{bad}} --run {{out}} {TRAIN}"),
    "--init-from": ("", "run", f"train --cache {{m}}/cache --run {{out}} {TRAIN} --init-from {{bad}}"),
    "--local-copy": ("", "copy", f"train --cache {{m}}/cache --run {{out}} {TRAIN} --local-copy {{bad}}"),
    "the run of a training": ("", "run", f"train --cache {{m}}/cache --run {{bad}} {TRAIN}"),
    "a run": ("", "run", "evaluate {bad} --cache {m}/cache --dataset d"),
    "the cache of an evaluation": ("", "cache", "evaluate {m}/run --cache {bad} --dataset d"),
    "a reported run": ("", "run", "report {bad} --out {out}"),
    "--bench": ("", "bench.json", "report {m}/run --out {out} --bench {bad}"),
    "--out of a report": ("", "report", "report {m}/run --out {bad}"),
    "a checkpoint": ("", "w.pth", "checkpoint import {bad} --run {out}"),
    "an exported run": ("", "run", "checkpoint export {bad} {out}.pth"),
    "an exported cache": ("", "cache", "cache export {bad} --dataset d --out {out}"),
    "--out of an export": ("", "export", "cache export {m}/cache --dataset d --out {bad}"),
    "a recipe": ("", "recipe.toml", "build {bad}"),
    "bench": ("", "adm.pt", f"bench --adm {{bad}} {BENCH}"),
    "flags of bench": ("", "adm.json", f"bench --random-adm --adm-config {{bad}} {BENCH}"),
    **{
        f"{pattern} of a cache, {command}": ("cache", pattern, f"cache {command} {{tree}}")
        for pattern in ("cache.json", "datasets/d/HEAD-000001.json", "datasets/d/*.parquet", "builds/*.json", "refs/*.json",
                        "features/eps-*/spec.json", "features/eps-*/shards/*.json", "features/eps-*/shards/*.zarr",
                        "features/eps-*/shards/*.zarr/zarr.json", "features/eps-*/shards/*.zarr/c/0/0/0/0")
        for command in ("ls", "verify", "gc")
    },
    "memory of scans": ("cache", "datasets/d/scan.parquet", f"build {{m}}/images {BUILD.replace('{out}', '{tree}')}"),
}  # fmt: skip
USUAL = (
    "a table", "Parquet", "a tar", "a zip", "metadata", "a table beside images", "--adm", "--adm-config", "an imported eps",
    "a video", "a recipe", "--bench", "a checkpoint", "datasets/d/*.parquet of a cache, verify",
)  # fmt: skip
"""Places for the tests that always run: one of each reader."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with watched_commands(tmp_path_factory.mktemp("printed")) as started:
        yield started


@pytest.fixture(scope="module")
def material(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_material(tmp_path_factory.mktemp("material"), {"train": 2, "val": 2, "test": 1})
    write_distildire(folder / "loose", {"train": 2})
    write_dire(
        folder / "dire",
        [f"{split}/{label}.png" for split in ("train",) for label in ("0_real/a", "1_fake/b", "0_real/c")],
    )
    shutil.copy(next(folder.glob("images/*/*/*/*.png")), folder / "one.png")
    build = f"build {folder}/images {BUILD},eps".format(m=folder, out=folder / "cache")
    assert commands.run(*build.split()).code == 0
    assert commands.run(*f"train --cache {folder}/cache --run {folder}/run {TRAIN}".split()).code == 0
    return folder


def put(kind: str, path: Path) -> None:
    """Put something that is no usual file in the place of a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(2**42)
    else:
        path.symlink_to({"device": "/dev/zero", "proc": "/proc/self/environ", "loop": path.name}[kind])


def check(place: str, kind: str, commands: Commands, material: Path, folder: Path) -> None:
    source, name, command = PLACES[place]
    tree = folder / "tree"
    tree.mkdir() if not source else shutil.copytree(material / source, tree)
    bad = min(tree.glob(name), default=tree / name)
    put(kind, bad)
    ended = commands.run(*command.format(m=material, out=folder / "new", tree=tree, bad=bad).split())
    assert ended.code is not None, f"{place} waits for a {kind}"
    assert ended.code not in (TRACEBACK, -9), f"{place}, {kind}: {ended.text}"
    assert "No such option" not in ended.text, f"{place} is never read: {ended.text}"
    if ended.code in (1, 2):
        assert "distil-cache: " in ended.text or "Usage: " in ended.text, ended
    assert "Traceback" not in ended.text


@pytest.mark.parametrize("place", USUAL)
def test_a_command_does_not_wait_for_a_pipe(place: str, commands: Commands, material: Path, tmp_path: Path) -> None:
    check(place, "pipe", commands, material, tmp_path)


@pytest.mark.parametrize("place", ["a table", "a tar", "an imported eps"])
def test_a_command_does_not_read_a_device(place: str, commands: Commands, material: Path, tmp_path: Path) -> None:
    check(place, "device", commands, material, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "folder", "proc", "loop", "sparse"])
@pytest.mark.parametrize("place", PLACES)
def test_whatever_is_in_the_place_of_a_file_a_command_ends_with_a_sentence(
    place: str, kind: str, commands: Commands, material: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    check(place, kind, commands, material, tmp_path)
