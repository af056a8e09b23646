"""PNG files that explain a verdict: the image, its eps and its DIRE side by side, labelled, and small ones enlarged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..errors import UserError
from ..models.transfer import HostArray
from ..pipeline.sources.file import printable
from ..storage.locks import FolderLock
from ..train.evaluation.gallery import as_pixels

SHOWN = {"image": "image", "eps": "predicted noise (eps)", "dire": "reconstruction error (DIRE)"}
"""Features in their order, with their labels."""
GAP = 4
"""White pixels between two images."""
SMALLEST = 256
"""Smaller images are enlarged by whole pixels to at least this side."""
STRIP = 18
"""Height of the labels above the images."""


class Explainer:
    """Writes triptychs into a folder, which is made.

    Raises
    ------
    UserError
        If the folder is not empty, is in use, or cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            taken = any(folder.iterdir())
            if not taken:
                busy = f"--explain {folder}: another command is writing to it. Choose another folder."
                self._held = FolderLock(folder, busy)
                taken = any(folder.iterdir())
        except OSError as error:
            raise UserError(f"--explain {folder}: cannot be made or listed ({error.strerror}).") from error
        if taken:
            raise UserError(f"--explain {folder}: is not empty. Choose another folder.")

    def write(self, number: int, name: str, frame: int | None, features: dict[str, HostArray]) -> str:
        """Write the triptych of one image and return its path.

        Parameters
        ----------
        number : int
            Position in the input, from 1.
        name : str
            Name of the input; the file's name contains it.
        frame : int or None
            Index of the frame of a video, from 0.
        features : dict of ndarray
            ``image`` and ``dire`` uint8, ``eps`` float, (3, S, S) each.

        Raises
        ------
        UserError
            If the file cannot be written.
        """
        picture = triptych([as_pixels(features[feature]) for feature in SHOWN])
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name).strip(".-")[:60]
        path = self.folder / f"{number:06d}-{stem}{'' if frame is None else f'-frame{frame:03d}'}.png"
        try:
            picture.save(path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}).") from error
        return printable(str(path))


def triptych(shown: Sequence[NDArray[np.uint8]]) -> Image.Image:
    """Lay out images (S, S, 3) side by side below their labels."""
    factor = -(-SMALLEST // shown[0].shape[0])
    enlarged = [pixels.repeat(factor, axis=0).repeat(factor, axis=1) for pixels in shown]
    side = enlarged[0].shape[0]
    picture = Image.new("RGB", (len(shown) * (side + GAP) - GAP, side + STRIP), "white")
    draw = ImageDraw.Draw(picture)
    for place, (label, pixels) in enumerate(zip(SHOWN.values(), enlarged, strict=True)):
        picture.paste(Image.fromarray(pixels), (place * (side + GAP), STRIP))
        draw.text((place * (side + GAP) + 2, 3), label, fill="black")
    return picture
