"""Views of a cache: a dataset's rows, and the features that belong to them. Nothing is read before it is asked for.

The rows of a view are in the order of their keys, which is about the order of the shards, so arrays of several features
match each other row by row and are read in long runs. Importing this module loads no torch, dask, xarray or webdataset.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..cache.local_copy.reader import LocalCopy
from ..cache.maintenance.listing import spec_summary
from ..cache.records.builds import BuildRecord
from ..cache.shards.format import Rows
from ..cache.shards.keys import keys_of_column
from ..cache.store import Cache, FeatureStore
from ..errors import ChoiceError, UserError
from ..train.data.select import (
    candidate_builds,
    choose_build,
    column,
    missing_feature,
    parse_select,
    select_rows,
    serves,
    split_rows,
)
from .extras import needs
from .rows import RowReader
from .settings import StrPath

if TYPE_CHECKING:
    import dask.array
    import pandas
    import webdataset
    import xarray

    from .torch_data import FeatureRows, FeatureStream

COLUMNS = ("key", "label", "split", "generator")
"""Columns of the table that are joined to features by default."""


def open(cache: StrPath, *, local_copy: StrPath | None = None) -> OpenCache:  # noqa: A001  (as in h5py and zarr)
    """Open an existing cache.

    Parameters
    ----------
    cache : path
        Its folder, or its URL in an object store, such as ``s3://BUCKET/FOLDER``.
    local_copy : path, optional
        Folder on a local disk through which shards are read.

    Returns
    -------
    OpenCache

    Raises
    ------
    UserError
        If it is not a cache, or was written by a later version of the program.
    """
    copy = LocalCopy.at(Path(local_copy)) if local_copy is not None else None
    return OpenCache(Cache.open(os.fspath(cache), copy))


@dataclass(frozen=True)
class OpenCache:
    """A cache; made by :func:`distil_cache.open`.

    Attributes
    ----------
    store : Cache
        The cache as the package itself uses it.
    """

    store: Cache

    def __repr__(self) -> str:
        """Name the cache and its datasets."""
        return f"OpenCache({str(self.store.root)!r}, datasets: {', '.join(self.datasets) or 'none'})"

    @property
    def datasets(self) -> tuple[str, ...]:
        """Names of the datasets, sorted."""
        return tuple(self.store.datasets().names())

    def dataset(self, name: str, *, build: str | None = None) -> DatasetView:
        """Return a dataset's rows.

        Parameters
        ----------
        name : str
            The dataset.
        build : str, optional
            Id of the build whose revision and features to use. By default the newest revision and the builds of it.

        Returns
        -------
        DatasetView

        Raises
        ------
        UserError
            If there is no such dataset or build.
        """
        revision, _ = candidate_builds(self.store, name, build)
        table = self.store.datasets().read(name, revision)
        order = np.argsort(keys_of_column(table["key"]), kind="stable")
        return DatasetView(self.store, name, revision, table.take(pa.array(order)), build)


@dataclass(frozen=True)
class DatasetView:
    """The rows of a dataset, or some of them; made by :meth:`OpenCache.dataset`.

    Attributes
    ----------
    store : Cache
        The cache.
    name, revision : str
        The dataset and its revision.
    table : pyarrow.Table
        A row per occurrence of an image, in the order of the keys: ``key`` (32 hex digits), ``source``, ``path``,
        ``label`` (1 for generated), ``split``, ``generator``, ``family``, ``group``, ``width``, ``height``, ``format``
        and ``bytes``.
    build : str or None
        Id of the build whose features are used; None for any build of the revision that fits.
    """

    store: Cache
    name: str
    revision: str
    table: pa.Table
    build: str | None = None

    def __repr__(self) -> str:
        """Name the dataset, its splits and its features."""
        features = ", ".join(self.features) or "none"
        return f"DatasetView({self.name!r}, {len(self):,} rows of {', '.join(self.splits)}, features: {features})"

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self.table.num_rows)

    @property
    def splits(self) -> tuple[str, ...]:
        """Splits of the rows, sorted."""
        return tuple(sorted(pc.unique(self.table["split"]).to_pylist()))

    @property
    def keys(self) -> list[str]:
        """Key of each row."""
        keys: list[str] = self.table["key"].to_pylist()
        return keys

    @cached_property
    def features(self) -> Mapping[str, tuple[str, ...]]:
        """Feature -> its fingerprints in the builds that fit, the oldest build's first."""
        found: dict[str, list[str]] = {}
        for record in self._builds():
            for name, built in record.features.items():
                found.setdefault(name, []).append(built.fingerprint)
        return {name: tuple(dict.fromkeys(prints)) for name, prints in found.items()}

    def split(self, name: str) -> DatasetView:
        """Return the rows of one split. Raises UserError, listing the splits, if there are none."""
        return replace(self, table=split_rows(self.table, name, self.name))

    def select(self, text: str) -> DatasetView:
        """Return the rows that ``--select`` keeps, such as ``generator=adm|ldm``: these fakes and the reals beside them.

        Raises
        ------
        UsageError
            If the text cannot be parsed.
        UserError
            If a class has no row left.
        """
        return replace(self, table=select_rows(self.table, parse_select(text), self.name))

    def feature(self, name: str, fingerprint: str | None = None) -> FeatureView:
        """Return a feature of the rows, as far as their splits have it.

        Parameters
        ----------
        name : str
            Such as ``image`` or ``eps``.
        fingerprint : str, optional
            Of the feature, or its first 8 digits or more; needed where several builds have different ones.

        Returns
        -------
        FeatureView

        Raises
        ------
        ChoiceError
            If several features of this name fit; it lists their fingerprints.
        UserError
            If there is no such feature, or it lacks rows.
        """
        fingerprint = self._fingerprint(name, fingerprint)
        record = self._record((name,), {name: fingerprint})
        kept = np.isin(column(self.table, "split"), record.features[name].splits)
        return self._view(record, name, self.table.filter(pa.array(kept)))

    def to_arrow(self) -> pa.Table:
        """Return the table; columns as for ``table``."""
        return self.table

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table as a data frame. Needs pandas: ``pip install 'distil-cache[pandas]'``."""
        with needs("pandas"):
            frame: pandas.DataFrame = self.table.to_pandas()
        return frame

    @overload
    def to_torch(
        self, *features: str, columns: Sequence[str] = ..., streaming: Literal[False] = ...
    ) -> FeatureRows: ...

    @overload
    def to_torch(
        self, *features: str, columns: Sequence[str] = ..., streaming: Literal[True], seed: int = ...
    ) -> FeatureStream: ...

    def to_torch(
        self, *features: str, columns: Sequence[str] = COLUMNS, streaming: bool = False, seed: int = 0
    ) -> FeatureRows | FeatureStream:
        """Return a dataset for ``torch.utils.data.DataLoader``.

        Parameters
        ----------
        *features : str
            Features that every row must have.
        columns : sequence of str
            Columns of the table to join.
        streaming : bool
            Return an ``IterableDataset``, which shuffles neighbouring rows and so reads in long runs, in place of a
            ``Dataset`` with random access.
        seed : int
            Of the order, if streaming.

        Returns
        -------
        FeatureRows or FeatureStream
            Samples are dicts: each feature a tensor of its stored shape and type, ``label`` an int (1 for generated),
            the other columns str or int.

        Raises
        ------
        UserError
            If a feature lacks rows, or several builds fit.
        """
        from .torch_data import FeatureRows, FeatureStream

        views = self._joined(features)
        readers = {name: view.rows for name, view in views.items()}
        return (
            FeatureStream(readers, self.table, columns, seed)
            if streaming
            else FeatureRows(readers, self.table, columns)
        )

    def to_xarray(self, *features: str, chunk: int = 256) -> xarray.Dataset:
        """Return features as a lazy ``xarray.Dataset``. Needs xarray: ``pip install 'distil-cache[xarray]'``.

        Parameters
        ----------
        *features : str
            Features that every row must have.
        chunk : int
            Rows of a dask block.

        Returns
        -------
        xarray.Dataset
            A variable per feature with the dimension ``sample`` first, and the columns of the table as coordinates.

        Raises
        ------
        UserError
            If a feature lacks rows, several builds fit, or xarray is not installed.
        """
        return _to_xarray(self._joined(features), chunk)

    def to_webdataset(self, *features: str, export: StrPath | None = None) -> webdataset.DataPipeline:
        """Return a webdataset pipeline over tars, to which ``.shuffle``, ``.batched`` and so on can be added.

        It reads the tar shards of the cache (``build --format webdataset``) or, with ``export``, those of an export.
        Reader processes share the tars.

        Parameters
        ----------
        *features : str
            Features that every row must have.
        export : path, optional
            Folder that ``distil-cache cache export`` wrote from this dataset.

        Returns
        -------
        webdataset.DataPipeline
            Samples are dicts: ``__key__``, ``NAME.npy`` for each feature (ndarray of its stored shape and type) and
            ``json`` (dict with ``key``, ``label``, ``split``, ``generator``, ``family`` and ``group``).

        Raises
        ------
        UserError
            If a feature lacks rows or has shards that are not tars, or the export is of another build.
        """
        from ..cache.streaming import export_source, pipeline, shard_source

        views = self._joined(features)
        stores = {name: view.store for name, view in views.items()}
        if export is not None:
            return pipeline(export_source(Path(export), self.table, stores, self.revision))
        return pipeline(shard_source(self.table, stores))

    def _builds(self) -> list[BuildRecord]:
        if self.build is not None:
            return [self.store.builds().read(self.build)]
        return [record for record in self.store.builds().find(self.name) if record.revision == self.revision]

    def _fingerprint(self, name: str, fingerprint: str | None) -> str | None:
        """Return the whole fingerprint of a feature; UserError if it is not one of this dataset's."""
        known = self.features.get(name, ())
        if fingerprint is None:
            return None
        fitting = [one for one in known if len(fingerprint) >= 8 and one.startswith(fingerprint)]
        if len(fitting) != 1:
            listed = ", ".join(one[:16] for one in known) or "none"
            raise UserError(f"{self.name}: has no {name} with the fingerprint {fingerprint} (existing: {listed}).")
        return fitting[0]

    def _record(self, names: Sequence[str], fingerprints: Mapping[str, str | None]) -> BuildRecord:
        """Choose the build that has features, for all splits of the rows or, of a single one, for those that have it."""
        builds = self._builds()
        having = [split for split in self.splits if any(serves(one, split, names[0]) for one in builds)]
        splits = (having or self.splits[:1]) if len(names) == 1 else self.splits
        fixed = {name: fingerprint for name, fingerprint in fingerprints.items() if fingerprint is not None}
        try:
            return choose_build(
                self.store,
                self.name,
                self.build,
                dict.fromkeys(splits, names),
                purpose="Python",
                fingerprints=fixed,
            )
        except ChoiceError as error:
            if len(names) > 1:
                lines = [line.replace("--build ", "build=") for line in error.details]
                raise ChoiceError(f"{self.name}: several builds have {', '.join(names)}. Name one:", lines) from None
            (name,) = names
            lines = [
                f'  fingerprint="{one[:16]}"  {spec_summary(self.store.open_feature(one).spec)}'
                for one in self.features[name]
            ]
            raise ChoiceError(f"{self.name}: has several features {name}. Name one:", lines) from None

    def _joined(self, names: Sequence[str]) -> dict[str, FeatureView]:
        """Return features of one build that every row has."""
        if not names:
            raise UserError(f"{self.name}: name the features to read, such as image, eps (existing: {self._listed}).")
        record = self._record(tuple(dict.fromkeys(names)), {})
        return {name: self._view(record, name, self.table) for name in dict.fromkeys(names)}

    def _view(self, record: BuildRecord, name: str, table: pa.Table) -> FeatureView:
        feature = self.store.open_feature(record.features[name].folder)
        shard, row = feature.index().locate(keys_of_column(table["key"]))
        lacking = int(np.sum(shard < 0))
        if lacking:
            split = table["split"][int(np.flatnonzero(shard < 0)[0])].as_py()
            raise missing_feature(self.store, table, self.name, "Python", name, lacking, table.num_rows, split, (name,))
        return FeatureView(replace(self, table=table, build=record.id), feature, RowReader.of(feature, shard, row))

    @property
    def _listed(self) -> str:
        return ", ".join(self.features) or "none"


@dataclass(frozen=True)
class FeatureView:
    """One feature of a dataset's rows; made by :meth:`DatasetView.feature`.

    Attributes
    ----------
    dataset : DatasetView
        The rows; those of splits for which the feature was not built are left out.
    store : FeatureStore
        The feature as the package itself uses it.
    rows : RowReader
        Where the rows lie.
    """

    dataset: DatasetView
    store: FeatureStore
    rows: RowReader

    def __repr__(self) -> str:
        """Name the feature, its fingerprint and the form of its rows."""
        form = f"{len(self):,} rows of {self.dtype} {self.shape}"
        return f"FeatureView({self.name!r}, fingerprint {self.fingerprint[:16]}, {form})"

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @property
    def name(self) -> str:
        """Name of the feature."""
        return self.store.feature

    @property
    def fingerprint(self) -> str:
        """Fingerprint of everything that decides its values, 64 hex digits."""
        return self.store.fingerprint

    @property
    def spec(self) -> Mapping[str, Any]:
        """Everything that decides its values, as JSON values."""
        return self.store.spec

    @property
    def keys(self) -> list[str]:
        """Key of each row."""
        return self.dataset.keys

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row: (3, S, S) for pixels, (views, C, h, w) for ``teacher``."""
        return self.rows.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Stored type: uint8, float16 or float32. What is stored as integers with scales is read as float16."""
        return self.rows.dtype

    def numpy(self, keys: Sequence[str] | None = None) -> Rows:
        """Return rows.

        Parameters
        ----------
        keys : sequence of str, optional
            Keys of images that the feature has, 32 hex digits each; by default all rows of the view.

        Returns
        -------
        ndarray, shape (N, *shape)
            In the order of the keys, in the stored type.

        Raises
        ------
        UserError
            If the feature has no row for a key.
        IntegrityError
            If a shard is damaged.
        """
        if keys is None:
            return self.rows.read()
        try:
            shard, row = self.store.index().locate(list(keys))
        except ValueError as error:
            raise UserError(f"{self.name}: {error}; the keys of this dataset are in `.keys`.") from None
        absent = [key for key, number in zip(keys, shard.tolist(), strict=True) if number < 0]
        if absent:
            raise UserError(f"{self.name}: has no row for {len(absent):,} of {len(keys):,} keys (first: {absent[0]}).")
        return replace(self.rows, shard=shard, row=row).read()

    def to_dask(self, chunk: int = 256) -> dask.array.Array:
        """Return all rows as a lazy dask array.

        Parameters
        ----------
        chunk : int
            Rows of a block.

        Returns
        -------
        dask.array.Array, shape (N, *shape)
            In the order of ``keys``, in the stored type.
        """
        from .arrays import to_dask

        return to_dask(self.rows, chunk, f"{self.name}-{self.fingerprint[:16]}")

    def to_xarray(self, chunk: int = 256) -> xarray.DataArray:
        """Return all rows as a lazy ``xarray.DataArray``. Needs xarray: ``pip install 'distil-cache[xarray]'``.

        Parameters
        ----------
        chunk : int
            Rows of a dask block.

        Returns
        -------
        xarray.DataArray, shape (N, *shape)
            With the dimension ``sample`` first, and the columns of the table as coordinates.

        Raises
        ------
        UserError
            If xarray is not installed.
        """
        (array,) = _to_xarray({self.name: self}, chunk).data_vars.values()
        return array

    def to_torch(self, *, columns: Sequence[str] = COLUMNS) -> FeatureRows:
        """Return a ``torch.utils.data.Dataset`` of this feature and the table; see :meth:`DatasetView.to_torch`."""
        from .torch_data import FeatureRows

        return FeatureRows({self.name: self.rows}, self.dataset.table, columns)

    def to_webdataset(self, *, export: StrPath | None = None) -> webdataset.DataPipeline:
        """Return a webdataset pipeline over this feature's tars; see :meth:`DatasetView.to_webdataset`."""
        return self.dataset.to_webdataset(self.name, export=export)


def _to_xarray(features: Mapping[str, FeatureView], chunk: int) -> xarray.Dataset:
    from .arrays import to_dataset

    view = next(iter(features.values())).dataset
    return to_dataset(
        {name: feature.to_dask(chunk) for name, feature in features.items()},
        {name: feature.fingerprint for name, feature in features.items()},
        view.table,
        {"dataset": view.name, "revision": view.revision, "build": str(view.build)},
    )
