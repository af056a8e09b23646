"""Read webdataset tars as a source: images inside tars, without extraction.

Members whose paths are equal up to the first dot of the file name are one sample. A sample has one image
(by its extension), and its label in ``KEY.json`` (an object with ``label``, and if known ``split``, ``generator``,
``family`` and ``group``) or in ``KEY.cls`` (0 real, 1 fake). A label is 0, 1, ``real`` or ``fake``. Missing values
are filled in as for a table. Without a split in the JSON, the first word of the tar's name, or else of its folders from
the inside out, that names one is used, else ``train``. Samples without an image are skipped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ...errors import UserError
from ...images.file import EXTENSIONS
from ...storage import AnyPath
from .file import LABELS, DiscoveredSource, SourceAccount, SourceFile, TarMember, printable
from .layouts import family_of
from .tar_index import TarEntry, TarIndex, read_tar_index
from .tree import SPLITS, is_clutter

WEBDATASET = "webdataset"
PATTERN = "[{train,val,test}/]NAME.tar"
SUFFIX = ".tar"

_MAX_METADATA = 1 << 16
"""Largest .json or .cls member that is read, in bytes."""
_METADATA = ("json", "cls")
_REMOTE_TARS = 8
"""Tars of an object store that are listed at a time."""


@dataclass(slots=True)
class _Sample:
    """Images and metadata members of one sample, and the number of its other members."""

    images: list[TarEntry] = field(default_factory=list)
    metadata: dict[str, TarEntry] = field(default_factory=dict)
    others: int = 0


def discover_tars(root: AnyPath, tars: Sequence[str]) -> DiscoveredSource:
    """List the images in tars, without opening any image.

    Parameters
    ----------
    root
        The source's folder.
    tars
        Posix paths relative to it.

    Returns
    -------
    DiscoveredSource
        Files in the order of the tars' paths, then of the members.

    Raises
    ------
    UserError
        For a tar that cannot be used, a sample with two images or without a label, or if there is no image at all.
    """
    files: list[SourceFile] = []
    ignored = 0
    for tar, index in _indexes(root, sorted(tars)):
        samples = _grouped(index)
        ignored += sum(sample.others + (0 if sample.images else len(sample.metadata)) for sample in samples.values())
        files += [_source_file(root, tar, index, *sample) for sample in samples.items() if sample[1].images]
    if not files:
        raise UserError(
            f"{root}: no image in its {len(tars)} tars "
            f"({ignored} other members; expected {', '.join(sorted(EXTENSIONS))})."
        )
    account = SourceAccount(str(root), WEBDATASET, len(files) + ignored, len(files), ignored)
    return DiscoveredSource(WEBDATASET, files, account)


def _indexes(root: AnyPath, tars: Sequence[str]) -> Iterator[tuple[str, TarIndex]]:
    """Yield each tar with its index, which includes the bytes of metadata members."""
    pool = ThreadPoolExecutor(1 if isinstance(root, Path) else _REMOTE_TARS)
    try:
        yield from zip(tars, pool.map(lambda tar: read_tar_index(root / tar, _is_metadata), tars), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


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


def _source_file(root: AnyPath, tar: str, index: TarIndex, name: str, sample: _Sample) -> SourceFile:
    """Return the source file of a sample that has an image."""
    where = f"{root / tar}, sample {printable(name.lstrip('/'))}"
    if len(sample.images) > 1:
        two = " and ".join(printable(image.name) for image in sample.images[:2])
        raise UserError(f"{where}: has the images {two}. Leave one in each sample.")
    fields = _fields(where, sample)
    label = LABELS.get(str(fields.get("label", "")).strip().lower())
    if label is None:
        raise UserError(
            f"{where}: needs a label, as `label` in a .json member or a .cls member: one of {', '.join(LABELS)}."
        )
    split = _text(where, fields, "split").lower() or _split_of(tar)
    if split not in SPLITS:
        raise UserError(f"{where}: the split {split!r} is none of train, val, test.")
    generator = _text(where, fields, "generator") or ("real", "fake")[label]
    (image,) = sample.images
    return SourceFile(
        root=str(root),
        path=f"{tar}/{image.name}",
        label=label,
        split=SPLITS[split],
        generator=generator,
        family=_text(where, fields, "family") or family_of(generator),
        group=_text(where, fields, "group"),
        member=TarMember(tar, image.offset, image.length, index.bytes, index.mtime_ns),
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
        fields |= {name: value[name] for name in ("label", "split", "generator", "family", "group") if name in value}
    return fields


def _text(where: str, fields: dict[str, object], name: str) -> str:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise UserError(f"{where}: `{name}` in its .json is {value!r}, not a string.")
    return (value or "").strip()


def _split_of(tar: str) -> str:
    return next((word for word in _words(tar) if word in SPLITS), "train")


def _words(tar: str) -> Iterator[str]:
    """Yield the words of the tar's name, then of its folders from the inside out."""
    for part in reversed(PurePosixPath(tar).parts):
        yield from re.findall("[a-z]+", part.lower())
