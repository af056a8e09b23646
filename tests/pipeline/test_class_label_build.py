"""Builds and predictions with a class-conditional ADM, whose classes are chosen with --class-label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from distil_cache.cache.gather import gather
from distil_cache.cache.store import Cache, FeatureStore
from distil_cache.errors import UsageError, UserError
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.walk import to_signal
from distil_cache.inference import Detector
from distil_cache.inference.bench.run import BenchConfig, run_bench
from distil_cache.models.class_label import ClassLabel
from distil_cache.models.diffusion.checkpoints import load_adm
from distil_cache.models.diffusion.noise_schedule import respace
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.execution.networks import placed
from distil_cache.progress import Silent
from plain_extract import extract
from predict_runs import evaluated, train
from recorded_progress import Recorded
from small_models import CONFIG, STEPS, write_adm, write_images
from torch import Tensor

CONDITIONAL = CONFIG.model_copy(update={"class_cond": True})
LABEL = "random:5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional ADM, an unconditional one, images, and a cache of a build with drawn classes."""
    folder = tmp_path_factory.mktemp("classes")
    write_adm(folder / "adm.safetensors", config=CONDITIONAL)
    write_adm(folder / "plain.safetensors")
    write_images(folder / "images", {"train": 10, "test": 4})
    build(folder, "cache", class_label=LABEL)
    return folder


def build(folder: Path, cache: str, **options: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "adm": str(folder / "adm.safetensors"), "features": ("image,eps,dire",), "batch_size": 4, "sources": (folder / "images",)
    }  # fmt: skip
    config = BuildConfig.checked(
        cache=folder / cache, dataset="d", steps=STEPS, device="cpu", **{**settings, **options}
    )
    return run_build(config, Silent())


def rows_of(cache: Path, feature: str) -> dict[str, np.ndarray]:
    (store,) = [found for found in Cache.open(cache).features() if found.feature == feature]
    return stored_rows(store)


def stored_rows(store: FeatureStore) -> dict[str, np.ndarray]:
    keys = [key for marker in store.markers() for key in marker.keys]
    return dict(zip(keys, gather(store, keys), strict=True))


def told(model: Any, classes: list[int]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: model(x, t, torch.tensor(classes))


def test_every_call_of_an_image_is_told_its_own_class(folder: Path) -> None:
    images, eps, dire = (rows_of(folder / "cache", name) for name in ("image", "eps", "dire"))
    keys = sorted(images)[:6]
    model = placed(load_adm(folder / "adm.safetensors", class_label="0").model, "fp32", torch.device("cpu"))
    x = to_signal(torch.from_numpy(np.stack([images[key] for key in keys])))
    classes = ClassLabel.parse(LABEL).classes(keys)
    assert len(set(classes)) > 1
    with torch.inference_mode():
        right = extract(told(model, classes), x, respace(STEPS), {"eps", "dire"})
        wrong = extract(told(model, classes[1:] + classes[:1]), x, respace(STEPS), {"eps", "dire"})
    assert right.eps is not None
    assert wrong.eps is not None
    assert right.dire is not None
    stored = torch.from_numpy(np.stack([eps[key] for key in keys])).float()
    scale = float(right.eps.norm())
    assert float((stored - right.eps).norm()) / scale < 3e-4
    assert float((stored - wrong.eps).norm()) / scale > 3e-3
    differing = np.stack([dire[key] for key in keys]).astype(int) - right.dire.numpy()
    assert (np.abs(differing) > 0).mean() < 1e-2


def test_order_batches_and_shards_decide_no_class(folder: Path) -> None:
    build(folder, "other", class_label=LABEL, batch_size=3, shard_size=5, features=("image,eps",))
    one, other = rows_of(folder / "cache", "eps"), rows_of(folder / "other", "eps")
    assert one.keys() == other.keys()
    for key, row in one.items():
        np.testing.assert_allclose(row.astype(float), other[key].astype(float), atol=4e-3)
    build(folder, "fixed", class_label="7", features=("image,eps",))
    fixed = rows_of(folder / "fixed", "eps")
    assert max(float(np.abs(row.astype(float) - fixed[key].astype(float)).max()) for key, row in one.items()) > 2e-2


def test_the_choice_is_part_of_the_fingerprint(folder: Path) -> None:
    def fingerprint(label: str) -> str:
        return str(
            build(folder, "fingerprints", class_label=label, features=("image,eps",))["features"]["eps"]["fingerprint"]
        )

    assert len({fingerprint(label) for label in (LABEL, "random:6", "5")}) == 3
    assert fingerprint("random:05") == fingerprint(LABEL)


def test_without_a_choice_the_spec_is_that_of_earlier_versions() -> None:
    identity = AdmIdentity.of("0" * 64, CONFIG)
    assert "class_label" not in identity.canonical()
    assert AdmIdentity.of("0" * 64, CONDITIONAL, "random:01").canonical()["class_label"] == "random:1"


def test_a_class_conditional_model_needs_a_choice_and_another_one_takes_none(folder: Path) -> None:
    with pytest.raises(UserError, match=r"adm\.safetensors: is class-conditional.*--class-label random:SEED"):
        build(folder, "refused")
    with pytest.raises(UsageError, match=r"--class-label 3: .*plain\.safetensors is not class-conditional"):
        build(folder, "refused", adm=str(folder / "plain.safetensors"), class_label="3")
    with pytest.raises(UsageError, match=r"--class-label 1000: give random:SEED"):
        build(folder, "refused", class_label="1000")
    assert not (folder / "refused").exists()


def test_a_prediction_has_the_scores_of_an_evaluation(folder: Path) -> None:
    train(folder, "distildire")
    rows = evaluated(folder / "distildire")
    options: dict[str, Any] = {"adm": str(folder / "adm.safetensors"), "device": "cpu", "batch_size": 3}
    found = Detector.from_run(folder / "distildire", **options).predict([row["file"] for row in reversed(rows)])
    logits = [row["logit"] for row in reversed(rows)]
    assert np.std(logits) > 1e-3
    np.testing.assert_allclose([one.logit for one in found], logits, atol=1e-3)
    Detector.from_run(folder / "distildire", **options, class_label="random:05")
    with pytest.raises(UsageError, match=r"--class-label 3: the run's features were made with random:5"):
        Detector.from_run(folder / "distildire", **options, class_label="3")


def test_a_benchmark_runs_with_a_choice_of_classes(folder: Path) -> None:
    options: dict[str, Any] = {
        "adm": str(folder / "adm.safetensors"), "methods": ("eps",), "backbone": "small", "rounds": 1, "device": "cpu"
    }  # fmt: skip
    with pytest.raises(UserError, match="is class-conditional"):
        run_bench(BenchConfig(**options, timed=False))
    for timed in (False, True):
        costs = run_bench(BenchConfig(**options, class_label="random:0", timed=timed), Recorded())
        assert costs["rows"][0]["adm_calls"] == 1
