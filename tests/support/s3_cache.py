"""A small cache on S3 for tests: two features, built as a real builder does it, and what lies there."""

from __future__ import annotations

from typing import Any

from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.store import FeatureStore
from distil_cache.storage import AnyPath
from maintained_cache import SPECS
from maintained_cache import build as build_cache

TWO = {name: SPECS[name] for name in ("image", "eps")}


def build(root: AnyPath, split_of: dict[str, str], **options: Any) -> tuple[BuildRecord, dict[str, int]]:
    """Build two features, which is as much as these tests need: every object costs several requests."""
    return build_cache(root, split_of, specs=TWO, **options)


def data_of(store: FeatureStore) -> list[str]:
    """Names of the data below ``shards``, with or without a marker."""
    return sorted(path.name for path in store.shards.iterdir() if path.suffix != ".json")
