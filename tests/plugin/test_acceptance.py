"""A package outside of this one, with one feature and one method, on the whole way: planned, built, killed, trained, uninstalled."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache import __version__
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.cli import app
from distil_cache.errors import UserError
from distil_cache.features.registry import FEATURES
from distil_cache.inference import Detector
from distil_cache.pipeline.cluster.messages import OpenBuild
from distil_cache.pipeline.cluster.worker import open_build
from distil_cache.testing.conformance import check_feature
from fault_injection import signalled_at
from maintained_cache import checksums
from plugin_packages import SOURCE, forget, install_example, install_with_pip, packages_of
from predict_runs import believe, evaluated
from run_state import best_file, newest
from safetensors.torch import load_file
from small_models import STEPS, computed, write_material
from typer.testing import CliRunner

REPOSITORY = SOURCE.parents[1]
TRAIN, TEST = 12, 4
IMAGES = 2 * (TRAIN + TEST)
WANTED = ("--features", "train:image,residual", "--features", "test:image,residual")
FORMATS = ("zarr", "webdataset")


@dataclass(frozen=True)
class Place:
    """A folder with a model and images, and the packages that are installed."""

    folder: Path
    site: Path

    def options(self, cache: Path, form: str = "zarr") -> list[str]:
        return [
            str(self.folder / "images"), "--cache", str(cache), "--dataset", "d", "--steps", STEPS, "--device", "cpu",
            "--adm", str(self.folder / "adm.safetensors"), "--shard-size", "8", "--format", form, "--batch-size", "4",
            *WANTED,
        ]  # fmt: skip


def run(*words: object) -> Any:
    """Run a command in this process and return its result."""
    ran = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


def refused(*words: object) -> str:
    """Run a command that must be refused, and return its sentence."""
    with pytest.raises(UserError) as error:
        CliRunner().invoke(app, [*map(str, words)], catch_exceptions=False)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = write_material(tmp_path_factory.mktemp("material"), {"train": TRAIN, "test": TEST})
    site = tmp_path_factory.mktemp("site")
    install_example(site)
    return Place(folder, site)


@pytest.fixture
def installed(place: Place) -> Iterator[Place]:
    with packages_of(place.site):
        yield place


@pytest.fixture(scope="module", params=FORMATS)
def built(request: pytest.FixtureRequest, place: Place, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A cache with the package's feature, and what the build said."""
    cache = tmp_path_factory.mktemp(request.param) / "cache"
    with packages_of(place.site):
        return cache, run("build", *place.options(cache, request.param))


@pytest.fixture(scope="module")
def trained(place: Place, built: tuple[Path, Any]) -> Path:
    """A run of the package's method, and its evaluation."""
    cache, _ = built
    folder = cache.parent / "run"
    with packages_of(place.site):
        run("train", "--cache", cache, "--dataset", "d", "--run", folder, "--method", "residual", "--backbone", "small",
            "--epochs", 2, "--batch-size", 5, "--device", "cpu")  # fmt: skip
        run("evaluate", folder, "--device", "cpu")
    believe(folder)
    return folder


def test_the_package_is_small() -> None:
    files = [SOURCE / "pyproject.toml", *(SOURCE / "distil_bands").glob("*.py")]
    assert sum(len(path.read_text().splitlines()) for path in files) <= 80


def test_it_is_listed_with_its_provider_and_its_cost(installed: Place) -> None:
    (row,) = [row for row in run("features")["features"] if row["name"] == "residual"]
    assert (row["provider"], row["geometry"], row["calls"]) == ("distil-bands 1.0", "pixels", {"residuals": 1})
    assert (row["inputs"], row["settings"], row["problem"]) == (["image", "recon"], ["gain"], None)


def test_a_plan_names_its_calls_and_bytes_and_writes_nothing(installed: Place, tmp_path: Path) -> None:
    planned = run("build", *installed.options(tmp_path / "cache"), "--dry-run")
    assert planned["adm_calls"] == IMAGES * 8
    assert planned["calls"] == {"ADM calls": IMAGES * 8, "residuals": IMAGES}
    assert planned["features"]["residual"]["bytes"] == IMAGES * 3 * 16 * 16 * 2
    assert not (tmp_path / "cache").exists()


def test_a_second_build_computes_nothing(installed: Place, built: tuple[Path, Any]) -> None:
    cache, first = built
    assert computed(first) == {"image": IMAGES, "recon": IMAGES, "residual": IMAGES}
    before = checksums(cache)
    form = Cache.open(cache).features()[0].markers()[0].format
    again = run("build", *installed.options(cache, form))
    assert set(computed(again).values()) == {0}
    assert again["build"] == first["build"]
    assert checksums(cache) == before


class StoppedError(BaseException):
    """Stands for the end of the process."""


def test_a_build_that_ends_at_any_commit_makes_the_bytes_of_an_undisturbed_one(
    installed: Place, built: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, first = built
    form = Cache.open(whole).features()[0].markers()[0].format
    commit, ended = FeatureStore.commit, 0

    def ending(store: FeatureStore, *arguments: Any, **options: Any) -> Any:
        nonlocal ended
        marker = commit(store, *arguments, **options)
        if store.feature == "residual":
            ended += 1
            raise StoppedError
        return marker

    while True:
        monkeypatch.setattr(FeatureStore, "commit", ending)
        before = ended
        try:
            run("build", *installed.options(tmp_path, form))
        except StoppedError:
            continue
        finally:
            monkeypatch.setattr(FeatureStore, "commit", commit)
        assert ended == before
        break
    assert ended == -(-2 * TRAIN // 8) + -(-2 * TEST // 8)
    assert checksums(tmp_path) == checksums(whole)
    assert run("build", *installed.options(tmp_path, form))["build"] == first["build"]


def test_a_setting_of_it_makes_another_feature_without_a_call_and_is_checked_at_once(
    installed: Place, built: tuple[Path, Any], tmp_path: Path
) -> None:
    first, cache = built[1], Path(shutil.copytree(built[0], tmp_path / "cache"))
    options = installed.options(cache)
    other = run("build", *options, "--set", "residual.gain=8")
    assert other["adm_calls"] == 0
    assert computed(other) == {"image": 0, "recon": 0, "residual": IMAGES}
    one, two = (result["features"]["residual"]["fingerprint"] for result in (first, other))
    assert one != two
    found = run("cache", "diff", cache, f"residual-{one[:16]}", f"residual-{two[:16]}")
    assert [row["what"] for row in found["differences"]] == ["gain 4 -> 8"]
    new = installed.options(tmp_path / "new")
    for value, said in (
        ("residual.gain=65", "less than or equal to 64"),
        ("residual.nothing=1", "residual has no field 'nothing'; it has gain"),
        ("residual.by=x", "residual has no field 'by'"),
        ("residual.gain", "write FEATURE.FIELD=VALUE"),
        ("image.size=8", "image has options of its own"),
        ("dire.steps=8", "steps says which network is called, or how"),
        ("nothing.at=8", "unknown feature 'nothing'"),
        ("eps.storage=float32", "this build makes no eps"),
    ):
        assert said in refused("build", *new, "--set", value)
    assert not (tmp_path / "new" / "features").exists()


def test_predictions_are_the_scores_of_an_evaluation(installed: Place, trained: Path) -> None:
    rows = evaluated(trained)
    detector = Detector.from_run(trained, adm=str(installed.folder / "adm.safetensors"), device="cpu", batch_size=4)
    found = detector.predict([row["file"] for row in rows])
    assert [one.score for one in found] == [row["score"] for row in rows]
    assert detector.maker.calls == 8


def test_its_cost_is_counted(installed: Place) -> None:
    (row,) = run("bench", "--adm", installed.folder / "adm.safetensors", "--no-timing", "--method", "residual",
                 "--backbone", "small")["rows"]  # fmt: skip
    assert (row["method"], row["adm_calls"]) == ("residual", 40)


def test_upkeep_export_and_report_work_without_the_package(
    place: Place, built: tuple[Path, Any], trained: Path, tmp_path: Path
) -> None:
    cache, _ = built
    forget()
    assert "residual" not in FEATURES
    (row, *_) = [row for row in run("cache", "ls", cache)["features"] if row["feature"] == "residual"]
    assert (row["provider"], row["description"]) == (
        "distil-bands 1.0", "image - recon in grey levels / 255, times the gain",
    )  # fmt: skip
    assert run("cache", "verify", cache)["problems"] == []
    cache = Path(shutil.copytree(cache, tmp_path / "cache"))
    merged = run("cache", "compact", cache, "--rows", 64)["features"]
    assert sum(row["into"] for name, row in merged.items() if name.startswith("residual-")) > 0
    run("cache", "gc", cache, "--yes", "--grace", 0)
    assert run("cache", "verify", cache)["problems"] == []
    (other,) = [row["folder"] for row in run("cache", "ls", cache)["features"] if row["feature"] == "recon"]
    assert not run("cache", "diff", cache, row["folder"], other)["same"]
    build = json.loads((trained / "config.json").read_text())["build"]
    run("cache", "export", cache, "--dataset", "d", "--build", build, "--out", tmp_path / "tars")
    assert "image - recon in grey levels / 255, times the gain" in (tmp_path / "tars" / "README.md").read_text()
    run("report", trained, "--out", tmp_path / "report")
    assert "residual of the reconstruction alone" in (tmp_path / "report" / "report.md").read_text()


def test_what_needs_the_package_names_it(place: Place, built: tuple[Path, Any], trained: Path, tmp_path: Path) -> None:
    cache, _ = built
    forget()
    needs = "residual: is provided by distil-bands 1.0, which is not installed here. Install it."
    assert refused("build", *place.options(cache)) == f"feature {needs}"
    for command in (
        ("train", "--run", trained, "--resume", "--cache", cache, "--dataset", "d"),
        ("evaluate", trained),
        ("predict", place.folder / "images" / "test", "--run", trained),
    ):
        assert refused(*command) == f"method {needs}"
    fresh = refused("train", "--cache", cache, "--dataset", "d", "--run", tmp_path / "run", "--method", "residual")
    assert "unknown method 'residual'" in fresh


def test_a_raised_algorithm_makes_it_alone_anew(place: Place, built: tuple[Path, Any], tmp_path: Path) -> None:
    cache = Path(shutil.copytree(built[0], tmp_path / "cache"))
    code = install_example(tmp_path).parent / "distil_bands" / "feature.py"
    code.write_text(code.read_text().replace("algorithm: Literal[1] = 1", "algorithm: Literal[2] = 2"))
    with packages_of(tmp_path):
        assert computed(run("build", *place.options(cache))) == {"image": 0, "recon": 0, "residual": IMAGES}


def test_it_conforms_and_changed_arithmetic_under_one_fingerprint_does_not(place: Place, tmp_path: Path) -> None:
    golden = SOURCE / "residual.json"
    before = golden.read_bytes()
    code = install_example(tmp_path).parent / "distil_bands" / "feature.py"
    with packages_of(tmp_path):
        check_feature("residual", golden)
    code.write_text(code.read_text().replace("/ 255", "/ 256"))
    with packages_of(tmp_path), pytest.raises(AssertionError, match="raise `algorithm` in the spec"):
        check_feature("residual", golden)
    code.write_text(code.read_text().replace("algorithm: Literal[1] = 1", "algorithm: Literal[2] = 2"))
    with packages_of(tmp_path):
        check_feature("residual", tmp_path / "new.json")
        check_feature("residual", tmp_path / "new.json")
    assert golden.read_bytes() == before


def test_a_worker_with_another_version_of_the_package_is_refused(
    installed: Place,
) -> None:
    request = OpenBuild(
        version=__version__, config={}, fingerprints={"residual": "0" * 64}, lease="x", pictures=None,
        packages={"residual": "distil-bands 2.0"},
    )  # fmt: skip
    with pytest.raises(
        UserError, match=r"by distil-bands 2\.0 where the build runs, and by distil-bands 1\.0 on the worker"
    ):
        open_build(request, {})
    forget()
    sys.path.remove(str(installed.site))
    try:
        with pytest.raises(UserError, match="and by nothing on the worker"):
            open_build(request, {})
    finally:
        sys.path.insert(0, str(installed.site))


@pytest.mark.slow
def test_it_is_installed_without_a_network_and_built_by_processes_that_are_killed_and_by_two_workers(
    place: Place, tmp_path: Path
) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(
        subprocess.run(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    )
    others = [path for path in sys.path if path.endswith("site-packages")]
    (site / "others.pth").write_text("\n".join([str(REPOSITORY.parent), *others]) + "\n")
    install = install_with_pip if find_spec("pip") and find_spec("setuptools") else install_example
    install(site)

    def command(cache: Path, *more: str, before: str = "") -> list[str]:
        start = f"{before}from distil_cache.cli import main; main()"
        return [str(python), "-c", start, "build", *place.options(cache), "--json", *more]

    def built(cache: Path, *more: str) -> Any:
        done = subprocess.run(command(cache, *more), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    whole, killed, shared = (tmp_path / name for name in ("whole", "killed", "shared"))
    first = built(whole)
    for event, pattern in (
        ("os.link", "features/residual-*/about.json"),
        ("os.mkdir", "features/residual-*/shards/*.zarr"),
        ("os.link", "features/residual-*/shards/*.json"),
        ("os.link", "builds/*.json"),
    ):
        dying = signalled_at(event, f"{killed}/{pattern}", signal.SIGKILL)
        done = subprocess.run(command(killed, before=dying), capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert built(killed)["build"] == built(shared, "--workers", "2")["build"] == first["build"]
    assert checksums(killed) == checksums(shared) == checksums(whole)

    def train(run: Path, *more: str, before: str = "") -> int:
        start = f"{before}from distil_cache.cli import main; main()"
        words = ["train", "--cache", str(whole), "--dataset", "d", "--run", str(run), "--method", "residual"]
        words += ["--backbone", "small", "--batch-size", "5", "--device", "cpu", "--epochs", "2"]
        return subprocess.run([str(python), "-c", start, *words, *more], capture_output=True, check=False).returncode

    undisturbed, resumed = tmp_path / "undisturbed", tmp_path / "resumed"
    assert train(undisturbed) == 0
    third_save = f"""
import os, sys
saves = []
def hear(event, arguments):
    if event == "os.rename" and str(arguments[1]).endswith("last.json"):
        saves.append(event)
        if len(saves) == 3:
            os.kill(os.getpid(), {signal.SIGKILL})
sys.addaudithook(hear)
"""
    assert train(resumed, before=third_save) == -signal.SIGKILL
    assert newest(resumed).progress.epoch == 1
    assert train(resumed, "--resume") == 0
    weights, expected = (load_file(best_file(run)) for run in (resumed, undisturbed))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
