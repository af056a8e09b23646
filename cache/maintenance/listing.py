"""The content of a cache as plain dictionaries, which ``cache ls`` renders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import cast

from ...choices import preset_name
from ...errors import UnreachableError, UserError
from ...storage import AnyPath, list_matching
from ..lease import FOLDER as BUILDERS
from ..lease import LEASE_FILE
from ..spec import image_of
from ..store import Cache, FeatureStore
from .roots import read_marker_summaries

_DIGEST = re.compile(r"[0-9a-f]{32,}")
_Item = dict[str, object]


def summary(cache: Cache) -> dict[str, list[_Item]]:
    """List the content of a cache.

    Returns
    -------
    dict
        The lists ``datasets``, ``builds``, ``features``, ``refs`` and ``builders`` (leases, including those of killed
        processes). Builds and features name the ``runs`` that use them, features also the ``builds``. Something that
        cannot be read is listed with its name and a ``problem``.
    """
    refs = _refs(cache)
    runs: dict[object, list[object]] = {}
    for ref in refs:
        runs.setdefault(ref.get("build"), []).append(ref.get("run"))
    builds = [_build(cache, build, runs.get(build, [])) for build in cache.builds().ids()]
    return {
        "datasets": [_dataset(cache, name) for name in cache.datasets().names()],
        "builds": builds,
        "features": [_feature(folder, builds) for folder in cache.feature_folders()],
        "refs": refs,
        "builders": [{"lease": path.stem} for path in list_matching(cache.root / BUILDERS, LEASE_FILE)],
    }


def spec_summary(spec: Mapping[str, object]) -> str:
    """Return a spec as one short line: its settings with long digests cut, models by digest, nested specs by name."""
    parts = []
    for name, value in spec.items():
        if name == "feature" or (name == "algorithm" and value == 1):
            continue
        if isinstance(value, dict) and "feature" in value:
            image = image_of(value)
            perturb, algorithm = image.get("perturb"), image.get("algorithm", 1)
            perturbed = f" (perturb {spec_summary(perturb)})" if isinstance(perturb, dict) else ""
            parts.append(f"from {value['feature']}{perturbed}")
            parts += [] if algorithm == 1 else [f"image algorithm {algorithm}"]
        elif isinstance(value, dict):
            parts.append(
                f"{name} {short_value(value['weights'])}" if "weights" in value else f"{name} ({spec_summary(value)})"
            )
        else:
            parts.append(f"{name} {short_value(preset_name(value) if name == 'preset' else value)}")
    return ", ".join(parts)


def short_value(value: object) -> str:
    """Return a setting in few characters: long digests cut, lists joined with slashes, booleans as yes or no."""
    if isinstance(value, list):
        return "/".join(short_value(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return "none"
    text = str(value)
    return f"{text[:8]}…" if _DIGEST.fullmatch(text) else text


def _dataset(cache: Cache, name: str) -> _Item:
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
    except (UserError, UnreachableError) as error:
        return {"name": name, "problem": str(error)}


def _build(cache: Cache, build: str, runs: list[object]) -> _Item:
    try:
        record = cache.builds().read(build)
    except (UserError, UnreachableError) as error:
        return {"id": build, "problem": str(error)}
    return {
        "id": record.id,
        "dataset": record.dataset,
        "revision": record.revision,
        "created": record.created.isoformat(),
        "origin": record.origin.model_dump() if record.origin else None,
        "adm": cache.builds().adm_name(build) if set(record.features) - {"image"} else None,
        "features": {
            name: {"folder": feature.folder, "shards": len(feature.shards), "splits": list(feature.splits)}
            for name, feature in record.features.items()
        },
        "runs": runs,
    }


def _feature(folder: AnyPath, builds: list[_Item]) -> _Item:
    try:
        store = FeatureStore(folder)
        summaries = read_marker_summaries(store)
        provider, description = store.about and str(store.about.provider), store.description
    except (UserError, UnreachableError) as error:
        return {"folder": folder.name, "problem": str(error)}
    replaced = {shard for summary in summaries.values() for shard in summary.merged}
    markers = [summary for summary in summaries.values() if summary.shard not in replaced]
    rows = sum(marker.rows for marker in markers)
    size = sum(marker.bytes for marker in markers)
    using = [build for build in builds if _uses(build, folder.name)]
    return {
        "folder": folder.name,
        "feature": store.feature,
        "fingerprint": store.fingerprint,
        "description": description,
        "provider": provider,
        "shards": len(markers),
        "rows": rows,
        "bytes": size,
        "bytes_per_sample": round(size / rows) if rows else 0,
        "formats": dict(sorted(Counter(PurePosixPath(marker.data).suffix[1:] for marker in markers).items())),
        "merged_away": {
            "shards": len(summaries) - len(markers),
            "bytes": sum(marker.bytes for marker in summaries.values()) - size,
        },
        "builds": [build["id"] for build in using],
        "runs": sorted({run for build in using for run in cast(list[str], build["runs"])}),
        "words": spec_summary(store.spec),
    }


def _uses(build: _Item, folder: str) -> bool:
    features = cast(dict[str, dict[str, object]], build.get("features", {}))
    return any(feature["folder"] == folder for feature in features.values())


def _refs(cache: Cache) -> list[_Item]:
    try:
        return [ref.model_dump() for ref in cache.builds().refs()]
    except (UserError, UnreachableError) as error:
        return [{"problem": str(error)}]
