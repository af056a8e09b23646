"""The revision of a dataset: a hash of its rows that neither their order nor the place of a file decides."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..shards.keys import hex_keys, keys_of_column

REVISION_DIGITS = 16
_BLOCK = 1 << 18


def revision_of(table: pa.Table) -> str:
    """Return the hash of the sorted (key, label, split, generator, group) rows, 16 hex digits.

    Each row enters as a JSON array on its own line. Paths, sizes and the order of the rows do not enter: moving or
    touching a file changes nothing. ValueError if a key is not 32 hex digits.
    """
    keys = keys_of_column(table.column("key"))
    endings, kind = _kinds(table)
    order = np.lexsort((kind, keys))
    digest = hashlib.sha256()
    for start in range(0, len(order), _BLOCK):
        rows = order[start : start + _BLOCK]
        pairs = zip(hex_keys(keys[rows]), kind[rows].tolist(), strict=True)
        digest.update("".join([f'["{key}",{endings[number]}\n' for key, number in pairs]).encode())
    return digest.hexdigest()[:REVISION_DIGITS]


def _kinds(table: pa.Table) -> tuple[list[str], NDArray[np.intp]]:
    """Return the distinct (label, split, generator, group) as sorted ends of a row's JSON, and which one each row has."""
    code = np.zeros(table.num_rows, np.int64)
    values: list[list[str | int]] = []
    for name in ("label", "split", "generator", "group"):
        coded = table.column(name).combine_chunks().dictionary_encode()
        found = coded.dictionary.to_pylist()
        values.append(sorted(found))
        place = {value: number for number, value in enumerate(values[-1])}
        code = code * len(found) + np.array([place[value] for value in found], np.int64)[coded.indices.to_numpy()]
    distinct, kind = np.unique(code, return_inverse=True)
    sizes = [len(one) for one in values]
    places = np.unravel_index(distinct, sizes) if len(distinct) else ()
    kinds = zip(*([one[n] for n in place.tolist()] for one, place in zip(values, places, strict=False)), strict=True)
    return [json.dumps(one, separators=(",", ":"))[1:] for one in kinds], kind
