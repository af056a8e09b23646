"""Fixtures that several test files share."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from counting_store import counted as counted
from hypothesis import HealthCheck, settings
from remote_sources import memory_bucket as memory_bucket
from s3_server import _s3_proxy as _s3_proxy
from s3_server import s3_bucket as s3_bucket
from s3_server import s3_proxy as s3_proxy
from s3_server import s3_server as s3_server
from skip_budget import pytest_configure as pytest_configure

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("DISTIL_CACHE_SHARED", ROOT.parent / "shared"))


# On a busy machine any example may take long.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Without torch, skip the modules that import it. ``make test-no-torch`` runs all others."""
    report = yield
    if report.failed and not HAS_TORCH and "ModuleNotFoundError: No module named 'torch" in report.longreprtext:
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 1, "Skipped: imports torch, which is not installed")
    return report


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    # Two busy threads on a busy machine wait for each other most of the time; commands that tests start are no better.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if HAS_TORCH:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the optional test material (golden vectors, real images); skips where it is absent."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"no test material at {SHARED} (set DISTIL_CACHE_SHARED)")
    return SHARED


@pytest.fixture
def fast_folder() -> Iterator[Path]:
    """A folder in memory where that is possible, for tests that flush a thousand times."""
    from fault_checks import folder_in_memory

    with folder_in_memory() as folder:
        yield folder
