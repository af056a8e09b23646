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
    import pyarrow as pa
    import xarray

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


def to_dataset(
    arrays: Mapping[str, da.Array], fingerprints: Mapping[str, str], table: pa.Table, attributes: Mapping[str, str]
) -> xarray.Dataset:
    """Return features of the same rows as an xarray Dataset.

    Axes of the same name and length are shared. Where a feature's length is another, its name comes before the axis',
    such as ``teacher_y``.

    Parameters
    ----------
    arrays
        Rows of each feature, (N, *shape).
    fingerprints
        Fingerprint of each feature, an attribute of its variable.
    table
        Columns with the N rows' labels and splits, which become coordinates.
    attributes
        Attributes of the dataset.
    """
    with needs("xarray"):
        import xarray

    lengths: dict[str, int] = {}
    variables = {}
    for name, array in arrays.items():
        axes = []
        shape = array.shape[1:]
        for number, length in enumerate(shape):
            known = _AXES.get(len(shape), ())
            plain = known[number] if known else f"axis_{number}"
            axis = plain if lengths.get(plain, length) == length else f"{name}_{plain}"
            lengths[axis] = length
            axes.append(axis)
        variables[name] = xarray.Variable((SAMPLE, *axes), array, {"fingerprint": fingerprints[name]})
    coordinates = {column: (SAMPLE, table[column].to_numpy()) for column in table.column_names}
    return xarray.Dataset(variables, coordinates, dict(attributes))
