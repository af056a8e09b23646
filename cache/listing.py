"""What a cache holds, as plain dictionaries for ``cache ls`` (the command renders them)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import UserError
from .store import Cache, FeatureStore

_DIGEST = re.compile(r"[0-9a-f]{32,}")
Entry = dict[str, object]


def summary(cache: Cache) -> dict[str, list[Entry]]:
    """Return the lists ``datasets``, ``builds``, ``features`` and ``refs``.

    Something that cannot be read is listed with its name and a ``problem``; the others are listed all the same.
    """
    return {
        "datasets": [_dataset(cache, name) for name in cache.datasets().names()],
        "builds": [_build(cache, build) for build in cache.builds().ids()],
        "features": [_feature(folder) for folder in cache.feature_folders()],
        "refs": _refs(cache),
    }


def words(spec: Mapping[str, object]) -> str:
    """Return a spec in one short line: its own settings, long digests cut, models by their digest, specs by name."""
    parts = []
    for name, value in spec.items():
        if name == "feature" or (name == "algorithm" and value == 1):
            continue
        if isinstance(value, dict) and "feature" in value:
            parts.append(f"from {value['feature']}")
        elif isinstance(value, dict):
            parts.append(f"{name} {_short(value['weights'])}" if "weights" in value else f"{name} ({words(value)})")
        else:
            parts.append(f"{name} {_short(value)}")
    return ", ".join(parts)


def _short(value: object) -> str:
    if isinstance(value, list):
        return "/".join(_short(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    text = str(value)
    return f"{text[:8]}…" if _DIGEST.fullmatch(text) else text


def _dataset(cache: Cache, name: str) -> Entry:
    store = cache.datasets()
    try:
        table = store.read(name)
        counts = table.group_by(["split", "label"]).aggregate([([], "count_all")]).sort_by("split").to_pylist()
        splits: dict[str, dict[str, int]] = {}
        for row in counts:
            split = splits.setdefault(row["split"], {"real": 0, "fake": 0})
            split["fake" if row["label"] else "real"] = row["count_all"]
        return {
            "name": name,
            "revision": store.head(name),
            "revisions": len(store.revisions(name)),
            "rows": table.num_rows,
            "samples": len(table.column("key").unique()),
            "splits": splits,
            "rejected": sum(reject.get("reason") != "leaked" for reject in store.rejects(name)),
        }
    except UserError as error:
        return {"name": name, "problem": str(error)}


def _build(cache: Cache, build: str) -> Entry:
    try:
        record = cache.builds().read(build)
    except UserError as error:
        return {"id": build, "problem": str(error)}
    return {
        "id": record.id,
        "dataset": record.dataset,
        "revision": record.revision,
        "created": record.created.isoformat(),
        "features": {
            name: {"folder": feature.folder, "shards": len(feature.shards), "splits": list(feature.splits)}
            for name, feature in record.features.items()
        },
    }


def _feature(folder: Path) -> Entry:
    try:
        store = FeatureStore(folder)
        markers = store.markers()
    except UserError as error:
        return {"folder": folder.name, "problem": str(error)}
    rows = sum(marker.rows for marker in markers)
    size = sum(marker.bytes for marker in markers)
    return {
        "folder": folder.name,
        "feature": store.feature,
        "fingerprint": store.fingerprint,
        "shards": len(markers),
        "rows": rows,
        "bytes": size,
        "bytes_per_sample": round(size / rows) if rows else 0,
        "words": words(store.spec),
    }


def _refs(cache: Cache) -> list[Entry]:
    try:
        return [ref.model_dump() for ref in cache.builds().refs()]
    except UserError as error:
        return [{"problem": str(error)}]
