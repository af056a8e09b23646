"""Choices that options and configurations share are those of the registries that serve them."""

from __future__ import annotations

from typing import get_args

from distil_cache.choices import BENCH_METHODS, LAYOUT_NAMES, Preset
from distil_cache.pipeline.sources.archives.tar import WEBDATASET
from distil_cache.pipeline.sources.archives.zip import ZIP
from distil_cache.pipeline.sources.folders.layouts import LAYOUTS
from distil_cache.pipeline.sources.folders.metadata import METADATA
from distil_cache.pipeline.sources.tables.table import PARQUET, TABLE
from distil_cache.train.methods.registry import METHODS, PRESETS


def test_every_layout_can_be_named_on_the_command_line() -> None:
    assert (*LAYOUTS, METADATA, TABLE, PARQUET, WEBDATASET, ZIP) == LAYOUT_NAMES


def test_every_method_has_a_row_in_the_cost_table_and_every_preset_a_method() -> None:
    assert {*BENCH_METHODS, "aeroblade"} == set(METHODS), "bench has no autoencoder"
    assert {preset for _, preset in PRESETS} == set(get_args(Preset))
