"""Audits of these tests see thumbnails in place of a network's features, which need torch and seconds."""

from __future__ import annotations

import pytest
from distil_cache.pipeline.audit import embedding


@pytest.fixture(autouse=True)
def _thumbnails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding, "_features", lambda squares: None)
