"""Parquet files with images inside, as the Hub publishes them, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(data: Sequence[bytes | None], name: str = "{}.png") -> pa.Array:
    """Return a column of images with names."""
    return pa.array([{"bytes": one, "path": name.format(row)} for row, one in enumerate(data)], IMAGE)


def class_label(*names: str) -> dict[str, Any]:
    """Return the Hub's description of a column of classes."""
    return {"names": list(names), "_type": "ClassLabel"}


def write_shard(
    path: Path, columns: Mapping[str, Any], features: Mapping[str, Any] | None = None, **options: Any
) -> Path:
    """Write a Parquet file, with the Hub's metadata if there are features; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(dict(columns))
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, **options)
    return path
