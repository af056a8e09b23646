"""Pictures of a few verdicts for the report: the most confident mistakes first, then some that are right."""

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
EPS_RANGE = 3.0
"""Noise is shown from black at -3 to white at 3: three standard deviations of white noise."""

Array = npt.NDArray[Any]


def write_gallery(folder: Path, part: FeatureDataset, logits: Array, scores: Array) -> None:
    """Write ``gallery.json`` and one PNG for each picture that the part's build has.

    part : rows with some of image, eps and dire; logits, scores : (rows,).
    """
    folder.mkdir()
    keys, generators = column(part.table, "key"), column(part.table, "generator")
    rows = chosen_rows(keys, part.label, logits)
    pictures = {name: part.read(name, rows) for name in part.stores if len(rows)}
    entries = []
    for place, row in enumerate(rows):
        entry: dict[str, Any] = {
            "key": str(keys[row]),
            "label": int(part.label[row]),
            "generator": str(generators[row]),
            "score": float(scores[row]),
            "image": None,
            "eps": None,
            "dire": None,
        }
        for name, values in pictures.items():
            entry[name] = f"{keys[row]}-{name}.png"
            Image.fromarray(as_pixels(values[place])).save(folder / entry[name])
        entries.append(entry)
    (folder / "gallery.json").write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", "utf-8")


def chosen_rows(keys: Array, label: Array, logits: Array) -> npt.NDArray[np.int64]:
    """Rows to show, at most 12 and every picture once: up to 8 mistakes, then right ones, each the surest first.

    keys, label, logits : (rows,). Both parts take as many reals as generated images, as far as there are so many, so that
    neither class crowds out the other.
    """
    sure_first = np.argsort(-np.abs(logits), kind="stable")
    _, first = np.unique(keys[sure_first], return_index=True)
    order = sure_first[np.sort(first)]
    right = (logits[order] > 0) == (label[order] == 1)
    mistakes = _of_both_classes(order[~right], label, MISTAKES)
    correct = _of_both_classes(order[right], label, SAMPLES - len(mistakes))
    return np.concatenate([mistakes, correct]).astype(np.int64)


def _of_both_classes(order: Array, label: Array, count: int) -> Array:
    """Take up to ``count`` rows in turns from the two classes, each from its head; they keep the order they came in."""
    turn = np.empty(len(order), dtype=np.int64)
    for value in (0, 1):
        of_class = label[order] == value
        turn[of_class] = np.arange(of_class.sum())
    return order[np.sort(np.argsort(turn, kind="stable")[:count])]


def as_pixels(values: Array) -> npt.NDArray[np.uint8]:
    """(3, S, S) uint8 as it is, or noise as float, to (S, S, 3) uint8."""
    if values.dtype != np.uint8:
        unit = np.clip(values.astype(np.float32), -EPS_RANGE, EPS_RANGE) / (2 * EPS_RANGE) + 0.5
        values = np.round(unit * 255).astype(np.uint8)
    return np.ascontiguousarray(values.transpose(1, 2, 0))
