"""The command line: fast start, error messages, exit codes, JSON output."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from distil_cache.cli import app, main
from image_bytes import noise, saved
from small_models import STEPS, write_adm, write_images, write_teacher

HEAVY = ("torch", "torchvision", "zarr", "pydantic", "pyarrow", "numpy", "matplotlib", "sklearn")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from distil_cache.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def imported_by(*arguments: str) -> set[str]:
    code = (
        "import sys\nfrom distil_cache.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print(*sorted(name for name in sys.modules if '.' not in name), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_heavy(option: str) -> None:
    assert imported_by(option).isdisjoint(HEAVY)


def test_the_program_runs_as_a_module() -> None:
    for module in ("distil_cache", "distil_cache.cli"):
        done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
        assert done.stdout.startswith("distil-cache ")


@pytest.mark.parametrize("command", ["bench", "build", "train", "evaluate", "report", "demo"])
def test_the_help_of_a_command_imports_nothing_heavy_but_what_typer_itself_does(command: str) -> None:
    assert imported_by(command, "--help").isdisjoint(set(HEAVY) - {"pydantic"})


def all_commands(group: Any, above: str = "") -> dict[str, Any]:
    """Each command by its full name, those of the groups included."""
    found = {}
    for name, command in group.commands.items():
        inner = (
            all_commands(command, f"{above}{name} ") if hasattr(command, "commands") else {f"{above}{name}": command}
        )
        found |= inner
    return found


def test_every_option_of_every_command_says_what_it_changes() -> None:
    commands = all_commands(typer.main.get_command(app))
    assert {"build", "train", "evaluate", "report", "demo", "cache ls", "checkpoint import"} <= set(commands)
    for name, command in commands.items():
        for option in command.params:
            text = getattr(option, "help", None) or ""
            assert re.search(r"^(\S+ ){2,}.*[.)…]$", text, re.DOTALL), f"{name} {option.name}: {text!r} is no sentence"


def test_every_command_says_in_one_shape_what_it_does_what_it_writes_and_how_it_ends() -> None:
    for name, command in all_commands(typer.main.get_command(app)).items():
        summary, what, codes = command.help.split("\n\n")
        assert summary.endswith("."), name
        assert "\n" not in summary, name
        assert "rites " in what, name
        assert codes.startswith("Exit codes: 0 success, 1 failure, 2 invalid arguments"), name


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_adm(folder / "adm.safetensors")
    write_teacher(folder / "teacher.safetensors")
    images = write_images(folder / "images", {"train": 8, "test": 4})
    (images / "train" / "gen" / "0_real" / "bad.jpg").write_bytes(b"no picture")
    return folder


def build_arguments(material: Path, cache: Path) -> list[str | Path]:
    return [
        "build", material / "images", "--cache", cache, "--dataset", "d", "--adm", material / "adm.safetensors",
        "--teacher", "small", "--teacher-weights", material / "teacher.safetensors", "--steps", STEPS,
    ]  # fmt: skip


@pytest.mark.slow
def test_build_train_evaluate_report_from_the_shell(material: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    built = run(*build_arguments(material, cache), "--json", "--strict")
    assert built.returncode == 3, built.stderr
    result = json.loads(built.stdout)
    wanted = {
        "dataset",
        "revision",
        "build",
        "samples",
        "rejected",
        "label_conflicts",
        "leaked",
        "adm_calls",
        "seconds",
    }
    assert wanted <= result.keys()
    assert all({"fingerprint", "computed", "reused", "bytes"} <= row.keys() for row in result["features"].values())
    assert "ADM calls" in built.stderr

    again = run(*build_arguments(material, cache))
    assert again.returncode == 0, again.stderr
    assert "0 ADM calls, no image decoded" in again.stdout
    assert "bad.jpg: not-an-image" in again.stdout.replace("\n", "")

    train = [
        "train",
        "--cache",
        cache,
        "--dataset",
        "d",
        "--run",
        tmp_path / "r",
        "--backbone",
        "small",
        "--epochs",
        "2",
    ]
    trained = run(*train, "--json")
    assert trained.returncode == 0, trained.stderr
    assert json.loads(trained.stdout)["epochs"] == 2
    assert run(*train).returncode == 1

    evaluate = ["evaluate", tmp_path / "r", "--cache", cache, "--dataset", "d"]
    assert json.loads(run(*evaluate, "--json").stdout)["split"] == "test"
    report = run("report", tmp_path / "r", "--out", tmp_path / "report", "--json")
    assert report.returncode == 0, report.stderr
    assert {"report.html", "report.md", "report.json"} <= {path.name for path in (tmp_path / "report").iterdir()}

    listing = json.loads(run("cache", "ls", cache, "--json").stdout)
    assert listing["datasets"][0]["samples"] == 24
    assert run("cache", "ls", cache).returncode == 0
    assert "sound" in run("cache", "verify", cache).stdout
    data = next(path for path in cache.glob("features/dire-*/shards/*.zarr/c/**/*") if path.is_file())
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    verified = run("cache", "verify", cache)
    assert verified.returncode == 4
    assert "checksum" in verified.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["cache", "ls", "nowhere"], 1, "nowhere: is not a cache"),
        (["build", "nowhere", "--cache", "c", "--dataset", "d", "--adm", "demo"], 1, "nowhere: no such file or folder"),
        (
            ["build", ".", "--cache", "c", "--dataset", "a/b"],
            2,
            "--dataset a/b: cannot name a dataset. Use up to 100 letters (a-z), digits, dots, dashes and underscores",
        ),
        (
            ["build", ".", "--cache", "c", "--dataset", "d", "--batch-size", "many"],
            2,
            "neither auto nor a positive integer",
        ),
        (["build", ".", "--cache", "c"], 2, "Missing option '--dataset'"),
        (["train", "--cache", "nowhere", "--dataset", "d", "--run", "r"], 1, "nowhere: is not a cache"),
        (["train", "--cache", "c", "--dataset", "d", "--run", "r", "--method", "magic"], 2, "unknown method 'magic'"),
        (["evaluate", "nowhere", "--cache", "c", "--dataset", "d"], 1, "nowhere: is not a run"),
        (["report", "nowhere", "--out", "o"], 1, "nowhere"),
    ],
)
def test_a_mistake_ends_with_its_sentence_and_code_and_no_traceback(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["distil-cache", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().err
    assert ended.value.code == code, shown
    assert sentence in shown
    assert "Traceback" not in shown
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_ends_the_program_with_its_sentence_and_code(tmp_path: Path) -> None:
    done = run("cache", "ls", str(tmp_path / "nowhere"), COLUMNS="200")
    assert done.returncode == 1
    assert done.stderr.startswith(f"distil-cache: {tmp_path}/nowhere: is not a cache ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_training_reads_no_source_and_loads_no_diffusion_model(material: Path, tmp_path: Path) -> None:
    cache = tmp_path / "c"
    images = shutil.copytree(material / "images", tmp_path / "images")
    arguments = build_arguments(material, cache)
    arguments[1] = images
    assert run(*arguments).returncode == 0
    shutil.rmtree(images)
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from distil_cache.train.config import TrainConfig\n"
        "from distil_cache.train.evaluation.evaluate import run_evaluation\n"
        "from distil_cache.train.engine.loop import run_training\n"
        "c, r = map(Path, sys.argv[1:])\n"
        "run_training(TrainConfig(dataset='d', backbone='small', epochs=1), c, r)\n"
        "run_evaluation(r, c, 'd')\n"
        "print(*(name for name in sys.modules if name.startswith('distil_cache.pipeline')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, cache, tmp_path / "r"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_an_image_that_is_not_square_is_cached_at_the_size_of_the_adm(material: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images" / "train" / "gen"
    for name, size in (("0_real", (90, 31)), ("1_fake", (17, 300))):
        (folder / name).mkdir(parents=True)
        (folder / name / "x.webp").write_bytes(saved(noise(*size), "WEBP"))
    arguments = build_arguments(material, tmp_path / "c")
    arguments[1] = tmp_path / "images"
    done = run(*arguments, "--json", "--features", "image,eps")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["features"]["eps"]["computed"] == 2
