"""Find and read loose feature files beside their images, as the scripts of DistilDIRE and DIRE write them.

========== ==================================================== ===========================================
kind       folders                                              files of ``a.b.jpg``
========== ==================================================== ===========================================
distildire [SPLIT/]{images,eps,dire}/{reals,fakes}              ``eps``: a.pt or a.b.pt; ``dire``: a.b.jpg or a.b.png
dire       {images,recons,dire}/ in any layout of folders       ``recons``, ``dire``: a.b.jpg or a.b.png
========== ==================================================== ===========================================

DistilDIRE cuts names at the first dot, so ``a.png``, ``a.jpg`` and ``a.b.png`` share one ``a.pt``, which belongs to the
image that was written last. A file that several images share is not imported for any of them.

``.pt`` files are untrusted: only tensors are unpickled, only the uncompressed zip format of PyTorch 1.6 and later is
read (so that a small file cannot expand to a large one), and the file size is bounded. The official script saves each
tensor with the storage of its whole batch; the file is memory-mapped, so that only the tensor's own part is read.
"""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...cache.shards.packed import as_stored
from ...choices import FloatStorage, ImportKind
from ...errors import UserError
from ...images.decode import decode
from ...images.file import ImageRejected, rejection
from ...images.opening import format_name, open_image, orientation
from ...images.spec import MAX_SIZE, MIN_SIZE, ImageSpec
from ...models.weights import DAMAGE
from ...storage.regular import IrregularFileError, regular_status
from ..scan.rows import ScannedRow
from ..sources.discover import discover, files_below
from ..sources.file import SourceFile
from ..sources.folders.layouts import ImageFolder
from ..sources.read import read_source, read_stable
from ..sources.tree import SPLITS, LocalTree

PARTS: Mapping[ImportKind, Mapping[str, str]] = {
    "distildire": {"eps": "eps", "dire": "dire"},
    "dire": {"recon": "recons", "dire": "dire"},
}
"""Kind -> feature -> folder beside ``images``."""
RESIZED_BY: Mapping[ImportKind, Literal["distildire", "dire-center-crop"]] = {
    "distildire": "distildire",
    "dire": "dire-center-crop",
}
"""Kind -> the preprocessing by which its script makes an image of the features' size."""
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
"""Names of files that are lossy as a rule; what a file is, its first bytes say when it is read."""


@dataclass(frozen=True, slots=True)
class LooseSample:
    """An image and its feature files.

    Attributes
    ----------
    file
        The image.
    parts
        Feature -> path of the existing files.
    shared
        Features whose file other images share.
    """

    file: SourceFile
    parts: Mapping[str, str]
    shared: frozenset[str]


def find_loose_samples(source: Path, kind: ImportKind, layout: str | None) -> list[LooseSample]:
    """List the images of a folder with their feature files, without opening any.

    Parameters
    ----------
    source
        Folder.
    kind
        ``distildire`` or ``dire``.
    layout
        Layout of the folders below ``images``, for kind ``dire``.

    Raises
    ------
    UserError
        If the folders are not as expected.
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


def wanted_parts(samples: Iterable[LooseSample], requested: Collection[str]) -> dict[str, frozenset[str]]:
    """Return feature -> splits with at least one file, for the ``requested`` features or, if empty, all."""
    found: dict[str, set[str]] = {}
    for sample in samples:
        for feature in sample.parts:
            if not requested or feature in requested:
                found.setdefault(feature, set()).add(sample.file.split)
    return {feature: frozenset(splits) for feature, splits in found.items()}


def _distildire_images(source: Path) -> list[SourceFile]:
    """List the images in the split folders of ``source``, or in ``source`` if it is a split folder itself."""
    if not (source / "images").is_dir():
        return list(discover(source, "distildire", follow_out=False).files)
    split = SPLITS.get(source.absolute().name, "train")
    leaves = [
        ImageFolder(f"images/{name}", label, split, ("real", "fake")[label])
        for label, name in enumerate(("reals", "fakes"))
        if (source / "images" / name).is_dir()
    ]
    files = list(files_below(LocalTree(source), leaves)[0])
    if not files:
        raise UserError(f"{source}: has no image in images/reals and images/fakes.")
    return files


def _dire_images(source: Path, layout: str | None) -> list[SourceFile]:
    if not (source / "images").is_dir():
        raise UserError(f"{source}: has no folder `images`. The kind dire needs images, and recons or dire beside it.")
    return list(discover(source / "images", layout, follow_out=False).files)


def _candidates(file: SourceFile, kind: ImportKind, feature: str) -> list[str]:
    """Return possible paths of an image's feature file, the likeliest first."""
    if kind == "dire":  # the root is the folder `images`
        beside, below = os.path.dirname(file.root), file.path  # noqa: PTH120
    else:  # the path is [SPLIT/]images/...
        before, _, below = f"/{file.path}".partition("/images/")
        beside = file.root + before
    parent, _, name = below.rpartition("/")
    folder = os.path.join(beside, PARTS[kind][feature], parent)  # noqa: PTH118
    stem = name.rpartition(".")[0]
    names = [f"{stem}.pt", name.partition(".")[0] + ".pt"] if feature == "eps" else [name, f"{stem}.png"]
    return [os.path.join(folder, candidate) for candidate in names]  # noqa: PTH118


def _present(candidates: Iterable[str], names: dict[str, frozenset[str]]) -> str | None:
    """Return the first candidate that exists; ``names`` caches the contents of folders."""
    for path in candidates:
        folder, name = os.path.split(path)
        if folder not in names:
            names[folder] = frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()  # noqa: PTH112, PTH208
        if name in names[folder]:
            return path
    return None


MAX_EPS_BYTES = 512 * 2**20
"""Largest .pt file that is opened: 170 tensors of 512 x 512 in one storage."""
MAX_EPS = 1000.0
"""Largest magnitude that is accepted: at t = 0, clipping keeps eps below 201."""
LOSSLESS = ("png", "bmp")

_MAX_RECORDS = 64
_SAMPLE = 16


@dataclass(frozen=True)
class LooseFileReader:
    """Reads and checks the files of an import.

    Attributes
    ----------
    size
        Side of all images and tensors in pixels.
    preset
        How images of other sizes are resized; None to reject them.
    lossy
        Whether JPEG and WebP are accepted for DIRE and reconstructions.
    storage
        How eps is stored, and so how its values are rounded.
    """

    size: int
    preset: Literal["distildire", "dire-center-crop"] | None
    lossy: bool
    storage: FloatStorage

    def read(self, feature: str, row: ScannedRow, sample: LooseSample) -> NDArray[Any]:
        """Return one row of a feature, (3, size, size). Raises ImageRejected if its file cannot be used."""
        if feature == "image":
            return self._image(read_source(row.file, row.key))
        path = sample.parts[feature]
        return self._eps(path) if feature == "eps" else self._computed_image(path)

    def _image(self, data: bytes) -> NDArray[Any]:
        image = open_image(data)
        if orientation(image) != 1:
            raise ImageRejected("turned", "its EXIF tag turns the picture, and the scripts did not")
        if image.has_transparency_data:
            raise ImageRejected("transparent", "it has transparent pixels, which the scripts did not put on white")
        if self.preset is None:
            self._check_size(image.size)
            return decode(data, ImageSpec(size=self.size))
        return decode(data, ImageSpec(size=self.size, preset=self.preset))

    def _computed_image(self, path: str) -> NDArray[Any]:
        data, _ = read_stable(path)
        image = open_image(data)
        if format_name(image) not in LOSSLESS and not self.lossy:
            raise ImageRejected("lossy", f"{path} is a {image.format}: its values are not those that were computed")
        self._check_size(image.size)
        if image.mode != "RGB":
            raise ImageRejected("unsupported-mode", f"{path}: Pillow's mode {image.mode}, not RGB")
        return decode(data, ImageSpec(size=self.size))

    def _check_size(self, size: tuple[int, int]) -> None:
        if size != (self.size, self.size):
            raise ImageRejected(
                "size-differs", f"{size[0]}x{size[1]} pixels; the features have {self.size}x{self.size}"
            )

    def _eps(self, path: str) -> NDArray[Any]:
        value = load_tensor(path)
        if tuple(value.shape) not in ((3, self.size, self.size), (1, 3, self.size, self.size)):
            raise ImageRejected(
                "size-differs", f"{path} has the shape {tuple(value.shape)}, not (3, {self.size}, {self.size})"
            )
        rows: NDArray[Any] = value.reshape(3, self.size, self.size).float().numpy()
        if not (np.abs(rows) <= MAX_EPS).all():  # NaN is not
            raise ImageRejected("out-of-range", f"{path} has values that are not finite, or beyond {MAX_EPS:g}")
        stored: NDArray[Any] = as_stored(rows[None], self.storage)[0]
        return stored


def load_tensor(path: str) -> Tensor:
    """Load the floating-point tensor of a ``.pt`` file on the CPU, possibly as a view of the mapped file.

    Raises
    ------
    ImageRejected
        If the file is missing, too large, damaged, in PyTorch's old format, or not a single tensor.
    """
    try:
        if regular_status(path).st_size > MAX_EPS_BYTES:
            raise ImageRejected("too-large", f"{path} is larger than {MAX_EPS_BYTES:,} bytes")
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
        if len(records) > _MAX_RECORDS or any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ImageRejected("damaged", f"{path} is no tensor as torch.save writes it")
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except zipfile.BadZipFile:
        raise ImageRejected("damaged", f"{path} is cut off, or not in the format of PyTorch 1.6 and later") from None
    except UnpicklingError:
        raise ImageRejected("damaged", f"{path} holds more than a tensor; loading it could run code") from None
    except FileNotFoundError:
        raise ImageRejected("missing", f"there is no {path}") from None
    except IrregularFileError as error:
        raise ImageRejected("not-a-file", f"{path}: {error.strerror}") from None
    except MemoryError:
        raise ImageRejected("damaged", f"{path} asks for more memory than there is") from None
    except DAMAGE as error:
        raise ImageRejected("damaged", f"{path} cannot be loaded ({type(error).__name__})") from None
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        raise ImageRejected("damaged", f"{path} holds no plain tensor")
    if not value.is_floating_point():
        raise ImageRejected("damaged", f"{path} holds {value.dtype} numbers, not floating-point ones")
    return value.detach()


def common_side(samples: Sequence[LooseSample], features: Sequence[str]) -> int:
    """Return the most common side of the feature files of some samples. Raises UserError if none can be read."""
    sides: Counter[int] = Counter()
    why = ""
    for sample in samples[:: max(1, len(samples) // _SAMPLE)]:
        for feature in features:
            if feature in sample.parts:
                try:
                    sides[_side(feature, sample.parts[feature])] += 1
                except Exception as error:  # whatever it is, it costs this file alone
                    why = f" ({rejection(b'', error)})"
    if not sides:
        raise UserError(f"{samples[0].file.root}: none of the sampled feature files can be read{why}.")
    side = sides.most_common(1)[0][0]
    if not MIN_SIZE <= side <= MAX_SIZE:
        raise UserError(
            f"{samples[0].file.root}: its features have a side of {side} pixels; "
            f"supported are {MIN_SIZE} to {MAX_SIZE}."
        )
    return side


def _side(feature: str, path: str) -> int:
    if feature == "eps":
        shape = load_tensor(path).shape
        return int(shape[-1]) if len(shape) else 0
    return open_image(read_stable(path)[0]).size[0]
