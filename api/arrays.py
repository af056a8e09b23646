"""Features as lazy arrays of dask and xarray."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import dask.array as da
from dask.delayed import delayed

from ..errors import UsageError
from .extras import needs
from .rows import RowReader

if TYPE_CHECKING:
    import xarray

    from .views import FeatureView

SAMPLE = "sample"
_AXES = {1: ("value",), 2: ("view", "value"), 3: ("channel", "y", "x"), 4: ("view", "channel", "y", "x")}
"""Names of a row's axes by their number."""


def to_dask(rows: RowReader, chunk: int, name: str) -> da.Array:
    """Return rows as a dask array, (N, *shape); each block of ``chunk`` rows is one task that reads them."""
    if chunk < 1:
        raise UsageError(f"chunk {chunk}: a block has at least one row.")
    blocks = []
    for start in range(0, len(rows), chunk):
        part = rows.part(slice(start, start + chunk))
        block = delayed(RowReader.read, name=name, pure=True)(part)
        blocks.append(da.from_delayed(block, (len(part), *rows.shape), rows.dtype))
    joined: da.Array = da.concatenate(blocks)
    return joined


def to_array(feature: FeatureView, chunk: int) -> xarray.DataArray:
    """Return a feature as an xarray DataArray."""
    (array,) = to_dataset({feature.name: feature}, chunk).data_vars.values()
    return array


def to_dataset(features: Mapping[str, FeatureView], chunk: int) -> xarray.Dataset:
    """Return features of the same rows as an xarray Dataset.

    Axes of the same name and length are shared. Where a feature's length is another, its name comes before the axis',
    such as ``teacher_y``.
    """
    with needs("xarray"):
        import xarray

    lengths: dict[str, int] = {}
    variables = {}
    for name, feature in features.items():
        axes = []
        for number, length in enumerate(feature.shape):
            known = _AXES.get(len(feature.shape), ())
            plain = known[number] if known else f"axis_{number}"
            axis = plain if lengths.get(plain, length) == length else f"{name}_{plain}"
            lengths[axis] = length
            axes.append(axis)
        attributes = {"fingerprint": feature.fingerprint}
        variables[name] = xarray.Variable((SAMPLE, *axes), feature.to_dask(chunk), attributes)
    view = next(iter(features.values())).dataset
    coordinates = {column: (SAMPLE, view.table[column].to_numpy()) for column in view.table.column_names}
    attributes = {"dataset": view.name, "revision": view.revision, "build": str(view.build)}
    return xarray.Dataset(variables, coordinates, attributes)
