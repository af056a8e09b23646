"""Pictures with and without traces of a past as JPEG, and folders of them, for the tests of the audit."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from image_bytes import saved
from numpy.typing import NDArray
from PIL import Image

EACH = 30


def picture(seed: int, side: int = 72, smooth: float = 0.0) -> NDArray[np.uint8]:
    """Return a picture like a photograph's: power falls with frequency, faster for a larger ``smooth``."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.rfftfreq(side), indexing="ij"))
    spectrum = np.fft.rfft2(rng.normal(size=(3, side, side))) / np.maximum(frequency, 1 / side) ** (1.0 + smooth)
    values = np.fft.irfft2(spectrum, (side, side))
    values = 128 + 45 * (values - values.mean()) / values.std()
    return np.clip(np.round(values), 0, 255).astype(np.uint8).transpose(1, 2, 0)


def through_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(saved(pixels, "JPEG", quality=quality))))


def write(folder: Path, kind: str, number: int, data: bytes, suffix: str = "png", generator: str = "gen") -> Path:
    path = folder / "train" / generator / kind / f"{number:03}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path
