"""The settings of the demo's images, and the manifest that describes every file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import UserError

MANIFEST = "manifest.json"

ImageKind = Literal["real", "blurred", "twin", "sample"]


class Recipe(BaseModel):
    """Everything that decides the images, except the weights.

    Attributes
    ----------
    seed : int
    train_crops, test_crops : int
        Crops per scene.
    dire_crops : int
        How many of them, from the first on, enter the DIRE statistics.
    samples : int
        Images generated from pure noise.
    dire_samples : int
        How many of them, from the first on, enter the DIRE statistics.
    strengths : tuple of int
        Timesteps (0..999) to which the crops are noised, in turn, to make twins.
    steps : str
        DDIM respacing of all denoising.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = Field(default=0, ge=0, lt=2**32)
    train_crops: int = Field(default=44, ge=1)
    test_crops: int = Field(default=20, ge=1)
    dire_crops: int = Field(default=6, ge=1)
    samples: int = Field(default=80, ge=1)
    dire_samples: int = Field(default=40, ge=1)
    strengths: tuple[int, ...] = (100, 200, 400)
    steps: str = "ddim20"


class ImageRecord(BaseModel):
    """One file.

    Attributes
    ----------
    path : str
        Relative to the images' folder.
    key : str
        The cache's key of its content.
    dataset, split, generator, label
        What its folder says.
    kind : ImageKind
    adm : str or None
        The ADM that generated it.
    pair : str
        Name of its crop, the same for a real image and its twins.
    scene, photograph, window
        The crop that it is or was made from; the window is (left, top, side) in pixels.
    strength : int or None
        Timestep to which a twin was noised.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    key: str
    dataset: str
    split: Literal["train", "test"]
    generator: str
    label: Literal[0, 1]
    kind: ImageKind
    adm: str | None = None
    pair: str
    scene: str | None = None
    photograph: str | None = None
    window: tuple[int, int, int] | None = None
    strength: int | None = None


class Manifest(BaseModel):
    """All files of the demo's datasets.

    Attributes
    ----------
    adms : dict
        Name of an ADM -> digest of its weights.
    adm_calls : int
        Images x ADM calls that generating them took.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    recipe: Recipe
    adms: dict[str, str]
    adm_calls: int
    images: tuple[ImageRecord, ...]

    def of(self, dataset: str, split: str | None = None, kind: ImageKind | None = None) -> tuple[ImageRecord, ...]:
        """Return the files of a dataset, optionally of one split or kind."""
        return tuple(
            image
            for image in self.images
            if image.dataset == dataset and split in (None, image.split) and kind in (None, image.kind)
        )

    def scenes(self) -> dict[str, str]:
        """Return key -> scene for every image that comes from a photograph."""
        return {image.key: image.scene for image in self.images if image.scene is not None}


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of a folder; None if there is none. UserError if it is invalid."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: is not a manifest of the demo. Delete {folder} and run the demo again.") from error
