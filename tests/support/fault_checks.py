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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distil_cache.cache.gather import gather
from distil_cache.cache.maintenance.roots import wanted_keys
from distil_cache.cache.maintenance.verify import list_garbage, verify
from distil_cache.cache.shards.format import checksum
from distil_cache.cache.store import Cache
from distil_cache.errors import IntegrityError
from patience import PATIENCE

_KNOWN = (
    r"cache\.json",
    r"datasets/[^/]+/(HEAD-\d{6}\.json|scan\.parquet|[0-9a-f]{16}\.(parquet|rejects\.jsonl|(audit|sources)\.json))",
    r"(builds|refs)/[^/.]+\.json",
    r"builds/[0-9a-f]+\.toml",
    r"builders/[^/]+\.json",
    r"features/[^/]+/(spec\.json|about\.json|log\.jsonl|(shards|removed)/[0-9a-f]{32}\.json|index/\d{6}\.index)",
    r"(builds|datasets/[^/]+)/(removed|damaged)/[^/]+",
    r"features/[^/]+/damaged/.+",
)


def told_by(script: str, what: str, folder: Path, form: str = "zarr") -> list[dict[str, Any]]:
    """Run a script beside this file in a process of its own, and return what it tells of each try."""
    command = [sys.executable, str(Path(__file__).parent / script), what, str(folder), form]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
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


def snapshot(root: Path, *, damaged: bool = False) -> dict[str, Any]:
    """Return everything that builds made, times and hosts left out. Equal snapshots are equal caches, to the bit.

    damaged : leave out the rows that cannot be read.
    """
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
                list(datasets.rejects(name, revision)),
                accounts.as_json().decode() if (accounts := datasets.sources(name, revision)) else None,
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
        "rows": sound_rows(root) if damaged else rows(root),
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
    explained = [path.relative_to(root).as_posix() for path in list_garbage(cache)]
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


def needs_of(root: Path) -> dict[str, Any]:
    """Return what must not be missing from a sound cache, as plain values.

    Needed are the references, the heads, the builds that runs or heads name with their tables and rows, the leases, and
    all rows of the features that these name.
    """
    cache = Cache.open(root)
    datasets, builds = cache.datasets(), cache.builds()
    heads = {name: datasets.head(name) for name in datasets.names()}
    used = {ref.build for ref in builds.refs()}
    records = [one for one in builds.all() if one.id in used or heads[one.dataset] == one.revision]
    leases = {path.name: json.loads(path.read_text()) for path in sorted((root / "builders").glob("*.json"))}
    leased = {folder for lease in leases.values() for folder in lease["features"]}
    wanted = {
        f"{feature.folder} {key}"
        for record in records
        for feature in record.features.values()
        for key in wanted_keys(datasets, record, feature)
    }
    held = sound_rows(root)
    revisions = {*heads.items(), *((record.dataset, record.revision) for record in records)}
    return {
        "heads": heads,
        "refs": [[ref.run, ref.build] for ref in builds.refs()],
        "builds": {record.id: record.model_dump(mode="json") for record in records},
        "tables": {f"{name} {revision}": table_digest(root, name, revision) for name, revision in sorted(revisions)},
        "rows": {name: value for name, value in held.items() if name in wanted or name.split()[0] in leased},
        "leases": sorted(leases),
    }


def sound_rows(root: Path) -> dict[str, str]:
    """Return the rows as :func:`rows` does, of every shard that is what its marker says, and of no other."""
    found = {}
    for store in Cache.open(root).features():
        for marker in store.markers():
            try:
                sound = checksum(store.shards / marker.data) == (marker.bytes, marker.sha256)
            except (IntegrityError, OSError):
                continue
            for key, row in zip(marker.keys, store.read(marker.shard) if sound else (), strict=sound):
                found[f"{store.folder.name} {key}"] = hashlib.sha256(row.tobytes()).hexdigest()
    return found


def table_digest(root: Path, name: str, revision: str) -> str:
    """Return the SHA-256 of what stands in a dataset's table."""
    table = Cache.open(root).datasets().read(name, revision)
    return hashlib.sha256(json.dumps(table.to_pylist()).encode()).hexdigest()


def lacking(root: Path, needs: dict[str, Any]) -> list[str]:
    """Say what of :func:`needs_of` is missing, cannot be read, or is not what it was."""
    found: list[str] = []

    def look(what: str, work: Callable[[], Any], expected: Any) -> Any:
        try:
            value = work()
        except Exception as error:
            found.append(f"{what}: {type(error).__name__}: {error}")
            return None
        if expected is not None and value != expected:
            found.append(f"{what} is not what it was")
        return value

    cache = look("cache", lambda: Cache.open(root), None)
    if cache is None:
        return found
    datasets, builds = cache.datasets(), cache.builds()
    for name in look("datasets", datasets.names, None) or ():
        look(f"newest revision of {name}", lambda name=name: datasets.read(name), None)
    for name, revision in needs["heads"].items():
        look(f"head of {name}", lambda name=name: datasets.head(name), revision)
    for build, record in needs["builds"].items():
        look(f"build {build}", lambda build=build: builds.read(build).model_dump(mode="json"), record)
    for name, digest in needs["tables"].items():
        look(f"table {name}", lambda name=name: table_digest(root, *name.split()), digest)
    refs = look("references", lambda: [[ref.run, ref.build] for ref in builds.refs()], None) or []
    for run, build in refs:
        look(f"build of run {run}", lambda build=build: builds.read(build), None)
    found += [f"run {run} is not known any more" for run, build in needs["refs"] if [run, build] not in refs]
    leases = [path.name for path in (root / "builders").glob("*.json")]
    found += [f"lease {lease} is gone" for lease in needs["leases"] if lease not in leases]
    held = look("rows", lambda: sound_rows(root), None) or {}
    gone = Counter(name.split()[0] for name, value in needs["rows"].items() if held.get(name) != value)
    return found + [f"{count} needed rows of {folder}" for folder, count in sorted(gone.items())]


def contents(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Return mode, time in nanoseconds and SHA-256 ('' of a folder) of all that lies below a folder, by path."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = f"{place}/{name}"
            status = os.lstat(path)
            digest = hashlib.sha256(Path(path).read_bytes()).hexdigest() if name in files else ""
            found[path[len(str(folder)) + 1 :]] = status.st_mode, status.st_mtime_ns, digest
    return dict(sorted(found.items()))
