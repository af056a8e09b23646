"""Every command that computes on a CPU keeps freed memory in its process, whatever the environment says."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from distil_cache import __version__
from distil_cache.cache.store import Cache
from distil_cache.inference.bench.run import BenchConfig, run_bench
from distil_cache.inference.predict import run_predict
from distil_cache.models import device
from distil_cache.pipeline.importing.import_config import ImportConfig
from distil_cache.pipeline.importing.importer import run_import
from distil_cache.progress import Silent
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.evaluate import run_evaluation
from distil_cache.train.sweep import run_sweep
from loose_files import write_distildire
from predict_runs import build, detector
from small_models import write_adm, write_images, write_teacher

TIMES, BYTES = 20, 16 << 20
GIVEN_BACK = f"""
import resource
from pathlib import Path
import torch
from distil_cache.models.device import choose_device, keep_freed_memory

def held():
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()

cpu = choose_device("cpu")
if {{keep}}:
    keep_freed_memory(cpu)
given_back = 0
for _ in range({TIMES}):
    tensor = torch.ones({BYTES // 4})
    before = held()
    del tensor
    given_back += before - held()
print(given_back)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")


def given_back(keep: bool) -> int:
    """Bytes of addresses that freeing the same tensor again and again gives back to the kernel, under the setting of Dask's nanny."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    program = GIVEN_BACK.replace("{keep}", str(keep))
    return int(subprocess.check_output([sys.executable, "-c", program], env=environment, text=True))


@glibc
def test_memory_that_was_freed_is_used_again_where_a_process_asks_for_it_and_choosing_a_device_does_not() -> None:
    pytest.importorskip("torch")
    assert given_back(keep=True) == 0
    assert given_back(keep=False) >= TIMES * BYTES


@pytest.fixture
def set_options(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The options of glibc's allocator that are set, in order."""
    options: list[int] = []
    library = SimpleNamespace(mallopt=lambda option, value: options.append(option))
    monkeypatch.setattr(device, "ctypes", SimpleNamespace(CDLL=lambda name: library))
    return options


@glibc
def test_every_command_that_computes_on_a_cpu_keeps_freed_memory(tmp_path: Path, set_options: list[int]) -> None:
    write_adm(tmp_path / "adm.safetensors")
    images = write_images(tmp_path / "images", {"train": 4, "test": 2})
    loose = write_distildire(tmp_path / "loose", {"train": 1})
    run, cache = tmp_path / "eps", tmp_path / "cache"
    settings = {"dataset": "d", "method": "eps", "backbone": "small", "epochs": 1, "batch_size": 4}
    imported = ImportConfig.checked(
        sources=(loose,), cache=tmp_path / "imported", dataset="d", kind="distildire", teacher="small",
        teacher_weights=write_teacher(tmp_path / "teacher.safetensors"), device="cpu",
    )  # fmt: skip
    commands: dict[str, Callable[[], object]] = {
        "build": lambda: build(tmp_path, images, "image,eps"),
        "import": lambda: run_import(imported, Silent()),
        "train": lambda: run_training(TrainConfig.checked(**settings), cache, run, device="cpu"),
        "train --sweep": lambda: run_sweep(settings, {"seed": ["1"]}, cache, tmp_path / "sweep", device="cpu"),
        "evaluate": lambda: run_evaluation(run, cache, "d", device="cpu"),
        "predict": lambda: run_predict([str(images)], lambda: detector(tmp_path, "eps"), Silent()),
        "bench": lambda: run_bench(BenchConfig("demo", backbone="small", timed=False, device="cpu")),
    }
    for name, command in commands.items():
        set_options.clear()
        command()
        assert set(set_options) == {-1, -3}, name
    set_options.clear()
    detector(tmp_path, "eps")
    assert set_options == [], "a detector is for other people's processes"


@glibc
def test_a_worker_on_a_cpu_keeps_freed_memory(tmp_path: Path, set_options: list[int]) -> None:
    pytest.importorskip("distributed")
    from distil_cache.pipeline.cluster.messages import OpenBuild
    from distil_cache.pipeline.cluster.worker import open_build

    write_adm(tmp_path / "adm.safetensors")
    build(tmp_path, write_images(tmp_path / "images", {"train": 1}), "image")
    ((image,), adm) = Cache.open(tmp_path / "cache").features(), str(tmp_path / "adm.safetensors")
    (tmp_path / "cache" / "builders" / "x.json").write_text("{}")
    config = {"sources": [str(tmp_path / "images")], "cache": str(tmp_path / "cache"), "dataset": "d", "adm": adm}
    fingerprints = {"image": image.fingerprint}
    request = OpenBuild(
        version=__version__, config=config | {"device": "cpu"}, fingerprints=fingerprints, lease="x.json", pictures=None
    )
    set_options.clear()
    open_build(request, {})
    assert set(set_options) == {-1, -3}
