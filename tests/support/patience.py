"""Waiting for what another thread or process does. How long it takes is nobody's finding: machines are busy."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 600.0
"""Seconds after which something is stuck."""


def until(happened: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait until something has happened. process : who does it, so that it must not end before."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "waited too long"
        assert process is None or process.poll() is None, "the process ended early"
        time.sleep(0.005)
