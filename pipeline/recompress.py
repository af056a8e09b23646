"""JPEG and back: what a picture looks like after it was saved once as a JPEG file.

Pillow (libjpeg-turbo) writes a baseline file with the standard tables scaled to the quality, chroma at half the
resolution both ways (4:2:0), and reads it with its defaults. Nothing else of the file matters: optimised or progressive
coding would change its bytes and no pixel. The values are those of the installed Pillow, whose version stands in every
build record.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CHROMA = "4:2:0"
MAX_SIDE = 65_500
"""Longest side of a JPEG file that libjpeg writes."""


def recompressed(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """Return uint8 RGB (height, width, 3) after JPEG of this quality, 1..100. No side may be longer than MAX_SIDE."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=CHROMA)
    return np.array(Image.open(stream, formats=("JPEG",)))
