"""Loose files beside their images, as the scripts of DistilDIRE and DIRE leave them: which belong together.

========== ==================================================== ===========================================
kind       folders                                              files of ``a.b.jpg``
========== ==================================================== ===========================================
distildire [SPLIT/]{images,eps,dire}/{reals,fakes}              ``eps``: a.pt or a.b.pt; ``dire``: a.b.jpg or a.b.png
dire       {images,recons,dire}/ in any layout of folders       ``recons``, ``dire``: a.b.jpg or a.b.png
========== ==================================================== ===========================================

DistilDIRE cuts names at the first dot, so ``a.png``, ``a.jpg`` and ``a.b.png`` share one ``a.pt``, which belongs to the
one written last. A file that several images claim is given to none of them.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...choices import ImportKind
from ...errors import UserError
from ..sources.discover import discover, files_of
from ..sources.file import SourceFile
from ..sources.layouts import ImageFolder
from ..sources.tree import SPLITS, LocalTree

PARTS: Mapping[ImportKind, Mapping[str, str]] = {
    "distildire": {"eps": "eps", "dire": "dire"},
    "dire": {"recon": "recons", "dire": "dire"},
}
"""Kind -> feature -> folder beside ``images``."""


@dataclass(frozen=True, slots=True)
class LooseSample:
    """An image and the files of its features.

    parts : feature -> path, without those that are not there. shared : features whose file other images claim as well.
    """

    file: SourceFile
    parts: Mapping[str, str]
    shared: frozenset[str]


def find_loose_samples(source: Path, kind: ImportKind, layout: str | None) -> list[LooseSample]:
    """List the images of a folder with the files of their features, without opening any.

    layout : of the folders below ``images``, for kind ``dire``. Raises UserError if the folders are not as expected.
    """
    files = _distildire_images(source) if kind == "distildire" else _dire_images(source, layout)
    names: dict[str, frozenset[str]] = {}
    parts = [{feature: _present(_candidates(file, kind, feature), names) for feature in PARTS[kind]} for file in files]
    claims = Counter(path for found in parts for path in found.values() if path is not None)
    return [
        LooseSample(
            file=file,
            parts={feature: path for feature, path in found.items() if path is not None},
            shared=frozenset(feature for feature, path in found.items() if path is not None and claims[path] > 1),
        )
        for file, found in zip(files, parts, strict=True)
    ]


def wanted_parts(samples: Iterable[LooseSample], asked: Collection[str]) -> dict[str, frozenset[str]]:
    """Feature -> the splits where at least one image has its file; only of the ``asked`` features, unless empty."""
    found: dict[str, set[str]] = {}
    for sample in samples:
        for feature in sample.parts:
            if not asked or feature in asked:
                found.setdefault(feature, set()).add(sample.file.split)
    return {feature: frozenset(splits) for feature, splits in found.items()}


def _distildire_images(source: Path) -> list[SourceFile]:
    """List the images of the splits' folders in ``source``, or of the one split whose folder it is."""
    if not (source / "images").is_dir():
        return discover(source, "distildire").files
    split = SPLITS.get(source.absolute().name, "train")
    leaves = [
        ImageFolder(f"images/{name}", label, split, ("real", "fake")[label])
        for label, name in enumerate(("reals", "fakes"))
        if (source / "images" / name).is_dir()
    ]
    files, _ = files_of(LocalTree(source), leaves)
    if not files:
        raise UserError(f"{source}: has no image in images/reals and images/fakes.")
    return files


def _dire_images(source: Path, layout: str | None) -> list[SourceFile]:
    if not (source / "images").is_dir():
        raise UserError(f"{source}: has no folder `images`. The kind dire needs images, and recons or dire beside it.")
    return discover(source / "images", layout).files


def _candidates(file: SourceFile, kind: ImportKind, feature: str) -> list[str]:
    """Return where the file of an image's feature may lie, the likeliest first."""
    if kind == "dire":  # the root is the folder `images`
        beside, below = os.path.dirname(file.root), file.path  # noqa: PTH120
    else:  # the path is [SPLIT/]images/...
        before, _, below = f"/{file.path}".partition("/images/")
        beside = file.root + before
    place, _, name = below.rpartition("/")
    folder = os.path.join(beside, PARTS[kind][feature], place)  # noqa: PTH118
    stem = name.rpartition(".")[0]
    names = [f"{stem}.pt", name.partition(".")[0] + ".pt"] if feature == "eps" else [name, f"{stem}.png"]
    return [os.path.join(folder, candidate) for candidate in names]  # noqa: PTH118


def _present(candidates: Iterable[str], names: dict[str, frozenset[str]]) -> str | None:
    """Return the first candidate that is there; ``names`` remembers what each folder holds."""
    for path in candidates:
        folder, name = os.path.split(path)
        if folder not in names:
            names[folder] = frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()  # noqa: PTH112, PTH208
        if name in names[folder]:
            return path
    return None
