"""A folder on either kind of storage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from distil_cache.storage import AnyPath, to_path


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """A path that does not exist yet, on a disk and in an object store in memory."""
    if request.param == "disk":
        return tmp_path / "folder"
    pytest.importorskip("fsspec")
    return to_path(f"memory://{request.module.__name__}-{os.getpid()}/{request.node.name}")
