"""The cache folder, its feature folders, and the commit that makes a shard exist.

To commit, a builder writes the data under a unique name, flushes them, and creates the marker only if it is absent. The
first marker wins; the loser deletes its own data. Nothing is renamed over and nothing needs a lock, so a process can be
killed at any moment and several can write at once.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cached_property, partial
from itertools import compress
from typing import cast

import numpy as np

from ..choices import CodecChoice
from ..errors import IntegrityError, ReadOnlyError, UnreachableError, UserError
from ..storage import AnyPath, by_requests, file_in_place, list_folders, list_names, map_ordered, path_exists, to_path
from ..storage.atomic import (
    TEMPORARY_PREFIX,
    append_line,
    cannot_write,
    check_new_size,
    create_file,
    make_folder,
    probe_conditional_put,
    read_file,
    read_files,
)
from .index import file as index_file
from .index.index import EMPTY, Index
from .local_copy.reader import MAX_OPEN as COPIES_OPEN
from .local_copy.reader import LocalCopy
from .records.about import BEFORE, About, Geometry, Known, read_about
from .records.about import FILE as ABOUT
from .records.builds import BuildStore, BuiltFeature
from .records.datasets import DatasetStore
from .shards.data import check_rows, remove_data, write_data
from .shards.format import Rows, ShardReader
from .shards.keys import KeyArray
from .shards.marker import (
    MAX_MARKER_BYTES,
    DType,
    Marker,
    check_hint,
    is_id,
    parse_marker,
    read_marker,
    shard_id_of,
)
from .shards.packed import pack, packing_of
from .shards.registry import FORMATS, MAX_OPEN, REMOTE_OPEN, OpenShard, OpenShards, new_format, open_data
from .spec import Spec, fingerprint_of, folder_name

__all__ = ["FORMATS", "MAX_OPEN", "Cache", "FeatureStore", "Marker"]

FORMAT_VERSION = 1
_OTHER_ROWS = "A feature whose rows change needs another `algorithm` in its spec."
_SMALL = 1 << 20


class Cache:
    """A folder of datasets, features and build records that many experiments share.

    Parameters
    ----------
    root
        The cache.
    local_copy
        A local copy through which shards are read, if the cache is remote.
    """

    def __init__(self, root: AnyPath, local_copy: LocalCopy | None = None) -> None:
        self.root = root
        self._local_copy = local_copy

    @classmethod
    def create(cls, root: AnyPath | str) -> Cache:
        """Open the cache at ``root``, creating it if the folder is absent or empty.

        Raises
        ------
        UserError
            If the folder holds something else, or the object store does not support conditional puts.
        """
        root = to_path(root)
        if not path_exists(root / "cache.json"):
            cls.refuse_other_content(root)
            make_folder(root)
            probe_conditional_put(root)
            create_file(root / "cache.json", _json_bytes({"format": FORMAT_VERSION}))
        return cls.open(root)

    @staticmethod
    def refuse_other_content(root: AnyPath) -> None:
        """Raise UserError if ``root`` is a file, or a folder with content that is not a cache; write nothing."""
        if file_in_place(root):
            raise UserError(f"{root}: is a file. Give a new folder for the cache, or an existing cache.")
        others = [name for name in list_names(root) if not name.startswith(TEMPORARY_PREFIX)]
        if others and not path_exists(root / "cache.json"):
            raise UserError(f"{root}: is neither empty nor a cache. Give a new folder, or an existing cache.")

    @classmethod
    def open(cls, root: AnyPath | str, local_copy: LocalCopy | None = None) -> Cache:
        """Open an existing cache.

        Raises
        ------
        UserError
            If it is not a cache, or was written by a later version of the program.
        IntegrityError
            If ``cache.json`` is damaged.
        """
        root = to_path(root)
        if not path_exists(root / "cache.json"):
            raise UserError(f"{root}: is not a cache (it has no cache.json). Create one with: distil-cache build")
        version = _read_object(root / "cache.json").get("format")
        if type(version) is not int or version < 1:
            raise IntegrityError(f"{root / 'cache.json'}: names no format version, so the file is damaged.")
        if version > FORMAT_VERSION:
            raise UserError(
                f"{root}: has cache format {version}, this program knows formats up to {FORMAT_VERSION}. "
                "Install a newer distil-cache."
            )
        return cls(root, local_copy)

    def feature(
        self, spec: Spec, form: str = "zarr", codec: CodecChoice = "auto", about: About | None = None
    ) -> FeatureStore:
        """Return the store of a feature, creating its folder, ``spec.json`` and ``about.json`` if absent.

        Parameters
        ----------
        spec
            The feature's spec.
        form
            The format of new shards, a name in ``FORMATS``. Shards of all formats are read.
        codec
            How new zarr shards are compressed. Shards of all codecs are read.
        about
            What its rows are. It is written only where the folder does not say so yet.

        Raises
        ------
        IntegrityError
            If the folder holds the spec of another feature, or rows of another layout.
        UserError
            If the folder cannot be written.
        """
        folder = self.root / "features" / spec.folder
        if not path_exists(folder / "spec.json"):
            make_folder(folder / "shards")
            create_file(folder / "spec.json", _json_bytes(spec.canonical()))
        store = FeatureStore(folder, form, codec)
        if store.fingerprint != spec.fingerprint():
            raise IntegrityError(f"{folder / 'spec.json'}: is the spec of another feature. {check_hint(folder)}")
        if about is not None:
            if not path_exists(folder / ABOUT):
                with contextlib.suppress(ReadOnlyError):  # then no row is added either
                    create_file(folder / ABOUT, about.json_bytes)
            _check_layout(store, about)
        return store

    def open_feature(self, name_or_fingerprint: str) -> FeatureStore:
        """Return an existing feature.

        Parameters
        ----------
        name_or_fingerprint
            Its folder's name, or its fingerprint (all of it, or at least the first 8 digits).

        Raises
        ------
        UserError
            If there is no such feature, or more than one.
        """
        wanted = name_or_fingerprint
        for folder in self.feature_folders():
            if folder.name == wanted:
                return FeatureStore(folder, local_copy=self._local_copy)
        found = [store for store in self.features() if len(wanted) >= 8 and store.fingerprint.startswith(wanted)]
        if len(found) == 1:
            return found[0]
        count = "several features" if found else "no feature"
        raise UserError(f"{self.root}: has {count} called {wanted}. List them with: distil-cache cache ls {self.root}")

    def features(self) -> list[FeatureStore]:
        """Return all features, sorted by folder name; IntegrityError if a spec is damaged."""
        return [FeatureStore(folder, local_copy=self._local_copy) for folder in self.feature_folders()]

    def feature_folders(self) -> list[AnyPath]:
        """Return the folders that have a ``spec.json``, sorted by name."""
        folders = list_folders(self.root / "features")
        has_spec = map_ordered(lambda folder: path_exists(folder / "spec.json"), folders, self.root)
        return list(compress(folders, has_spec))

    def provider_of(self, feature: str) -> str | None:
        """Return the package that computed rows of a feature with this name, and its version; None if nothing says so."""
        for folder in list_folders(self.root / "features"):
            if folder.name.rpartition("-")[0] == feature and (about := read_about(folder)) is not None:
                return str(about.provider)
        return None

    def datasets(self) -> DatasetStore:
        """Return the cache's datasets."""
        return DatasetStore(self.root / "datasets")

    def builds(self) -> BuildStore:
        """Return the cache's build records and the references of runs to them."""
        return BuildStore(self.root)


class FeatureStore:
    """The shards of one feature.

    Parameters
    ----------
    folder
        The feature's folder.
    form
        The format of new shards, a name in ``FORMATS``.
    codec
        How new zarr shards are compressed.
    local_copy
        A local copy through which shards are read.

    Attributes
    ----------
    shards, removed
        The folders of the shards, and of the markers that ``gc`` moved to the trash.
    spec
        The feature's settings as JSON values.
    fingerprint
        64 hex digits.
    feature
        Its name, such as ``eps``.
    about
        What its rows are, from ``about.json``; None without it, as in caches of earlier versions. Reading it raises
        IntegrityError if it is damaged.

    Raises
    ------
    IntegrityError
        If the spec is damaged, or does not belong to the folder.
    """

    def __init__(
        self,
        folder: AnyPath,
        form: str = "zarr",
        codec: CodecChoice = "auto",
        local_copy: LocalCopy | None = None,
    ) -> None:
        self.folder = folder
        self.form = form
        self.codec = codec
        self.local_copy = local_copy
        self.shards = folder / "shards"
        self.removed = folder / "removed"
        self.spec = _read_object(folder / "spec.json")
        try:
            self.fingerprint = fingerprint_of(self.spec)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(
                f"{folder / 'spec.json'}: is not a valid spec ({error}). {check_hint(folder)}"
            ) from error
        self.feature = str(self.spec.get("feature"))
        if folder.name != folder_name(self.feature, self.fingerprint):
            raise IntegrityError(f"{folder / 'spec.json'}: does not belong to this folder. {check_hint(folder)}")
        self._index: Index | None = None
        self._opened = OpenShards(COPIES_OPEN if local_copy else REMOTE_OPEN if self.by_requests else None)

    @cached_property
    def about(self) -> About | None:
        """See the class."""
        return read_about(self.folder)

    @property
    def geometry(self) -> Geometry:
        """What a row is, which decides what an augmentation may do to it.

        Raises IntegrityError if nothing says so.
        """
        return self.about.layout.geometry if self.about else self._known().geometry

    @property
    def views(self) -> tuple[str, ...]:
        """What the entries along the first axis of a row are computed of; empty if that is no axis of views."""
        if self.about is not None:
            return self.about.layout.views
        views = self.spec.get("views")
        return tuple(map(str, views)) if isinstance(views, list) else ()

    @property
    def description(self) -> str:
        """What the values mean, a phrase; the feature's name if nothing says so."""
        if self.about is not None:
            return self.about.description
        return BEFORE[self.feature].description if self.feature in BEFORE else self.feature

    def _known(self) -> Known:
        if self.feature not in BEFORE:
            raise IntegrityError(
                f"{self.folder / ABOUT}: is missing, so what the rows of {self.feature} are is not known. A build that "
                "makes this feature writes it again."
            )
        return BEFORE[self.feature]

    @property
    def by_requests(self) -> bool:
        """Whether each read is a request, as :func:`..storage.by_requests` says."""
        return by_requests(self.folder)

    def shard_id(self, planned_keys: Sequence[str]) -> str:
        """Return the id, 32 hex digits, of the shard with these keys in this order."""
        return shard_id_of(self.fingerprint, planned_keys)

    def commit(
        self,
        planned_keys: Sequence[str],
        rows: Rows,
        *,
        keys: Sequence[str] | None = None,
        rejected: Mapping[str, str] | None = None,
        merged: Sequence[str] = (),
    ) -> Marker:
        """Store one shard.

        Parameters
        ----------
        planned_keys
            The keys that name the shard, sorted if some are rejected.
        rows
            (N, *shape) uint8, float16 or float32, finite; one row for each of ``keys``. Rows of float16 are rounded to
            integers if the spec's ``storage`` says so.
        keys
            The keys of the rows, in order; ``planned_keys`` by default.
        rejected
            Reason for each planned key that has no row.
        merged
            Ids of this feature's shards that the new one replaces.

        Returns
        -------
        Marker
            The marker that counts, created by this call or an earlier one.

        Raises
        ------
        UserError
            If the rows are too large, are not finite, or cannot be written.
        IntegrityError
            If they are not what ``about.json`` says.
        ValueError
            If keys and rows do not fit each other, or the spec's ``storage`` takes only float16 and the rows are others.
        """
        stored = tuple(planned_keys if keys is None else keys)
        reasons = dict(rejected or {})
        packed = packing_of(self.spec.get("storage"))
        check_rows(self.feature, planned_keys, stored, reasons, rows, packed)
        if self.about is not None and (fault := self.about.layout.fault(rows.shape[1:], rows.dtype.name)):
            raise IntegrityError(f"{self.folder}: would get {fault}. {_OTHER_ROWS}")
        shard = self.shard_id(planned_keys)
        if self.has(shard):
            return self.marker(shard)

        form = new_format(self.form, self.codec)
        rows = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("="))
        data_rows = rows if packed is None else pack(rows, packed)
        make_folder(self.shards)
        data = self.shards / f"{shard}-{secrets.token_hex(8)}{form.suffix}"
        created = False
        try:
            tail = default_tail(data_rows.shape[1:])
            codec, offsets, size, sha256 = write_data(data, form, data_rows, stored, self.feature, tail)
            marker = Marker(
                shard=shard, data=data.name, format=form.name, keys=stored, rejected=reasons,
                dtype=cast(DType, rows.dtype.name), shape=rows.shape[1:], packed=packed, codec=codec, bytes=size, sha256=sha256,
                merged=tuple(merged), offsets=offsets,
            )  # fmt: skip
            text = marker.model_dump_json().encode() + b"\n"
            check_new_size(self._marker_path(shard), len(text), MAX_MARKER_BYTES, "Lower --shard-size.")
            created = create_file(self._marker_path(shard), text)
        except OSError as error:
            raise cannot_write(data, error) from error
        finally:
            if not created and not self._is_marked(shard, data.name):
                remove_data(data)
        return marker if created else self.marker(shard)

    def has(self, shard_id: str) -> bool:
        """Return whether the shard exists, that is, has a marker."""
        return path_exists(self._marker_path(shard_id))

    def marker(self, shard_id: str) -> Marker:
        """Return a shard's marker, also shortly after ``gc`` removed it: the data stay for the grace period.

        Raises
        ------
        IntegrityError
            If it is absent or damaged, or its keys are not those of the shard.
        UnreachableError
            If it cannot be read at the moment.
        """
        path, removed = self._marker_path(shard_id), self.removed / f"{shard_id}.json"
        absent = []
        for candidate in (path, removed, path):  # gc may move it to the trash and back between two reads
            try:
                return self._checked(shard_id, read_marker(candidate))
            except IntegrityError as error:
                if not isinstance(error.__cause__, FileNotFoundError):
                    raise
                absent.append(error)
        raise absent[0]

    def marker_ids(self) -> list[str]:
        """Return the ids of all shards, sorted, without reading markers; UnreachableError if they cannot be listed."""
        return sorted(name[:-5] for name in list_names(self.shards) if name.endswith(".json") and is_id(name[:-5]))

    def markers(self) -> list[Marker]:
        """Return all markers, sorted by shard id."""
        return list(self.read_markers(self.marker_ids()))

    def index(self, refresh: bool = False) -> Index:
        """Return the index of all keys. Nothing is written.

        Only markers that the compacted index on disk lacks are read.

        Parameters
        ----------
        refresh
            Bring the index up to date with the markers that are there now.
        """
        if self._index is None or refresh:
            known = self._index
            if known is None:
                known = Index(saved=index_file.read_newest(self.index_folder, self.fingerprint) or EMPTY)
            present = self.marker_ids()
            fresh = self.read_markers(shard for shard in present if shard not in known.known)
            self._index = known.extended(fresh, present)
        return self._index

    def read_markers(self, listed: Iterable[str]) -> Iterator[Marker]:
        """Yield the markers of listed shards, skipping those removed since.

        In an object store many are fetched concurrently.

        Raises
        ------
        IntegrityError
            If a marker is damaged.
        """
        names = (f"{shard}.json" for shard in listed)
        for name, text in read_files(self.shards, names, MAX_MARKER_BYTES):
            shard = name[:-5]
            try:
                if text is None:
                    yield self.marker(shard)
                else:
                    yield self._checked(shard, parse_marker(text, self._marker_path(shard)))
            except IntegrityError:
                if self.has(shard):
                    raise

    def _checked(self, shard: str, marker: Marker) -> Marker:
        if self.shard_id(marker.planned) != shard:
            path = self._marker_path(shard)
            raise IntegrityError(f"{path}: its keys are not those of this shard. {check_hint(path)}")
        return marker

    @property
    def index_folder(self) -> AnyPath:
        """The folder of the compacted index, which is safe to delete."""
        return self.folder / index_file.FOLDER

    def compact_index(self, *, if_worth: bool = False) -> bool:
        """Write the compacted index from all markers.

        Parameters
        ----------
        if_worth
            Write only if opening the feature reads many markers without it, or the existing file is not valid.

        Returns
        -------
        bool
            Whether this call wrote the file.

        Raises
        ------
        UserError
            If the file cannot be written.
        """
        index = self.index(refresh=True)
        if index_file.is_current(self.index_folder, index, tolerant=if_worth):
            return False
        written = index_file.write(self.index_folder, index.whole(), self.fingerprint)
        if written:
            self._index = None  # next time it is mapped from the file instead of held in memory
        return written

    def built(self, keys: Iterable[KeyArray], splits: Collection[str]) -> BuiltFeature:
        """Return what a build record says of this feature.

        Parameters
        ----------
        keys
            Binary keys of a dataset's rows in these splits, in any number of arrays.
        splits
            The splits for which the feature was built.
        """
        index = self.index(refresh=True)
        used = np.zeros(len(index.shards), bool)
        for block in keys:
            shard = index.locate(block)[0]
            used[shard[shard >= 0]] = True
        return BuiltFeature(
            fingerprint=self.fingerprint,
            folder=self.folder.name,
            shards=tuple(index.shards[number] for number in np.flatnonzero(used)),
            splits=tuple(sorted(splits)),
        )

    def read(
        self, shard_id: str, start: int = 0, stop: int | None = None, view: int | None = None, out: Rows | None = None
    ) -> Rows:
        """Return contiguous rows of a shard, or one view of each.

        The first read of a shard checks that its data exist and have the size, shape and dtype of the marker.

        Parameters
        ----------
        shard_id
            The shard.
        start, stop
            The range of rows, to the end by default.
        view
            None for whole rows, or the index of one view.
        out
            A contiguous array to fill and return.

        Returns
        -------
        ndarray
            (rows, *shape), or with ``view`` (rows, *shape[1:]), of the shard's dtype.

        Raises
        ------
        IntegrityError
            If the data are missing or damaged, or their shape or dtype is not that of ``out``.
        IndexError
            If the range or view is outside the shard.
        """
        opened = self._opened.get(shard_id, self._open)
        stop = opened.rows if stop is None else stop
        if not 0 <= start <= stop <= opened.rows:
            raise IndexError(f"rows {start} to {stop} of shard {shard_id}, which has {opened.rows}")
        if view is not None and (len(opened.shape) < 2 or not 0 <= view < opened.shape[0]):
            raise IndexError(f"view {view} of rows of shape {opened.shape}")
        if out is not None:
            wanted = (stop - start, *(opened.shape if view is None else opened.shape[1:]))
            if (out.shape, out.dtype) != (wanted, opened.dtype):
                raise IntegrityError(
                    f"{self.feature}: holds rows of different shapes, {opened.shape} of {opened.dtype} in shard "
                    f"{shard_id} and others elsewhere. {check_hint(self.folder)}"
                )
        return opened.reader.read(start, stop, view, out)

    def log(self, event: Mapping[str, object]) -> None:
        """Append a line to ``log.jsonl``: timings, host, versions; nothing that decides a value."""
        line = json.dumps(dict(event), sort_keys=True).encode()
        append_line(self.folder / "log.jsonl", line)

    def open_shard(self, marker: Marker) -> ShardReader:
        """Open a shard's data, in the local copy if there is one.

        Raises
        ------
        IntegrityError
            If the data are missing or are not what the marker says.
        """
        data = self.shards / marker.data
        opened = partial(open_data, marker=marker, feature=self.feature, folder=self.folder)
        return self.local_copy.open(self.folder.name, data, marker, opened) if self.local_copy else opened(data)

    def _open(self, shard_id: str) -> OpenShard:
        copied = self.local_copy.marker(self.folder.name, shard_id) if self.local_copy else None
        if copied is not None and self.shard_id(copied.planned) == shard_id:
            with contextlib.suppress(IntegrityError):  # the cache may hold it again under another marker
                return self._open_marked(copied)
        return self._open_marked(self.marker(shard_id))

    def _open_marked(self, marker: Marker) -> OpenShard:
        if self._index is not None and not self._index.agrees_with(marker):
            raise IntegrityError(
                f"{self.feature}, shard {marker.shard}: the index has other keys than the shard's marker. "
                f"Delete {self.index_folder}, which is safe, and run the command again."
            )
        return OpenShard(marker.rows, marker.shape, np.dtype(marker.dtype), self.open_shard(marker))

    def _marker_path(self, shard_id: str) -> AnyPath:
        if not is_id(shard_id):
            raise ValueError(f"{shard_id!r} is not a shard id")
        return self.shards / f"{shard_id}.json"

    def _is_marked(self, shard: str, data: str) -> bool:
        """Return whether the marker names this data: an error after the link does not undo it."""
        try:
            return self.has(shard) and self.marker(shard).data == data
        except (IntegrityError, UnreachableError, OSError):
            return True  # it may name this data


def _check_layout(store: FeatureStore, about: About) -> None:
    """Raise IntegrityError if a feature has rows of another layout than those that would be added."""
    there = store.about
    if there is not None and there.layout != about.layout:
        differing = ", ".join(
            f"{field.name} {getattr(there.layout, field.name)} -> {getattr(about.layout, field.name)}"
            for field in fields(about.layout)
            if getattr(there.layout, field.name) != getattr(about.layout, field.name)
        )
        raise IntegrityError(
            f"{store.folder / ABOUT}: was written by {there.provider}, and {about.provider} makes other rows ({differing}). "
            f"{_OTHER_ROWS}"
        )


def default_tail(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the part of a row that is compressed together: all of it, or one view of (views, C, h, w)."""
    return (1, *shape[1:]) if len(shape) == 4 else shape


def _json_bytes(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def _read_object(path: AnyPath) -> dict[str, object]:
    try:
        value = json.loads(read_file(path, _SMALL))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path}: is not valid JSON, so the file is damaged.") from error
    if not isinstance(value, dict):
        raise IntegrityError(f"{path}: is not a JSON object, so the file is damaged.")
    return value
