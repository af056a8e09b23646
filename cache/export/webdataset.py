"""A build as a joined, shuffled training set of webdataset tars: every sample's features side by side, for any reader.

The order follows from the seed, the split and the samples' keys alone, so the same samples and seed give the same bytes
whatever the shards of the cache look like. Rows are read in blocks of neighbouring keys (which is how shards are cut), and
a few blocks drawn at random are shuffled together, so memory stays bounded. Hashes give the order, not a generator of
random numbers whose stream another version of a library might change.

Everything is written to ``OUT.partial`` and moved to ``OUT`` at the end. A process that is killed leaves no ``OUT``.
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
from ...errors import IntegrityError, UsageError, UserError
from ...progress import Progress, Silent
from ...storage.atomic import fsync_folder, fsync_tree, make_folder
from ..gather import gather
from ..lease import lease
from ..records.builds import BuildRecord
from ..shards.format import Rows
from ..store import Cache, FeatureStore
from .readme import FeatureFacts, readme, specs_json

BLOCK_ROWS = 64
POOL_BLOCKS = 4
"""Blocks of neighbouring keys that are in memory together."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
"""Splits and features whose names can be parts of a file's name."""

_SAID = ("key", "label", "split", "generator", "family", "group")


class Occurrence(NamedTuple):
    """One row of a dataset; ``name`` is its unique basename in the tars of its split."""

    name: str
    key: str
    label: int
    split: str
    generator: str
    family: str
    group: str


@dataclass
class _Split:
    """What is exported of one split: its rows in the order of their keys, and the features that the build has for it."""

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
    """Write a build as tars, with a README, ``specs.json`` and ``SHA256SUMS``, to the new folder ``out``.

    build, dataset : a build record, or a dataset whose newest revision has just one that serves.
    features : names; by default each split gets what the build has for it. splits : by default all.
    samples_per_shard : samples in a tar. progress : gets the stage ``export``, in samples.
    Raises UserError if the build lacks something, ``out`` is not free, or it cannot be written.
    """
    progress = progress or Silent()
    if samples_per_shard < 1:
        raise UsageError(f"--samples-per-shard {samples_per_shard}: must be at least 1.")
    record = _choose(cache, build, dataset, features)
    partial = _reserve(cache, out)
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
    _move(partial, out)
    return {**about, "out": str(out), "bytes": sum(path.stat().st_size for path in out.iterdir())}


def _choose(cache: Cache, build: str | None, dataset: str | None, features: Sequence[str] | None) -> BuildRecord:
    """Return the record that is named, or the one that serves of the dataset's newest revision."""
    if (build is None) == (dataset is None):
        raise UsageError("Give either --build ID or --dataset NAME, to say what to export.")
    if build is not None:
        return cache.builds().read(build)
    assert dataset is not None
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
        listed = "; ".join(f"{record.id} ({', '.join(record.features)})" for record in found)
        raise UserError(f"{dataset}: has several builds: {listed}. Choose one with --build ID.")
    return found[0]


def _reserve(cache: Cache, out: Path) -> Path:
    """Make the folder to write to; ``out`` must be free and outside the cache."""
    partial = out.with_name(f"{out.name}.partial")
    if isinstance(cache.root, Path) and out.resolve().is_relative_to(cache.root.resolve()):
        raise UsageError(f"--out {out}: lies inside the cache. Give a folder elsewhere.")
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f"{out}: is not empty. Give a new folder, or delete this one.")
    make_folder(out.absolute().parent)
    try:
        partial.mkdir()
    except FileExistsError:
        raise UserError(
            f"{partial}: is there already: an export to it was killed, or is running. If none is, delete it."
        ) from None
    except OSError as error:
        raise UserError(f"{partial}: cannot create the folder ({error.strerror}).") from error
    return partial


def _parts(
    cache: Cache,
    record: BuildRecord,
    stores: Mapping[str, FeatureStore],
    features: Sequence[str] | None,
    splits: Sequence[str] | None,
) -> list[_Split]:
    """Look up what each split has, and make sure that the cache holds all of it before anything is written."""
    occurrences = _occurrences(cache, record)
    odd = [name for name in (*occurrences, *record.features) if not _NAME.fullmatch(name)]
    if odd:
        raise IntegrityError(f"build {record.id}: {odd[0]!r} cannot name a split or a feature, so nothing is exported.")
    names = list(splits) if splits else sorted(occurrences)
    parts = []
    for name in dict.fromkeys(names):
        if name not in occurrences:
            raise UserError(f"build {record.id}: has no split {name!r}, only {', '.join(sorted(occurrences))}.")
        there = [feature for feature, built in record.features.items() if name in built.splits]
        for feature in features or ():
            if feature not in there:
                raise UserError(
                    f"build {record.id}: has no {feature} for split {name}, only {', '.join(there) or 'none'}."
                )
        part = _Split(name, occurrences[name], list(dict.fromkeys(features or there)))
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
    """Return split -> its rows, sorted by key; rows that repeat a key get a number after it."""
    table = cache.datasets().read(record.dataset, record.revision)
    found: dict[str, list[Occurrence]] = {}
    before: dict[tuple[str, str], int] = {}
    for row in sorted(zip(*(table.column(name).to_pylist() for name in _SAID), strict=True)):
        key, split = row[0], row[2]
        repeats = before.get((key, split), 0)
        before[key, split] = repeats + 1
        found.setdefault(split, []).append(Occurrence(f"{key}-{repeats}" if repeats else key, *row))
    return found


def group_by_split(rows: Sequence[Occurrence], seed: int) -> Iterator[list[Occurrence]]:
    """Yield rows that are read together, in the order in which they are written: each row once.

    rows : of one split, sorted by key.
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
    """Write all splits' tars and return what was seen of each feature."""
    facts: dict[str, FeatureFacts] = {}
    for part in parts:
        samples = _samples(part, stores, seed, facts)
        for start in range(0, len(part.rows), samples_per_shard):
            name = f"{part.name}-{start // samples_per_shard:06d}.tar"
            count = min(samples_per_shard, len(part.rows) - start)
            with tarfile.open(folder / name, "x", format=tarfile.USTAR_FORMAT) as tar:
                for _ in range(count):
                    for member, data in next(samples):
                        info = tarfile.TarInfo(member)  # nobody's, and of 1970, by default: same samples, same bytes
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
            facts.setdefault(feature, FeatureFacts(stores[feature])).see(rows)
        for number, row in enumerate(pool):
            members = [(f"{row.name}.{feature}.npy", npy_bytes(rows[number])) for feature, rows in values.items()]
            said = {name: getattr(row, name) for name in _SAID}
            yield [*members, (f"{row.name}.json", json.dumps(said, sort_keys=True, ensure_ascii=False).encode())]


def npy_bytes(row: Rows) -> bytes:
    """Return an array as the bytes of an .npy file of format 1.0, little endian."""
    buffer = io.BytesIO()
    np.lib.format.write_array(
        buffer, np.ascontiguousarray(row, row.dtype.newbyteorder("<")), version=(1, 0), allow_pickle=False
    )
    return buffer.getvalue()


def _write_sums(folder: Path) -> None:
    """Write ``SHA256SUMS`` over all files, as ``sha256sum -c`` reads it."""
    lines = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _move(partial: Path, out: Path) -> None:
    """Give the finished folder its name; only an empty folder gives way."""
    try:
        os.rename(partial, out)  # noqa: PTH104  (Path.rename says nothing of folders)
    except OSError as error:
        why = "somebody else put something there" if error.errno in (errno.ENOTEMPTY, errno.EEXIST) else error.strerror
        raise UserError(f"{out}: cannot be moved to its place ({why}). The finished export is {partial}.") from error
    fsync_folder(out.absolute().parent)
