"""The demo's real images: crops of the colour photographs that scikit-image and scikit-learn install.

Only files inside the installed packages are read, so nothing is ever downloaded. Pictures of everyday scenes are taken;
the microscopy, the retina, the telescope's deep field and the drawings are left out: the diffusion model was trained on
everyday photographs and those are something else. The two motorcycle pictures are one scene. A scene is in training or
in test, never in both.
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
"""Side of every image in pixels: the diffusion model's."""

SMALLEST_WINDOW = 128
"""Side of the smallest window that a crop is made of: four photograph pixels or more a pixel, so that neither JPEG
blocks nor sensor noise survive."""

Split = Literal["train", "test"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """Photographs of one scene: the package that installs them, and their files within it."""

    name: str
    split: Split
    package: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Crop:
    """A square window of a photograph (left, top, side, in its pixels), and its pixels at `SIDE`, (3, 32, 32) uint8."""

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
    """Draw ``count`` windows of a scene and shrink each to 32x32 by averaging areas.

    Sides are log-uniform from `SMALLEST_WINDOW` to the photograph's shorter side, places uniform; every draw depends on
    the seed and the scene alone. Raises UserError if the photographs are not installed.
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
