"""The cache folder, its feature folders, and the commit that makes a shard exist.

Commit: write the data under a unique name, flush it, then create the marker only if it is absent. The first marker
wins; the loser removes its own data. Nothing is renamed over and nothing needs a lock, so a process can be killed at
any moment and several can write at once.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast, get_args

import numpy as np

from ..errors import IntegrityError, UserError
from .atomic import TEMPORARY_PREFIX, create_file, fsync_folder, fsync_tree, make_folder, read_file
from .builds import BuildStore
from .dataset import DatasetStore
from .formats import Rows, ShardFormat, ShardReader, checksum, stored_bytes
from .index import Index
from .marker import MAX_SHARD_BYTES, DType, Marker, check_keys, how_to_check, is_id, read_marker, shard_id_of
from .spec import Spec, fingerprint_of, folder_name
from .zarr_format import ZarrFormat

__all__ = ["FORMATS", "Cache", "FeatureStore", "Marker"]

FORMAT_VERSION = 1
FORMATS: dict[str, ShardFormat] = {"zarr": ZarrFormat()}
_SMALL = 1 << 20


class Cache:
    """A folder of datasets, features and build records that many experiments share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def create(cls, root: Path | str) -> Cache:
        """Open the cache at ``root``, made anew if there is nothing yet.

        Raises UserError if the folder holds something else.
        """
        root = Path(root)
        if not (root / "cache.json").exists():
            make_folder(root)
            strange = [path for path in root.iterdir() if not path.name.startswith(TEMPORARY_PREFIX)]
            if strange and not (root / "cache.json").exists():
                raise UserError(f"{root}: is neither empty nor a cache. Give a new folder, or one made by a build.")
            create_file(root / "cache.json", _json_bytes({"format": FORMAT_VERSION}))
        return cls.open(root)

    @classmethod
    def open(cls, root: Path | str) -> Cache:
        """Open an existing cache; UserError if it is none, or was written by a later version of the program."""
        root = Path(root)
        if not (root / "cache.json").is_file():
            raise UserError(f"{root}: is not a cache (it has no cache.json). Make one with: distil-cache build")
        version = _read_object(root / "cache.json").get("format")
        if type(version) is not int or version < 1:
            raise IntegrityError(f"{root / 'cache.json'}: names no format version, so the file is damaged.")
        if version > FORMAT_VERSION:
            raise UserError(
                f"{root}: has cache format {version}, this program knows formats up to {FORMAT_VERSION}. "
                "Install a newer distil-cache."
            )
        return cls(root)

    def feature(self, spec: Spec) -> FeatureStore:
        """Return the store of a feature, its folder and ``spec.json`` made if they are absent."""
        folder = self.root / "features" / spec.folder
        if not (folder / "spec.json").exists():
            make_folder(folder / "shards")
            create_file(folder / "spec.json", _json_bytes(spec.canonical()))
        store = FeatureStore(folder)
        if store.fingerprint != spec.fingerprint():
            raise IntegrityError(f"{folder / 'spec.json'}: is the spec of another feature. {how_to_check(folder)}")
        return store

    def open_feature(self, name_or_fingerprint: str) -> FeatureStore:
        """Return an existing feature by its folder's name or by its fingerprint (whole, or at least 8 digits)."""
        wanted = name_or_fingerprint
        for folder in self.feature_folders():
            if folder.name == wanted:
                return FeatureStore(folder)
        found = [store for store in self.features() if len(wanted) >= 8 and store.fingerprint.startswith(wanted)]
        if len(found) == 1:
            return found[0]
        how_many = "several features" if found else "no feature"
        how_to_list = f"List them with: distil-cache cache ls {self.root}"
        raise UserError(f"{self.root}: has {how_many} called {wanted}. {how_to_list}")

    def features(self) -> list[FeatureStore]:
        """Return all features, sorted by folder name; IntegrityError if a spec is damaged."""
        return [FeatureStore(folder) for folder in self.feature_folders()]

    def feature_folders(self) -> list[Path]:
        """Return the folders that hold a ``spec.json``, sorted by name."""
        return sorted(path.parent for path in (self.root / "features").glob("*/spec.json"))

    def datasets(self) -> DatasetStore:
        """Return the cache's datasets."""
        return DatasetStore(self.root / "datasets")

    def builds(self) -> BuildStore:
        """Return the cache's build records and the references of runs to them."""
        return BuildStore(self.root)


class FeatureStore:
    """The shards of one feature.

    folder : the feature's folder; spec : its settings as plain JSON values; fingerprint : 64 hex digits;
    feature : its name, such as ``eps``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        self.spec = _read_object(folder / "spec.json")
        self.fingerprint = fingerprint_of(self.spec)
        self.feature = str(self.spec.get("feature"))
        if folder.name != folder_name(self.feature, self.fingerprint):
            raise IntegrityError(f"{folder / 'spec.json'}: does not belong to this folder. {how_to_check(folder)}")
        self._index: Index | None = None
        self._opened: dict[str, tuple[Marker, ShardReader]] = {}
        self._opened_by = os.getpid()

    def shard_id(self, planned_keys: Sequence[str]) -> str:
        """Return the id of the shard with these keys in this order (32 hex digits)."""
        return shard_id_of(self.fingerprint, planned_keys)

    def commit(
        self,
        planned_keys: Sequence[str],
        rows: Rows,
        *,
        keys: Sequence[str] | None = None,
        rejected: Mapping[str, str] | None = None,
        chunk_tail: tuple[int, ...] | None = None,
    ) -> Marker:
        """Store one shard and return the marker that holds from now on, be it this call's or an earlier one.

        planned_keys : the keys that name the shard; where some are rejected, in sorted order.
        rows : (N, *shape) uint8, float16 or float32, finite; one row for each of ``keys`` (default: ``planned_keys``).
        rejected : reason for each planned key that has no row.
        chunk_tail : the part of a row that is compressed and read together; by default the whole row, or one view of
        a row with four dimensions (views, C, h, w).

        Raises UserError if the rows are not finite or cannot be written.
        """
        stored = tuple(planned_keys if keys is None else keys)
        refused = dict(rejected or {})
        self._check(planned_keys, stored, refused, rows)
        shard = self.shard_id(planned_keys)
        if self.has(shard):
            return self.marker(shard)

        form = FORMATS["zarr"]
        rows = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("="))
        make_folder(self.shards)
        data = self.shards / f"{shard}-{secrets.token_hex(8)}{form.suffix}"
        created = False
        try:
            codec = form.write(data, rows, chunk_tail or _default_tail(rows.shape[1:]))
            fsync_tree(data)
            fsync_folder(self.shards)
            size, sha256 = checksum(data)
            marker = Marker(
                shard=shard, data=data.name, format=form.name, keys=stored, rejected=refused,
                dtype=cast(DType, rows.dtype.name), shape=rows.shape[1:], codec=codec, bytes=size, sha256=sha256,
            )  # fmt: skip
            created = create_file(self._marker_path(shard), marker.model_dump_json().encode() + b"\n")
        except OSError as error:
            raise UserError(f"{data}: cannot be written ({error.strerror or error}).") from error
        finally:
            if not created:
                shutil.rmtree(data, ignore_errors=True)
        return marker if created else self.marker(shard)

    def has(self, shard_id: str) -> bool:
        """Say whether the shard exists, that is, has a marker."""
        return self._marker_path(shard_id).exists()

    def marker(self, shard_id: str) -> Marker:
        """Return a shard's marker; IntegrityError if it is absent or damaged."""
        return read_marker(self._marker_path(shard_id))

    def marker_ids(self) -> list[str]:
        """Return the ids of all shards, sorted, without reading their markers."""
        return sorted(path.stem for path in self.shards.glob("*.json") if is_id(path.stem))

    def markers(self) -> list[Marker]:
        """Return all markers, sorted by shard id."""
        return [self.marker(shard) for shard in self.marker_ids()]

    def index(self, refresh: bool = False) -> Index:
        """Return the index of all keys; with ``refresh`` also of shards that came since, reading only their markers."""
        if self._index is None or refresh:
            known = self._index or Index.empty()
            new = [self.marker(shard) for shard in self.marker_ids() if shard not in known.known]
            self._index = known.extended(new) if new else known
        return self._index

    def read(self, shard_id: str, start: int = 0, stop: int | None = None, view: int | None = None) -> Rows:
        """Return contiguous rows of a shard, (rows, *shape), or one view of each, (rows, *shape[1:]).

        The first read of a shard checks that its data is there, has its size, and has the marker's shape and dtype;
        IntegrityError if not, or if the data cannot be decoded. A range outside the shard is an IndexError.
        """
        marker, reader = self._open(shard_id)
        stop = marker.rows if stop is None else stop
        if not 0 <= start <= stop <= marker.rows:
            raise IndexError(f"rows {start} to {stop} of shard {shard_id}, which has {marker.rows}")
        if view is not None and (len(marker.shape) < 2 or not 0 <= view < marker.shape[0]):
            raise IndexError(f"view {view} of rows of shape {marker.shape}")
        return reader.read(start, stop, view)

    def log(self, event: Mapping[str, object]) -> None:
        """Append a line to ``log.jsonl``: timings, host, versions; nothing that decides a value."""
        line = json.dumps(dict(event), sort_keys=True).encode() + b"\n"
        handle = os.open(self.folder / "log.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)

    def open_shard(self, marker: Marker) -> ShardReader:
        """Open a shard's data after checking presence and size; IntegrityError says what is wrong."""
        form = FORMATS.get(marker.format)
        what = f"{self.feature}, shard {marker.shard}"
        if form is None or not marker.data.endswith(form.suffix):
            raise IntegrityError(f"{what}: has the unknown format {marker.format!r}. {how_to_check(self.folder)}")
        path = self.shards / marker.data
        try:
            size = stored_bytes(path)
        except IntegrityError as error:
            raise IntegrityError(f"{what}: {error} {how_to_check(self.folder)}") from error
        if size != marker.bytes:
            raise IntegrityError(
                f"{what}: {path} has {size:,} bytes, its marker says {marker.bytes:,}. {how_to_check(self.folder)}"
            )
        return form.open(path, marker)

    def _open(self, shard_id: str) -> tuple[Marker, ShardReader]:
        if self._opened_by != os.getpid():  # readers do not outlive a fork
            self._opened, self._opened_by = {}, os.getpid()
        if shard_id not in self._opened:
            marker = self.marker(shard_id)
            self._opened[shard_id] = (marker, self.open_shard(marker))
        return self._opened[shard_id]

    def _marker_path(self, shard_id: str) -> Path:
        if not is_id(shard_id):
            raise ValueError(f"{shard_id!r} is not a shard id")
        return self.shards / f"{shard_id}.json"

    def _check(self, planned: Sequence[str], stored: tuple[str, ...], refused: Mapping[str, str], rows: Rows) -> None:
        check_keys(planned)
        if refused and list(planned) != sorted(planned):
            raise ValueError("the planned keys of a shard with rejected rows must be sorted")
        if tuple(key for key in planned if key not in refused) != stored or not refused.keys() <= set(planned):
            raise ValueError("every planned key must be either stored, in the same order, or rejected")
        if rows.shape[0] != len(stored) or rows.ndim < 2 or rows.dtype.name not in get_args(DType):
            raise ValueError(f"{len(stored)} keys do not fit rows of shape {rows.shape}, {rows.dtype}")
        if rows.nbytes > MAX_SHARD_BYTES:
            raise UserError(f"{self.feature}: a shard of {rows.nbytes:,} bytes is too large. Lower --shard-size.")
        if rows.dtype.kind == "f":
            bad = [key for key, row in zip(stored, rows, strict=True) if not np.isfinite(row).all()]
            if bad:
                raise UserError(
                    f"{self.feature}: {len(bad)} of {len(stored)} rows hold NaN or Inf (first: {bad[0]}), "
                    "so the shard was not written. Try a wider --precision."
                )


def _default_tail(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (1, *shape[1:]) if len(shape) == 4 else shape


def _json_bytes(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _read_object(path: Path) -> dict[str, object]:
    try:
        value = json.loads(read_file(path, _SMALL))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: is not valid JSON, so the file is damaged.") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path}: holds no JSON object, so the file is damaged.")
    return value
