"""Example images for the report: the most confident mistakes first, then some correct ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..data.select import column

if TYPE_CHECKING:
    from ..data.dataset import FeatureDataset

SAMPLES = 12
MISTAKES = 8
_COLOURS = 3
EPS_RANGE = 3.0
"""Noise is drawn from black at -3 to white at 3: three standard deviations of white noise."""

_Array = npt.NDArray[Any]


def write_gallery(folder: Path, part: FeatureDataset, logits: _Array, scores: _Array) -> None:
    """Write ``gallery.json`` and one PNG per image and feature.

    Parameters
    ----------
    folder
        Where to write; must not exist.
    part
        Rows with features that lie over the image; those of three channels are drawn.
    logits, scores : ndarray, shape (rows,)
        The student's outputs.
    """
    folder.mkdir()
    keys, generators = column(part.table, "key"), column(part.table, "generator")
    rows = chosen_rows(keys, part.label, logits)
    images = {name: part.read(name, rows) for name in part.stores if len(rows) and part.row_shape(name)[0] == _COLOURS}
    entries = []
    for index, row in enumerate(rows):
        entry: dict[str, Any] = {
            "key": str(keys[row]),
            "label": int(part.label[row]),
            "generator": str(generators[row]),
            "score": float(scores[row]),
        }
        for name, values in images.items():
            entry[name] = f"{keys[row]}-{name}.png"
            Image.fromarray(as_pixels(values[index])).save(folder / entry[name])
        entries.append(entry)
    (folder / "gallery.json").write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", "utf-8")


def chosen_rows(keys: _Array, label: _Array, logits: _Array) -> npt.NDArray[np.int64]:
    """Return the rows to show: at most 12, each image once, up to 8 mistakes first, the most confident first.

    Both groups take as many reals as fakes, as far as there are enough, so that neither class crowds out the other.

    Parameters
    ----------
    keys, label, logits : ndarray, shape (rows,)
        Key, label and logit of each row.

    Returns
    -------
    ndarray
        Row numbers, int64.
    """
    by_confidence = np.argsort(-np.abs(logits), kind="stable")
    _, first = np.unique(keys[by_confidence], return_index=True)
    order = by_confidence[np.sort(first)]
    right = (logits[order] > 0) == (label[order] == 1)
    mistakes = _of_both_classes(order[~right], label, MISTAKES)
    correct = _of_both_classes(order[right], label, SAMPLES - len(mistakes))
    return np.concatenate([mistakes, correct]).astype(np.int64)


def _of_both_classes(order: _Array, label: _Array, count: int) -> _Array:
    """Take up to ``count`` rows in turns from the two classes, each from its head; they keep their order."""
    turn = np.empty(len(order), dtype=np.int64)
    for value in (0, 1):
        of_class = label[order] == value
        turn[of_class] = np.arange(of_class.sum())
    return order[np.sort(np.argsort(turn, kind="stable")[:count])]


def as_pixels(values: _Array) -> npt.NDArray[np.uint8]:
    """Convert (3, S, S) uint8, or noise as float, to (S, S, 3) uint8."""
    if values.dtype != np.uint8:
        unit = np.clip(values.astype(np.float32), -EPS_RANGE, EPS_RANGE) / (2 * EPS_RANGE) + 0.5
        values = np.round(unit * 255).astype(np.uint8)
    return np.ascontiguousarray(values.transpose(1, 2, 0))
