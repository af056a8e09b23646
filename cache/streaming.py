"""Samples of a cache as webdataset streams them: its own tar reader over the tar shards, or over the tars of an export.

A tar shard holds one feature, so the shards of several features are joined: for each shard of the first feature, those
of the others that hold its keys are read beside it. An export has all features of a sample side by side. In both, the
bytes are checked before webdataset sees them, and its decoders, some of which execute what they read, are not used.

webdataset loads torch, so it is imported by the functions that need it.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import numpy as np
import pyarrow as pa

from ..errors import IntegrityError, UserError
from ..storage import AnyPath
from ..storage.regular import open_regular, read_regular
from .shards.format import Rows
from .shards.keys import keys_of_column
from .shards.marker import MAX_ROW_BYTES, Marker
from .shards.packed import unpack
from .shards.tar import TarFormat, open_stream
from .store import FeatureStore

if TYPE_CHECKING:
    import webdataset

Sample = dict[str, Any]
ROW = "__row__"
"""Name of the number of a sample's row in the table."""
COLUMNS = ("key", "label", "split", "generator", "family", "group")
"""Columns of the table that a sample's ``json`` has, as in an export."""
_TAR_NAME = re.compile(r"[A-Za-z0-9_-]+\.tar")
_SPECS = "specs.json"
_MOST_SPECS = 2**26


class TarSource(Protocol):
    """Tars in groups: the samples of a group are complete without the other groups."""

    @property
    def groups(self) -> Sequence[Any]:
        """What to read, in any order."""

    def samples(self, group: Any) -> Iterator[Sample]:
        """Yield the samples of a group: ``__key__``, ``__row__``, ``NAME.npy`` for each feature, and ``json``."""

    def names(self, group: Any) -> list[str]:
        """Return the names of a group's tars."""


@dataclass(frozen=True)
class _Shard:
    """A tar shard of one feature."""

    folder: AnyPath
    feature: str
    marker: Marker


@dataclass(frozen=True)
class _ShardGroup:
    """The tar shards that hold some keys: one of the first feature, and of each other feature those that it takes.

    Attributes
    ----------
    shards
        Feature -> its shards.
    rows
        Key -> its rows in the table, each its number and its columns.
    """

    shards: Mapping[str, tuple[_Shard, ...]]
    rows: Mapping[str, tuple[tuple[int, Mapping[str, Any]], ...]]


@dataclass(frozen=True)
class ShardSource:
    """The tar shards of a cache; made by :func:`shard_source`."""

    groups: Sequence[_ShardGroup]

    def samples(self, group: _ShardGroup) -> Iterator[Sample]:
        """Yield the samples of a group in the order of the first feature's shard."""
        first, *others = group.shards
        members = {name: _members(name, shards) for name, shards in group.shards.items()}
        waiting: dict[str, dict[str, Rows]] = {name: {} for name in others}
        for key, value in members[first]:
            if key not in group.rows:
                continue
            arrays = {f"{first}.npy": value}
            for name in others:
                held = waiting[name]
                while key not in held:
                    following = next(members[name], None)
                    if following is None:
                        raise IntegrityError(f"{group.shards[name][0].folder}: its shards lack the row {key}.")
                    if following[0] in group.rows:
                        held[following[0]] = following[1]
                arrays[f"{name}.npy"] = held.pop(key)
            for number, (row, columns) in enumerate(group.rows[key]):
                yield {"__key__": f"{key}-{number}" if number else key, ROW: row, **arrays, "json": dict(columns)}

    def names(self, group: _ShardGroup) -> list[str]:
        """Return the names of a group's tars."""
        return [shard.marker.data for shards in group.shards.values() for shard in shards]


def shard_source(table: pa.Table, stores: Mapping[str, FeatureStore]) -> ShardSource:
    """Return the tar shards that hold features of a table's rows.

    Parameters
    ----------
    table
        Rows in the schema of a dataset.
    stores
        The features by name; each has every row.

    Raises
    ------
    UserError
        If a shard is no tar.
    """
    keys = keys_of_column(table["key"])
    located = {name: store.index().locate(keys)[0] for name, store in stores.items()}
    markers: dict[str, dict[int, _Shard]] = {}
    for name, store in stores.items():
        ids = store.index().shards
        markers[name] = {int(number): _shard(store, ids[int(number)]) for number in np.unique(located[name])}
    columns = table.select(list(COLUMNS)).to_pylist()
    first = next(iter(stores))
    groups = []
    for number in np.unique(located[first]).tolist():
        rows = np.flatnonzero(located[first] == number)
        of_key: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
        for row in rows.tolist():
            of_key[columns[row]["key"]].append((row, columns[row]))
        shards = {name: tuple(markers[name][int(one)] for one in np.unique(located[name][rows])) for name in stores}
        groups.append(_ShardGroup(shards, {key: tuple(found) for key, found in of_key.items()}))
    return ShardSource(groups)


def _shard(store: FeatureStore, shard: str) -> _Shard:
    marker = store.marker(shard)
    if marker.format != TarFormat.name:
        raise UserError(
            f"{store.folder}: holds {marker.format} shards, and webdataset reads tars. Build with --format webdataset into "
            "a new cache, or write an export, distil-cache cache export, and name that"
        )
    return _Shard(store.folder, store.feature, marker)


def _members(feature: str, shards: Sequence[_Shard]) -> Iterator[tuple[str, Rows]]:
    """Yield key and row of each member of a feature's tars."""
    for shard in shards:
        path = shard.folder / "shards" / shard.marker.data
        with open_stream(path, shard.marker.of_data(), feature) as stream:
            for sample in _read_tar(str(path), stream):
                yield sample["__key__"], _as_read(shard.marker, _array(str(path), sample, feature))


def _as_read(marker: Marker, data: Rows) -> Rows:
    """Return a row as all readers of a cache give it: packed floats as float16."""
    if marker.packed is None:
        return data
    row: Rows = np.empty(marker.shape, np.float16)
    unpack(data[None], marker.packed, row[None])
    return row


@dataclass(frozen=True)
class ExportSource:
    """The tars of an export; made by :func:`export_source`.

    Attributes
    ----------
    folder
        The export.
    groups
        Names of its tars.
    features
        Features to read.
    rows
        Columns of a row, as a tuple in the order of ``COLUMNS`` -> its numbers in the table.
    """

    folder: Path
    groups: Sequence[str]
    features: tuple[str, ...]
    rows: Mapping[tuple[object, ...], tuple[int, ...]]

    def samples(self, group: str) -> Iterator[Sample]:
        """Yield the samples of a tar that are rows of the table, in its order."""
        path = self.folder / group
        with _opened_export(path) as stream:
            for sample in _read_tar(str(path), stream):
                columns = _columns(str(path), sample)
                rows = self.rows.get(tuple(columns[name] for name in COLUMNS))
                if rows is None:
                    continue
                # rows that differ in nothing have consecutive numbers after their key, whatever their tars
                row = rows[_occurrence(str(sample["__key__"])) % len(rows)]
                arrays = {f"{name}.npy": _array(str(path), sample, name) for name in self.features}
                yield {"__key__": sample["__key__"], ROW: row, **arrays, "json": columns}

    def names(self, group: str) -> list[str]:
        """Return the name of the tar."""
        return [group]


def export_source(folder: Path, table: pa.Table, stores: Mapping[str, FeatureStore], revision: str) -> ExportSource:
    """Return the tars of an export that hold features of a table's rows.

    Parameters
    ----------
    folder
        What ``cache export`` wrote.
    table
        Rows in the schema of a dataset.
    stores
        The features by name.
    revision
        Revision of the dataset.

    Raises
    ------
    UserError
        If the folder is no export, or one of another revision, or of other features.
    """
    try:
        about = json.loads(read_regular(folder / _SPECS, _MOST_SPECS))
        exported, splits, features = str(about["revision"]), dict(about["splits"]), dict(about["features"])
        prints = {str(name): str(one["fingerprint"]) for name, one in features.items()}
        parts = {
            str(name): (set(part["features"]), [str(tar) for tar in part["tars"]]) for name, part in splits.items()
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"{folder}: is no export that can be read. Write one with: distil-cache cache export"
        ) from error
    if exported != revision:
        raise UserError(f"{folder}: is an export of the revision {exported}, not of {revision}. Export it again.")
    tars: list[str] = []
    for split in sorted(set(table["split"].to_pylist())):
        having, names = parts.get(split, (set(), []))
        lacking = [name for name in stores if name not in having]
        if lacking:
            raise UserError(f"{folder}: has no {lacking[0]} for the split {split}. Export it again with that.")
        tars += names
    for name, store in stores.items():
        if prints.get(name) != store.fingerprint:
            raise UserError(f"{folder}: its {name} was built with other settings. Export it again from this build.")
    wrong = [name for name in tars if not _TAR_NAME.fullmatch(name)]
    if wrong:
        raise UserError(f"{folder / _SPECS}: {wrong[0]!r} is no name of a tar of an export.")
    rows: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for number, columns in enumerate(table.select(list(COLUMNS)).to_pylist()):
        rows[tuple(columns[name] for name in COLUMNS)].append(number)
    return ExportSource(folder, tars, tuple(stores), {identity: tuple(found) for identity, found in rows.items()})


def pipeline(source: TarSource) -> webdataset.DataPipeline:
    """Return a webdataset pipeline over a source's samples. Processes and reader processes share the groups of tars."""
    import webdataset

    stages = (webdataset.split_by_node, webdataset.split_by_worker, partial(expanded, source))
    return webdataset.FluidWrapper(list(source.groups)).compose(*stages)


def expanded(source: TarSource, groups: Iterable[Any]) -> Iterator[Sample]:
    """Yield the samples of groups of tars, group after group."""
    for group in groups:
        yield from source.samples(group)


def _read_tar(name: str, stream: BinaryIO) -> Iterator[Sample]:
    """Yield the samples of an open tar as webdataset groups its members; IntegrityError if it is damaged."""
    from webdataset import tariterators

    try:
        yield from tariterators.group_by_keys(tariterators.tar_file_expander([{"url": name, "stream": stream}]))
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise IntegrityError(f"{name}: cannot be read as a tar of samples ({error.args[0]}).") from error


@contextmanager
def _opened_export(path: Path) -> Iterator[BinaryIO]:
    """Open a tar of an export after looking at its members: plain, uncompressed files of bounded size."""
    with ExitStack() as held:
        try:
            stream = held.enter_context(open_regular(path))
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                for member in tar:
                    if not member.isreg() or member.issparse() or member.size > MAX_ROW_BYTES:
                        raise IntegrityError(f"{path}: its member {member.name!r} is not one that an export writes.")
            stream.seek(0)
        except (OSError, tarfile.TarError) as error:
            raise IntegrityError(f"{path}: cannot be read as a tar of samples ({error}).") from error
        yield stream


def _occurrence(name: str) -> int:
    """Return the number after the key in a sample's name; 0 without one."""
    number = name.partition("-")[2]
    return int(number) if number.isascii() and number.isdigit() and len(number) <= 9 else 0


def _array(path: str, sample: Sample, feature: str) -> Rows:
    try:
        array: Rows = np.lib.format.read_array(io.BytesIO(sample[f"{feature}.npy"]), allow_pickle=False)
    except (KeyError, ValueError) as error:
        raise IntegrityError(f"{path}: sample {sample['__key__']} has no array {feature} that can be read.") from error
    return array


def _columns(path: str, sample: Sample) -> dict[str, Any]:
    try:
        found = json.loads(sample["json"])
        return {name: found[name] for name in COLUMNS}
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{path}: sample {sample['__key__']} has no description that can be read.") from error
