"""The checks of an audit: which images are judged together, by which features, and the sentences for the findings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...cache.shards.keys import BINARY
from ...storage.disk_array import numbered
from ..scan.rows import RowTable, ScannedRow
from ..sources.file import SourceFile
from .classify import MIN_IMAGES, Separability, measure_separability
from .header_features import (
    CONTENT_FEATURES,
    HEADER_FEATURES,
    OUTLIVING_FEATURES,
    FeatureValue,
    HeaderFacts,
    header_features,
)
from .pixel_features import PixelFacts

SUSPICIOUS = 0.6
"""AUC above which a check counts as a finding, if its interval is above chance."""

ERROR = 0.05
"""Probability that any interval of an audit misses, divided equally among the checks."""

_FOUND_IN_BOTH = 0.2
"""Share of each class in which an earlier compression must be found for both classes to count as compressed twice."""
_NEAR_QUALITY = 2
_MOST_FEATURES = 5
_MOST_VALUES = 3  # values of a feature that a sentence names
_LONGEST_VALUE = 48  # characters of a value


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One image of an audit.

    Attributes
    ----------
    file
        The file.
    key
        Key of its bytes.
    facts
        Header features; None for an image in a cache.
    group
        Images with the same number are near duplicates and stay in one fold.
    pixels
        Pixel features, if they were measured.
    square
        The image as :func:`.embedding.square` reduces it, if its content is examined.
    """

    file: SourceFile
    key: str
    facts: HeaderFacts | None
    group: int
    pixels: PixelFacts | None = None
    square: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)


def header_checks(rows: Sequence[AuditRow]) -> list[dict[str, Any]]:
    """Judge the headers of all rows, of each split and of each generator."""
    return _checked(list(_of_headers(rows)))


def all_checks(rows: Sequence[AuditRow], *, harmonized: bool = False) -> list[dict[str, Any]]:
    """Judge headers and, for rows that have them, pixels.

    Parameters
    ----------
    rows
        Images.
    harmonized
        Judge also, as ``size``, the features of headers that outlive a compression of all images (``--harmonize``).
    """
    measured = [row for row in rows if row.pixels is not None]
    sizes = _of_headers(rows, "size", OUTLIVING_FEATURES) if harmonized else ()
    return _checked([*_of_headers(rows), *sizes, *(_of_pixels(measured) if measured else ())])


def pixel_checks(rows: Sequence[AuditRow]) -> list[dict[str, Any]]:
    """Judge pixels only; every row has them."""
    return _checked(list(_of_pixels(rows)))


def judge_content_features(rows: Sequence[AuditRow]) -> list[dict[str, Any]]:
    """Judge each feature that also depends on the content, separately. They do not affect the verdict."""
    found = []
    for name in CONTENT_FEATURES:
        judgement, values = _judged(rows, partial(_header_features, names=(name,)), 1 - ERROR)
        if judgement is not None:
            found.append(
                {
                    "feature": name,
                    "auc": judgement.auc,
                    "interval": list(judgement.interval),
                    "words": _description(name, rows, values),
                }
            )
    return found


def choose_evenly(files: Sequence[SourceFile], keys: Sequence[str], most: int) -> list[int]:
    """Choose at most ``most`` images of each label, evenly over splits and generators.

    Within a split and generator, images are taken in the order of their keys, which is random with respect to content
    and independent of the order of the files.

    Returns
    -------
    list of int
        Indices into ``files``, sorted.
    """
    chosen = []
    for label in (0, 1):
        cells: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index in sorted(range(len(files)), key=lambda index: (keys[index], files[index].path)):
            if files[index].label == label:
                cells[files[index].split, files[index].generator].append(index)
        turns = sorted((turn, cell, index) for cell, indices in cells.items() for turn, index in enumerate(indices))
        chosen += [index for _, _, index in turns[:most]]
    return sorted(chosen)


def choose_evenly_of_table(rows: RowTable, most: int) -> list[ScannedRow]:
    """Choose rows as :func:`choose_evenly` does, holding no more than those that may be chosen in memory."""
    cell_of: dict[tuple[int, str, str], int] = {}
    cells = [cell_of.setdefault((kind.label, kind.split, kind.generator), len(cell_of)) for kind in rows.kinds]
    cell = np.array(cells, np.int64)
    first = {number: np.empty(0, _CANDIDATE) for number in cell_of.values()}
    for places, block in numbered(rows.blocks()):
        found = np.empty(len(block), _CANDIDATE)
        found["key"], found["row"] = block["key"], places
        of_row = cell[block["kind"]]
        for number in np.unique(of_row).tolist():
            candidates = np.concatenate([first[number], found[of_row == number]])
            candidates = candidates[np.argsort(candidates["key"], kind="stable")]
            last = candidates["key"][most - 1 : most]  # the paths decide between rows with this key
            stop = int(np.searchsorted(candidates["key"], last, side="right")[0]) if len(last) else len(candidates)
            first[number] = candidates[:stop]
    numbers = np.sort(np.concatenate([np.empty(0, np.int64), *(candidates["row"] for candidates in first.values())]))
    known = rows.at(numbers)
    chosen = choose_evenly([row.file for row in known], [row.key for row in known], most)
    return [known[index] for index in chosen]


_CANDIDATE = np.dtype([("key", BINARY), ("row", "<i8")])


def audit_parts(files: Sequence[SourceFile]) -> Iterator[tuple[str, list[int]]]:
    """Yield the name and the indices of each set to judge: all images, each split, each generator.

    The set of a generator is its fakes and the reals that carry its name; without such reals, those of the splits and
    source groups of its fakes. Sets that equal the whole, or lack a class, are left out.
    """
    whole = list(range(len(files)))
    yield "all", whole
    for split in sorted({file.split for file in files}):
        indices = [index for index in whole if files[index].split == split]
        if len(indices) < len(whole) and _has_both(files, indices):
            yield f"split {split}", indices
    for generator in sorted({file.generator for file in files if file.label == 1}):
        indices = _of_generator(files, generator)
        if len(indices) < len(whole) and _has_both(files, indices):
            yield f"generator {generator}", indices


def _has_both(files: Sequence[SourceFile], indices: Sequence[int]) -> bool:
    return len({files[index].label for index in indices}) == 2


def _of_generator(files: Sequence[SourceFile], generator: str) -> list[int]:
    own = [index for index, file in enumerate(files) if file.generator == generator]
    if any(files[index].label == 0 for index in own):
        return own
    origins = {(files[index].split, files[index].group) for index in own}
    return sorted(
        [*own, *(index for index, file in enumerate(files) if file.label == 0 and (file.split, file.group) in origins)]
    )


_Check = tuple[str, str, Sequence[AuditRow], Callable[[AuditRow], Mapping[str, FeatureValue]]]


def _of_headers(
    rows: Sequence[AuditRow], kind: str = "headers", names: Sequence[str] = HEADER_FEATURES
) -> Iterator[_Check]:
    for name, indices in audit_parts([row.file for row in rows]):
        yield name, kind, [rows[index] for index in indices], partial(_header_features, names=names)


def _of_pixels(measured: Sequence[AuditRow]) -> Iterator[_Check]:
    rows = settled_qualities(measured)
    for name, indices in audit_parts([row.file for row in rows]):
        members = [rows[index] for index in indices]
        with_grid = all(_pixels_of(row).own_quality is None for row in members)
        yield name, "pixels", members, partial(_pixel_features, with_grid=with_grid)


def settled_qualities(rows: Sequence[AuditRow]) -> list[AuditRow]:
    """Return the rows with the earlier JPEG qualities that may be compared, if both classes were compressed twice.

    Under a later compression, an earlier one is found in some images and not in others, and its quality is off by a
    little; both depend on the content. So if it is found in a good share of each class, the images where it was not
    found, and those with nearly the most common quality, count as having the most common one.
    """
    twice = [row for row in rows if _compressed_again(row)]
    shares = [
        float(
            np.mean(
                [_pixels_of(row).earlier_quality is not None for row in twice if row.file.label == label] or [False]
            )
        )
        for label in (0, 1)
    ]
    if min(shares) < _FOUND_IN_BOTH:
        return list(rows)
    found = [quality for row in twice if (quality := _pixels_of(row).earlier_quality) is not None]
    common = Counter(found).most_common(1)[0][0]
    settled = []
    for row in rows:
        quality = _pixels_of(row).earlier_quality
        near = quality is None or abs(quality - common) <= _NEAR_QUALITY
        if _compressed_again(row) and near:
            row = replace(row, pixels=replace(_pixels_of(row), earlier_quality=common))
        settled.append(row)
    return settled


def _compressed_again(row: AuditRow) -> bool:
    """Return whether an image's last compression is known apart from an earlier one."""
    pixels = _pixels_of(row)
    return pixels.own_quality is not None and pixels.own_quality != pixels.earlier_quality


def _header_features(row: AuditRow, names: Sequence[str]) -> dict[str, FeatureValue]:
    assert row.facts is not None
    values = header_features(row.facts)
    return {name: values[name] for name in names}


def _pixel_features(row: AuditRow, with_grid: bool) -> dict[str, FeatureValue]:
    return _pixels_of(row).features(with_grid)


def _pixels_of(row: AuditRow) -> PixelFacts:
    assert row.pixels is not None
    return row.pixels


def _checked(checks: Sequence[_Check]) -> list[dict[str, Any]]:
    level = 1 - ERROR / max(1, len(checks))
    return [_result(part, kind, rows, features, level) for part, kind, rows, features in checks]


def _judged(
    rows: Sequence[AuditRow], features: Callable[[AuditRow], Mapping[str, FeatureValue]], level: float
) -> tuple[Separability | None, list[Mapping[str, FeatureValue]]]:
    values = [features(row) for row in rows]
    return measure_separability(values, [row.file.label for row in rows], [row.group for row in rows], level), values


def _result(
    part: str,
    kind: str,
    rows: Sequence[AuditRow],
    features: Callable[[AuditRow], Mapping[str, FeatureValue]],
    level: float,
) -> dict[str, Any]:
    judgement, values = _judged(rows, features, level)
    fakes = sum(row.file.label for row in rows)
    result: dict[str, Any] = {"part": part, "features": kind, "real": len(rows) - fakes, "fake": fakes}
    if judgement is None:
        few = f"fewer than {MIN_IMAGES} images of a class that do not look alike"
        return {
            **result,
            "auc": None,
            "interval": None,
            "level": level,
            "found": False,
            "reason": few,
            "carried_by": [],
        }
    found = judgement.auc > SUSPICIOUS and judgement.interval[0] > 0.5
    clear = [(name, area) for name, area in judgement.alone if area > SUSPICIOUS] or judgement.alone[:1]
    carried = [
        {"feature": name, "auc": area, "words": _description(name, rows, values)}
        for name, area in clear[:_MOST_FEATURES]
    ]
    return {
        **result,
        "auc": judgement.auc,
        "interval": list(judgement.interval),
        "level": level,
        "found": found,
        "reason": "",
        "carried_by": carried if found else [],
    }


def _description(name: str, rows: Sequence[AuditRow], values: Sequence[Mapping[str, FeatureValue]]) -> str:
    of_label: list[list[FeatureValue]] = [[], []]
    for row, value in zip(rows, values, strict=True):
        of_label[row.file.label].append(value[name])
    return describe_check(name, *of_label)


def describe_check(name: str, real: Sequence[FeatureValue], generated: Sequence[FeatureValue]) -> str:
    """Return a sentence such as ``JPEG quality: real 54 to 96 (median 96), generated none``. Neither may be empty."""
    return f"{name}: real {_summary(real)}, generated {_summary(generated)}"


def _summary(values: Sequence[FeatureValue]) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return "none"
    numbers = [float(value) for value in there if not isinstance(value, str)]
    text = _number_summary(numbers) if len(numbers) == len(there) else _text_summary([str(value) for value in there])
    missing = len(values) - len(there)
    return f"{text} [none in {missing:,} of {len(values):,}]" if missing else text


def _number_summary(values: Sequence[float]) -> str:
    low, median, high = (_number(value) for value in np.quantile(values, [0, 0.5, 1]))
    return low if low == high else f"{low} to {high} (median {median})"


def _number(value: float) -> str:
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}"


def _text_summary(values: Sequence[str]) -> str:
    counts = Counter(values)
    shown = [
        f"{_shortened(value)} {100 * count / len(values):.0f} %" for value, count in counts.most_common(_MOST_VALUES)
    ]
    others = len(counts) - len(shown)
    return "; ".join(shown) + (f"; {others:,} others" if others > 0 else "")


def _shortened(value: str) -> str:
    if not value:
        return "(nothing)"
    return value if len(value) <= _LONGEST_VALUE else f"{value[: _LONGEST_VALUE - 1]}…"
