"""Export a build as a joined, shuffled training set: webdataset tars with each sample's features side by side.

The order depends only on the seed, the split and the samples' keys, so the same samples and seed give the same bytes
whatever the shards of the cache. Rows are read in blocks of neighbouring keys (shards are cut in that order), and a few
randomly drawn blocks are shuffled together, so memory is bounded. Hashes decide the order rather than a random number
generator, whose stream may change with a library's version.

Everything is written to ``OUT.partial``, which is renamed to ``OUT`` at the end. A killed process leaves no
``OUT``, and the next export takes its ``OUT.partial`` over.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...choices import SAMPLES_PER_TAR
from ...errors import ChoiceError, IntegrityError, UsageError, UserError
from ...progress import Progress, Silent
from ...storage import is_inside
from ...storage.atomic import fsync_folder, fsync_tree, make_folder
from ...storage.locks import FolderLock
from ..describe import describe
from ..gather import gather
from ..lease import lease
from ..records.builds import BuildRecord
from ..shards.format import Rows
from ..store import Cache, FeatureStore
from .readme import FeatureFacts, readme, specs_json

BLOCK_ROWS = 64
POOL_BLOCKS = 4
"""Blocks of neighbouring keys in memory at once."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""Names of splits and features that are safe in file names."""

_OWN_FILE = re.compile(r"[A-Za-z0-9_-]+\.tar|specs\.json|README\.md|SHA256SUMS")
"""Names of the files of an export."""

_COLUMNS = ("key", "label", "split", "generator", "family", "group")


class Occurrence(NamedTuple):
    """One row of a dataset, and the unique base name of its members in the tars of its split."""

    name: str
    key: str
    label: int
    split: str
    generator: str
    family: str
    group: str


@dataclass
class _Split:
    """What is exported of one split: its rows in the order of their keys, and its features."""

    name: str
    rows: list[Occurrence]
    features: list[str]
    tars: list[str] = field(default_factory=list)


def export_build(
    cache: Cache,
    out: Path,
    *,
    build: str | None = None,
    dataset: str | None = None,
    features: Sequence[str] | None = None,
    splits: Sequence[str] | None = None,
    samples_per_shard: int = SAMPLES_PER_TAR,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write a build as tars with a README, ``specs.json`` and ``SHA256SUMS`` to a new folder.

    Parameters
    ----------
    cache
        The cache.
    out
        The new folder, outside the cache.
    build
        Id of the build record.
    dataset
        In place of ``build``: a dataset whose newest revision has exactly one suitable build.
    features
        Names; by default each split gets all features that the build has for it.
    splits
        Names; all by default.
    samples_per_shard
        Samples per tar.
    seed
        Decides the order of the samples.
    progress
        Receives the stage ``export``, in samples.

    Returns
    -------
    dict
        ``dataset``, ``revision``, ``build``, ``seed``, ``samples_per_shard``, ``splits`` (for each its ``samples``,
        ``features`` and ``tars``), ``out`` and ``bytes``.

    Raises
    ------
    UserError
        If the cache lacks something, ``out`` is not empty, or it cannot be written.
    UsageError
        If the arguments do not fit together.
    """
    progress = progress or Silent()
    if samples_per_shard < 1:
        raise UsageError(f"--samples-per-shard {samples_per_shard}: must be at least 1.")
    record = _choose(cache, build, dataset, features)
    partial, lock = _reserve(cache, out)
    finished = False
    try:
        with lease(cache.root, "export", [feature.folder for feature in record.features.values()]):
            stores = {name: cache.open_feature(built.folder) for name, built in record.features.items()}
            parts = _parts(cache, record, stores, features, splits)
            progress.start("export", sum(len(part.rows) for part in parts))
            facts = _write_tars(partial, parts, stores, samples_per_shard, seed, progress)
        about: dict[str, Any] = {
            "dataset": record.dataset, "revision": record.revision, "build": record.id, "seed": seed,
            "samples_per_shard": samples_per_shard,
            "splits": {
                part.name: {"samples": len(part.rows), "features": part.features, "tars": part.tars} for part in parts
            },
        }  # fmt: skip
        (partial / "specs.json").write_text(specs_json(about, facts), encoding="utf-8")
        (partial / "README.md").write_text(readme(about, facts), encoding="utf-8")
        _write_sums(partial)
        fsync_tree(partial)
        finished = True
    except OSError as error:
        raise UserError(f"{partial}: cannot be written ({error.strerror or error}).") from error
    finally:
        if not finished:
            shutil.rmtree(partial, ignore_errors=True)
            lock.close()
    _move(partial, out)
    lock.close()
    return {**about, "out": str(out), "bytes": sum(path.stat().st_size for path in out.iterdir())}


def _choose(cache: Cache, build: str | None, dataset: str | None, features: Sequence[str] | None) -> BuildRecord:
    """Return the named record, or the only suitable one of the dataset's newest revision."""
    if build is not None:
        named = cache.builds().read(build)
        if dataset not in (None, named.dataset):
            raise UsageError(f"--build {build}: is a build of {named.dataset}, not of {dataset}.")
        return named
    if dataset is None:
        raise UsageError("Give either --build ID or --dataset NAME, or both, to say what to export.")
    revision = cache.datasets().head(dataset)
    found = [
        record
        for record in cache.builds().find(dataset)
        if record.revision == revision and set(features or ()) <= set(record.features)
    ]
    if not found:
        asked = f" with {', '.join(features)}" if features else ""
        raise UserError(f"{dataset}: its newest revision {revision} has no build{asked}. Run: distil-cache build")
    if len(found) > 1:
        raise ChoiceError(f"{dataset}: has several builds. Choose one:", describe(cache, found))
    return found[0]


def _reserve(cache: Cache, out: Path) -> tuple[Path, FolderLock]:
    """Create and lock the folder to write to, or take over that of a killed export.

    ``out`` must be absent or empty, and outside the cache.
    """
    partial = out.with_name(f"{out.name}.partial")
    if is_inside(out, cache.root):
        raise UsageError(f"--out {out}: is inside the cache. Give a folder elsewhere.")
    if out.is_symlink() and not out.exists():
        raise UserError(f"{out}: is a link that leads nowhere. Give a new folder, or delete it.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is not empty. Give a new folder, or delete this one.")
    make_folder(out.absolute().parent)
    left = False
    try:
        partial.mkdir()
    except FileExistsError:
        left = True
    except OSError as error:
        raise UserError(f"{partial}: cannot create the folder ({error.strerror}).") from error
    if left and (partial.is_symlink() or not partial.is_dir()):
        raise UserError(f"{partial}: is in the way, and is not what an export leaves. Delete or rename it.")
    lock = FolderLock(partial, f"{partial}: another export is writing it. Wait until it has ended.")
    if left and not lock.locked:
        raise UserError(
            f"{partial}: exists already: another export is running or was killed. If none is running, delete it."
        )
    try:
        _clear(partial)
    except BaseException:
        lock.close()
        raise
    return partial, lock


def _clear(partial: Path) -> None:
    """Delete what a killed export left. Raises UserError, with nothing deleted, if other files are there."""
    found = list(partial.iterdir())
    others = [path.name for path in found if not _OWN_FILE.fullmatch(path.name) or path.is_symlink() or path.is_dir()]
    if others:
        raise UserError(f"{partial}: has files that no export wrote ({others[0]}). Delete or rename it.")
    for path in found:
        path.unlink()


def _parts(
    cache: Cache,
    record: BuildRecord,
    stores: Mapping[str, FeatureStore],
    features: Sequence[str] | None,
    splits: Sequence[str] | None,
) -> list[_Split]:
    """Return what to export of each split, after checking that the cache holds all of it."""
    occurrences = _occurrences(cache, record)
    invalid = [name for name in (*occurrences, *record.features) if not _NAME.fullmatch(name)]
    if invalid:
        raise IntegrityError(
            f"build {record.id}: {invalid[0]!r} is not a valid name of a split or feature, so nothing is exported."
        )
    names = list(splits) if splits else sorted(occurrences)
    parts = []
    for name in dict.fromkeys(names):
        if name not in occurrences:
            raise UserError(f"build {record.id}: has no split {name!r}, only {', '.join(sorted(occurrences))}.")
        available = [feature for feature, built in record.features.items() if name in built.splits]
        for feature in features or ():
            if feature not in available:
                raise UserError(
                    f"build {record.id}: has no {feature} for split {name}, only {', '.join(available) or 'none'}."
                )
        part = _Split(name, occurrences[name], list(dict.fromkeys(features or available)))
        keys = [row.key for row in part.rows]
        for feature in part.features:
            lacking = int((stores[feature].index().locate(keys)[0] < 0).sum())
            if lacking:
                raise UserError(
                    f"build {record.id}: the cache lacks {feature} for {lacking:,} of {len(keys):,} samples of split "
                    f"{name}. Run the build again, or check: distil-cache cache verify {cache.root}"
                )
        parts.append(part)
    return parts


def _occurrences(cache: Cache, record: BuildRecord) -> dict[str, list[Occurrence]]:
    """Return split -> its rows, sorted by key. From the second on, rows with the same key get a numbered name."""
    table = cache.datasets().read(record.dataset, record.revision)
    found: dict[str, list[Occurrence]] = {}
    before: dict[tuple[str, str], int] = {}
    for row in sorted(zip(*(table.column(name).to_pylist() for name in _COLUMNS), strict=True)):
        key, split = row[0], row[2]
        repeats = before.get((key, split), 0)
        before[key, split] = repeats + 1
        found.setdefault(split, []).append(Occurrence(f"{key}-{repeats}" if repeats else key, *row))
    return found


def group_by_split(rows: Sequence[Occurrence], seed: int) -> Iterator[list[Occurrence]]:
    """Yield groups of rows that are read together, in the order in which they are written; each row occurs once.

    Parameters
    ----------
    rows
        The rows of one split, sorted by key.
    seed
        Decides the order.
    """
    blocks = [rows[start : start + BLOCK_ROWS] for start in range(0, len(rows), BLOCK_ROWS)]
    drawn = sorted(blocks, key=lambda block: _draw(seed, "block", block[0].split, block[0].name))
    for start in range(0, len(drawn), POOL_BLOCKS):
        together = [row for block in drawn[start : start + POOL_BLOCKS] for row in block]
        yield sorted(together, key=lambda row: _draw(seed, "row", row.split, row.name))


def _draw(seed: int, *what: str) -> bytes:
    return hashlib.sha256("\n".join((str(seed), *what)).encode()).digest()


def _write_tars(
    folder: Path,
    parts: Sequence[_Split],
    stores: Mapping[str, FeatureStore],
    samples_per_shard: int,
    seed: int,
    progress: Progress,
) -> dict[str, FeatureFacts]:
    """Write the tars of all splits and return the facts of each feature."""
    facts: dict[str, FeatureFacts] = {}
    for part in parts:
        samples = _samples(part, stores, seed, facts)
        for start in range(0, len(part.rows), samples_per_shard):
            name = f"{part.name}-{start // samples_per_shard:06d}.tar"
            count = min(samples_per_shard, len(part.rows) - start)
            with tarfile.open(folder / name, "x", format=tarfile.USTAR_FORMAT) as tar:
                for _ in range(count):
                    for member, data in next(samples):
                        info = tarfile.TarInfo(member)  # owner 0 and time 0 by default: same samples, same bytes
                        info.size = len(data)
                        tar.addfile(info, io.BytesIO(data))
                    progress.advance("export", 1)
            part.tars.append(name)
    return facts


def _samples(
    part: _Split, stores: Mapping[str, FeatureStore], seed: int, facts: dict[str, FeatureFacts]
) -> Iterator[list[tuple[str, bytes]]]:
    """Yield each sample's members, (name, bytes), in the order in which they are written."""
    for pool in group_by_split(part.rows, seed):
        values = {feature: gather(stores[feature], [row.key for row in pool]) for feature in part.features}
        for feature, rows in values.items():
            facts.setdefault(feature, FeatureFacts(stores[feature])).update(rows)
        for number, row in enumerate(pool):
            members = [(f"{row.name}.{feature}.npy", npy_bytes(rows[number])) for feature, rows in values.items()]
            fields = {name: getattr(row, name) for name in _COLUMNS}
            yield [*members, (f"{row.name}.json", json.dumps(fields, sort_keys=True, ensure_ascii=False).encode())]


def npy_bytes(row: Rows) -> bytes:
    """Return an array as a little-endian .npy file of format 1.0."""
    buffer = io.BytesIO()
    np.lib.format.write_array(
        buffer, np.ascontiguousarray(row, row.dtype.newbyteorder("<")), version=(1, 0), allow_pickle=False
    )
    return buffer.getvalue()


def _write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` over all files, in the format of ``sha256sum``."""
    lines = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _move(partial: Path, out: Path) -> None:
    """Rename the finished folder; only an empty folder is replaced."""
    try:
        os.rename(partial, out)  # noqa: PTH104  (Path.rename does not document folders)
    except OSError as error:
        why = "another process has written to it" if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else error.strerror
        raise UserError(f"{out}: cannot be created ({why}). The finished export is {partial}.") from error
    fsync_folder(out.absolute().parent)
