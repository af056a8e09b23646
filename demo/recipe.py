"""What the demo's images are made by, and the manifest that says of every file what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import UserError

MANIFEST = "manifest.json"

Kind = Literal["real", "blurred", "twin", "sample"]


class Recipe(BaseModel):
    """Everything that decides the images, but for the weights.

    train_crops, test_crops, dire_crops : crops of each scene; the last ones, the first of the others, get a DIRE for
    the statistics.
    samples, dire_samples : pictures made from pure noise, and how many of them get a DIRE.
    strengths : timesteps (0..999) to which the crops are noised, in turn, before they are denoised into twins.
    steps : the respacing of all denoising.
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
    """One file. ``path`` is relative to the images' folder; ``key`` is the cache's name of its content.

    dataset, split, generator, label : where it stands. kind : what it is. adm : what generated it.
    scene, photograph, window (left, top, side) : the crop that it is, or was made from; ``pair`` names that crop, and
    is the same for a real and its twins. strength : the timestep that a twin was noised to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    key: str
    dataset: str
    split: Literal["train", "test"]
    generator: str
    label: Literal[0, 1]
    kind: Kind
    adm: str | None = None
    pair: str
    scene: str | None = None
    photograph: str | None = None
    window: tuple[int, int, int] | None = None
    strength: int | None = None


class Manifest(BaseModel):
    """All files of the demo's datasets. adms : name -> digest of the weights; adm_calls : images x calls that it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    recipe: Recipe
    adms: dict[str, str]
    adm_calls: int
    images: tuple[ImageRecord, ...]

    def of(self, dataset: str, split: str | None = None, kind: Kind | None = None) -> tuple[ImageRecord, ...]:
        """Return a dataset's files, or those of one split or kind."""
        return tuple(
            image
            for image in self.images
            if image.dataset == dataset and split in (None, image.split) and kind in (None, image.kind)
        )

    def scenes(self) -> dict[str, str]:
        """Key -> scene, for every image that comes from a photograph."""
        return {image.key: image.scene for image in self.images if image.scene is not None}


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of finished images; None if there is none. Raises UserError if it cannot be read."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path}: is no manifest of a demo. Delete {folder} and run the demo again.") from error
