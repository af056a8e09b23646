"""The demo's real images: crops of the colour photographs that scikit-image and scikit-learn install.

Only files of the installed packages are read; nothing is downloaded. Photographs of everyday scenes are used, since the
diffusion model was trained on such; microscopy, retina, deep field and drawings are not. The two motorcycle photographs
are one scene. A scene is either in training or in test.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UserError

SIDE = 32
"""Side length of every image in pixels: the diffusion model's."""

SMALLEST_WINDOW = 128
"""Side length of the smallest window: shrinking it by at least four removes JPEG blocks and sensor noise."""

Split = Literal["train", "test"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """Photographs of one scene: the package that installs them, and their files in it."""

    name: str
    split: Split
    package: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Crop:
    """A square window of a photograph.

    Attributes
    ----------
    scene : Scene
    photograph : str
        File in the package.
    window : tuple of int
        Left, top and side length in pixels of the photograph.
    pixels : ndarray of uint8, (3, 32, 32)
        The window, resized.
    """

    scene: Scene
    photograph: str
    window: tuple[int, int, int]
    pixels: Pixels


SCENES = (
    Scene("astronaut", "train", "skimage", ("data/astronaut.png",)),
    Scene("coffee", "train", "skimage", ("data/coffee.png",)),
    Scene("motorcycle", "train", "skimage", ("data/motorcycle_left.png", "data/motorcycle_right.png")),
    Scene("chelsea", "test", "skimage", ("data/chelsea.png",)),
    Scene("rocket", "test", "skimage", ("data/rocket.jpg",)),
    Scene("china", "test", "sklearn", ("datasets/images/china.jpg",)),
    Scene("flower", "test", "sklearn", ("datasets/images/flower.jpg",)),
)


def scenes_of(split: Split) -> tuple[Scene, ...]:
    """Return the scenes of a split."""
    return tuple(scene for scene in SCENES if scene.split == split)


def crops_of(scene: Scene, count: int, seed: int) -> list[Crop]:
    """Draw windows of a scene and shrink each to 32x32 by area averaging.

    Side lengths are log-uniform from `SMALLEST_WINDOW` to the photograph's shorter side, positions uniform. The draws
    depend only on seed and scene.

    Raises
    ------
    UserError
        If the photographs are not installed.
    """
    rng = np.random.default_rng([seed, *scene.name.encode()])
    crops = []
    for _ in range(count):
        photograph = scene.files[int(rng.integers(len(scene.files)))]
        image = _photograph(scene.package, photograph)
        side = round(float(np.exp(rng.uniform(np.log(SMALLEST_WINDOW), np.log(min(image.size))))))
        left, top = (int(rng.integers(length - side + 1)) for length in image.size)
        small = image.resize((SIDE, SIDE), Image.Resampling.BOX, box=(left, top, left + side, top + side))
        pixels = np.asarray(small, dtype=np.uint8).transpose(2, 0, 1)
        crops.append(Crop(scene, photograph, (left, top, side), pixels))
    return crops


@lru_cache(maxsize=8)
def _photograph(package: str, file: str) -> Image.Image:
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / file if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(
            f'demo: the photograph {file} of {package} is not installed. Run: pip install "distil-cache[demo]"'
        )
    with Image.open(path) as image:
        return image.convert("RGB")
