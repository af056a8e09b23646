"""Read webdataset tars as a source: images inside tars, without extraction.

Members whose paths are equal up to the first dot of the file name are one sample. A sample has one image
(by its extension), and its label in ``KEY.json`` (an object with ``label``, and if known ``split``, ``generator``,
``family`` and ``group``) or in ``KEY.cls``. A label is a word, or a number, which means what it means in a table. Missing
values are filled in as for a table. Without a split in the JSON, the first word of the tar's name, or else of its folders
from the inside out, that names one is used, else ``train``. Samples without an image are skipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ....errors import UserError
from ....images.file import EXTENSIONS
from ....storage import AnyPath, map_ordered
from ..file import (
    AS_RECOGNISED,
    DiscoveredSource,
    ReadingOptions,
    SourceAccount,
    SourceFile,
    TarMember,
    printable,
)
from ..folders.families import family_of
from ..folders.split_names import split_of_file
from ..tables.table_columns import FAKE_IS_1, REAL_IS_1, Cells, Rows, column_key, meaning_of
from ..tables.table_labels import meaning_of_cell, names_classes, number_of, read_labels
from ..tables.table_read import cell_of
from ..tree import is_clutter
from ..words import label_of_word, split_of_word
from .tar_index import TarEntry, TarIndex, read_tar_index

WEBDATASET = "webdataset"
PATTERN = "[{train,val,test}/]NAME.tar"
SUFFIX = ".tar"

_MAX_METADATA = 1 << 16
"""Largest .json or .cls member that is read, in bytes."""
_METADATA = ("json", "cls")
_REMOTE_TARS = 8
"""Tars of an object store that are listed at a time."""
_FIELDS = ("label", "split", "generator", "family", "group")
"""What a sample's .json may say of its image."""
_ONE_MEANS = frozenset(map(column_key, (*FAKE_IS_1, *REAL_IS_1)))
"""Names of fields that say what 1 means."""


@dataclass(slots=True)
class _Sample:
    """Images and metadata members of one sample, and the number of its other members."""

    images: list[TarEntry] = field(default_factory=list)
    metadata: dict[str, TarEntry] = field(default_factory=dict)
    others: int = 0


class _Described(NamedTuple):
    """A sample with an image: what its metadata say, and the image's place."""

    where: str
    fields: dict[str, object]
    path: str
    member: TarMember


def discover_tars(root: AnyPath, tars: Sequence[str], reading: ReadingOptions = AS_RECOGNISED) -> DiscoveredSource:
    """List the images in tars, without opening any image.

    Parameters
    ----------
    root
        The source's folder.
    tars
        Posix paths relative to it.
    reading
        What the user says of words.

    Returns
    -------
    DiscoveredSource
        Files in the order of the tars' paths, then of the members.

    Raises
    ------
    UserError
        For a tar that cannot be used, a sample with two images or without a label, or if there is no image at all.
    """
    samples: list[_Described] = []
    ignored = 0
    for tar, index in _indexes(root, sorted(tars)):
        grouped = _grouped(index)
        ignored += sum(sample.others + (0 if sample.images else len(sample.metadata)) for sample in grouped.values())
        samples += [_described(root, tar, index, *sample) for sample in grouped.items() if sample[1].images]
    if not samples:
        raise UserError(
            f"{root}: no image in its {len(tars)} tars "
            f"({ignored} other members; expected {', '.join(sorted(EXTENSIONS))})."
        )
    labels, notes = _labels(str(root), samples, reading)
    default = "train" if reading.split is None else reading.split
    files = [_source_file(root, sample, label, default) for sample, label in zip(samples, labels, strict=True)]
    account = SourceAccount(str(root), WEBDATASET, len(files) + ignored, len(files), ignored, notes=notes)
    return DiscoveredSource(WEBDATASET, files, account)


def _indexes(root: AnyPath, tars: Sequence[str]) -> Iterator[tuple[str, TarIndex]]:
    """Return each tar with its index, which includes the bytes of metadata members."""
    indexes = map_ordered(lambda tar: read_tar_index(root / tar, _is_metadata), tars, root, max_workers=_REMOTE_TARS)
    return zip(tars, indexes, strict=True)


def _is_metadata(name: str, length: int) -> bool:
    """Check whether a member is metadata of a sample (.json, .cls) and small enough to be read."""
    return length <= _MAX_METADATA and name.rpartition("/")[2].partition(".")[2].lower() in _METADATA


def _grouped(index: TarIndex) -> dict[str, _Sample]:
    """Return sample name -> members, in the order of their first members."""
    samples: dict[str, _Sample] = {}
    for entry in index.entries:
        folder, _, base = entry.name.rpartition("/")
        if any(is_clutter(part) for part in entry.name.split("/")):
            continue
        stem, _, extension = base.partition(".")
        sample = samples.setdefault(f"{folder}/{stem}", _Sample())
        if extension.rpartition(".")[2].lower() in EXTENSIONS:
            sample.images.append(entry)
        elif extension.lower() in _METADATA:
            sample.metadata[extension.lower()] = entry
        else:
            sample.others += 1
    return samples


def _described(root: AnyPath, tar: str, index: TarIndex, name: str, sample: _Sample) -> _Described:
    """Return what is known of a sample that has an image."""
    where = f"{root / tar}, sample {printable(name.lstrip('/'))}"
    if len(sample.images) > 1:
        two = " and ".join(printable(image.name) for image in sample.images[:2])
        raise UserError(f"{where}: has the images {two}. Leave one in each sample.")
    (image,) = sample.images
    member = TarMember(tar, index.bytes, index.mtime_ns, image.offset, image.length)
    return _Described(where, _fields(where, sample), f"{tar}/{image.name}", member)


def _labels(root: str, samples: Sequence[_Described], reading: ReadingOptions) -> tuple[list[int], tuple[str, ...]]:
    """Return the labels of all samples, and notes on what they were taken for."""
    cells = [cell_of(sample.fields.get("label")).strip() for sample in samples]
    for sample, cell in zip(samples, cells, strict=True):
        if meaning_of_cell(cell, reading) is None and number_of(cell) not in (0, 1):
            raise UserError(
                f"{sample.where}: needs a label, as `label` in a .json member or a .cls member: real, fake, 0 or 1, not "
                f"{cell!r}. Say what other words mean with --labels."
            )
    generators = [_text(sample.where, sample.fields, "generator") for sample in samples]
    found = read_labels(
        Rows(root, lambda row: samples[row].where),
        Cells({**_other_labels(samples), "label": cells}, len(cells)),
        generators,
        [sample.member.archive + "/" + sample.path for sample in samples],
        reading,
    )
    return [label for label in found.labels if label is not None], found.notes


def _other_labels(samples: Sequence[_Described]) -> dict[str, list[str]]:
    """Return fields beside ``label`` that say the class of every sample: they settle what its numbers mean."""
    names = [name for name in (samples[0].fields if samples else ()) if name not in _FIELDS]
    columns = {name: [cell_of(sample.fields.get(name)).strip() for sample in samples] for name in names}
    return {
        name: cells
        for name, cells in columns.items()
        if names_classes([cell or "?" for cell in cells]) or all(number_of(cell) in (0, 1) for cell in cells)
    }


def _says_class(name: str, cell: object) -> bool:
    """Check whether a field of another name is a word for a class, or one such as ``is_real``."""
    if isinstance(cell, str) and label_of_word(cell) is not None:
        return meaning_of(name) in ("label", None)
    return column_key(name) in _ONE_MEANS and number_of(cell_of(cell)) in (0, 1)


def _source_file(root: AnyPath, sample: _Described, label: int, default: str) -> SourceFile:
    """Return the source file of a sample."""
    where, fields = sample.where, sample.fields
    named = _text(where, fields, "split")
    split = split_of_word(named) if named else split_of_file(sample.member.archive) or default
    if split is None:
        raise UserError(f"{where}: the split {named!r} is none of train, val, test.")
    generator = _text(where, fields, "generator")
    if not generator or label_of_word(generator) == label:
        generator = ("real", "fake")[label]
    return SourceFile(
        root=str(root),
        path=sample.path,
        label=label,
        split=split,
        generator=generator,
        family=_text(where, fields, "family") or family_of(generator),
        group=_text(where, fields, "group"),
        member=sample.member,
    )


def _fields(where: str, sample: _Sample) -> dict[str, object]:
    """Return the fields of the sample's .json, with the .cls as label if the .json has none."""
    fields: dict[str, object] = {}
    for kind, entry in sorted(sample.metadata.items()):  # cls before json
        if entry.data is None:
            raise UserError(
                f"{where}: its .{kind} has {entry.length:,} bytes; more than {_MAX_METADATA:,} are not read."
            )
        if kind == "cls":
            fields["label"] = entry.data.decode("utf-8", "replace")
            continue
        try:
            value = json.loads(entry.data)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{where}: its .json cannot be read ({error}).") from error
        if not isinstance(value, dict):
            raise UserError(f"{where}: its .json is not an object.")
        fields |= {name: cell for name, cell in value.items() if name in _FIELDS or _says_class(name, cell)}
    return fields


def _text(where: str, fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: `{name}` in its .json is {value!r}, not a string.")
    return (value or "").strip()
