"""Arrays on disk that a test can write: runs of a few records, blocks of some more, and nothing left in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from distil_cache.storage import disk_array, lazy_sequence


@contextmanager
def tiny_runs() -> Iterator[None]:
    """Write even the smallest array to disk, sort a few records at a time, and read some more."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("SPOOL_BYTES", 1), ("RUN_BYTES", 200), ("BLOCK_BYTES", 200)):
            patch.setattr(disk_array, name, value)
        patch.setattr(lazy_sequence, "ITEMS", 3)
        yield
