"""What must be true of a cache after a fault: what it holds, as plain values, and that no file in it is unexplained."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distil_cache.cache.gather import gather
from distil_cache.cache.store import Cache
from distil_cache.cache.verify import garbage, verify

_KNOWN = (
    r"cache\.json",
    r"datasets/[^/]+/(HEAD-\d{6}\.json|scan\.parquet|[0-9a-f]{16}\.(parquet|rejects\.jsonl|audit\.json))",
    r"(builds|refs)/[^/.]+\.json",
    r"builders/[^/]+\.json",
    r"features/[^/]+/(spec\.json|log\.jsonl|(shards|removed)/[0-9a-f]{32}\.json|index/\d{6}\.index)",
    r"(builds|datasets/[^/]+)/(removed|damaged)/[^/]+",
    r"features/[^/]+/damaged/.+",
)


def told_by(script: str, what: str, folder: Path, form: str = "zarr") -> list[dict[str, Any]]:
    """Run a script beside this file in a process of its own, and return what it tells of each try."""
    command = [sys.executable, str(Path(__file__).parent / script), what, str(folder), form]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    assert found
    return found


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """A folder that lies in memory where that is possible: a thousand flushes to a busy disk take minutes."""
    memory = Path("/dev/shm")
    folder = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(folder)


def snapshot(root: Path) -> dict[str, Any]:
    """Return everything that builds made, times and hosts left out. Equal snapshots are equal caches, to the bit."""
    cache = Cache.open(root)
    datasets, builds = cache.datasets(), cache.builds()
    return {
        "heads": {
            name: [path.read_text() for path in sorted((root / "datasets" / name).glob("HEAD-*.json"))]
            for name in datasets.names()
        },
        "tables": {
            f"{name} {revision}": [
                datasets.read(name, revision).to_pylist(),
                datasets.rejects(name, revision),
                audit.as_json().decode() if (audit := datasets.audit(name, revision)) else None,
            ]
            for name in datasets.names()
            for revision in datasets.revisions(name)
        },
        "builds": [builds.read(build).model_dump(mode="json", exclude={"created"}) for build in builds.ids()],
        "refs": [ref.model_dump() for ref in builds.refs()],
        "shards": {
            f"{store.feature} {marker.shard}": [marker.sha256, list(marker.keys), dict(marker.rejected)]
            for store in cache.features()
            for marker in store.markers()
        },
        "rows": rows(root),
    }


def rows(root: Path) -> dict[str, str]:
    """Return the SHA-256 of each row's bytes by feature folder and key, read through the index."""
    found = {}
    for store in Cache.open(root).features():
        keys = sorted({key for marker in store.markers() for key in marker.keys})
        for key, row in zip(keys, gather(store, keys) if keys else (), strict=True):
            found[f"{store.folder.name} {key}"] = hashlib.sha256(row.tobytes()).hexdigest()
    return found


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return one line for each part in which two snapshots differ; they may have been through JSON."""
    return [f"{part} differ" for part in expected if found[part] != expected[part]]


def unexplained(root: Path) -> list[str]:
    """Return the files that belong to nothing: neither to a known place, nor to a shard, nor to what counts as garbage."""
    cache = Cache.open(root)
    explained = [path.relative_to(root).as_posix() for path in garbage(cache)]
    explained += [
        (store.shards / marker.data).relative_to(root).as_posix()
        for store in cache.features()
        for marker in store.markers()
    ]
    files = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return [
        name
        for name in files
        if not any(re.fullmatch(pattern, name) for pattern in _KNOWN)
        and not any(name == place or name.startswith(f"{place}/") for place in explained)
    ]


def problems(root: Path) -> list[str]:
    """Return what ``verify`` finds, and files that nothing explains."""
    found = [f"{problem.feature} {problem.shard}: {problem.what}" for problem in verify(Cache.open(root))]
    return found + [f"{name}: belongs to nothing" for name in unexplained(root)]
