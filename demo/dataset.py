"""The demo's three datasets, written once as PNG files with a manifest.

demo : real crops and their twins. Training has the twins of one ADM. The test sets are its twins, its samples, and the
    twins of a second ADM, each with the same real images.
demo-blurred : the twins of the test crops, with the crops filtered to their twins' spectra as real images: what can be
    detected when smoothness carries no information.
demo-dire : some crops of all scenes with their filtered versions and twins, and some samples, for the DIRE statistics.

Every file is an uncompressed PNG without metadata, all of the same size in bytes, so that neither size nor format gives
the label away. The layout is ``cnndet``.
"""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError
from ..models.diffusion.checkpoints import find_adm
from ..progress import Progress
from .generate import STAGE, Generator
from .recipe import MANIFEST, ImageKind, ImageRecord, Manifest, Recipe, read_manifest
from .scenes import Crop, Pixels, Split, crops_of, scenes_of
from .spectrum import filtered_like

MAIN, BLURRED, DIRE = "demo", "demo-blurred", "demo-dire"
"""Names of the datasets."""

SEEN, HELD_OUT = "demo", "demo-b"
"""Names of the ADMs: the one whose twins are in training, and the other."""

SAMPLES = f"{SEEN}-samples"
PHOTOGRAPHS, FILTERED = "photographs", "filtered"
KEY_DIGITS = 32


@dataclass(frozen=True)
class DemoImage:
    """One image and what it is.

    Attributes
    ----------
    kind : ImageKind
    pixels : ndarray of uint8, (3, 32, 32)
    split : Split
    pair : str
        Name of the crop that the image is or was made from; unique for a sample.
    for_dire : bool
        Whether the DIRE statistics use it.
    adm : str or None
        The ADM that generated it.
    crop : Crop or None
    strength : int or None
        Timestep to which a twin was noised.
    """

    kind: ImageKind
    pixels: Pixels
    split: Split
    pair: str
    for_dire: bool
    adm: str | None = None
    crop: Crop | None = None
    strength: int | None = None


def make_images(folder: Path, recipe: Recipe, progress: Progress) -> tuple[Manifest, bool]:
    """Make the demo's images, unless they exist.

    They are written to a temporary folder, with the manifest last, which is then renamed, so ``folder`` is complete or
    missing.

    Parameters
    ----------
    folder : Path
    recipe : Recipe
    progress : Progress

    Returns
    -------
    manifest : Manifest
    made : bool
        Whether the images were made now.

    Raises
    ------
    UserError
        If the folder has images of another recipe or of other weights, or is not the demo's.
    """
    digests = {name: find_adm(name).digest for name in (SEEN, HELD_OUT)}
    known = read_manifest(folder)
    if known is not None:
        if known.recipe != recipe or known.adms != digests:
            raise UserError(f"{folder}: was made with other settings or weights. Delete it, or choose another --out.")
        return known, False
    if folder.exists():
        raise UserError(f"{folder}: exists, but is not the demo's. Move it away, or choose another --out.")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    seen, held_out = (Generator(name, recipe.steps, progress) for name in (SEEN, HELD_OUT))
    records = tuple(
        _save(partial, target, image)
        for image in draw_images(recipe, seen, held_out)
        for target in target_folders(image)
    )
    manifest = Manifest(recipe=recipe, adms=digests, adm_calls=seen.calls + held_out.calls, images=records)
    (partial / MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.rename(folder)
    return manifest, True


def draw_images(recipe: Recipe, seen: Generator, held_out: Generator) -> Iterator[DemoImage]:
    """Yield crops, twins and filtered crops of each split, then the twins of the second ADM and the samples."""
    train, test = (_crops(split, recipe) for split in ("train", "test"))
    seen.progress.start(STAGE, len(train) + 2 * len(test) + recipe.samples)
    for crops in (train, test):
        twins = _twins(crops, seen, recipe)
        yield from crops
        yield from twins
        for real, twin in zip(crops, twins, strict=True):
            pixels = filtered_like(real.pixels, twin.pixels)
            yield DemoImage("blurred", pixels, real.split, real.pair, real.for_dire, crop=real.crop)
    yield from _twins(test, held_out, recipe)
    names = [f"sample-{number:03}" for number in range(recipe.samples)]
    colours = [test[number % len(test)].pixels.mean((1, 2)) / 127.5 - 1 for number in range(recipe.samples)]
    made = seen.samples([f"{recipe.seed} {name}" for name in names], np.array(colours, np.float32))
    for number, pixels in enumerate(made):
        yield DemoImage("sample", pixels, "test", names[number], number < recipe.dire_samples, adm=seen.adm)


def target_folders(image: DemoImage) -> list[str]:
    """Return the folders in which an image is saved, relative to the images' folder."""
    split, found = image.split, []
    if image.kind == "real":
        found = [
            f"{MAIN}/{split}/{name}/0_real" for name in ((SEEN, SAMPLES, HELD_OUT) if split == "test" else (SEEN,))
        ]
    elif image.kind == "blurred" and split == "test":
        found = [f"{BLURRED}/{split}/{SEEN}/0_real"]
    elif image.kind == "sample":
        found = [f"{MAIN}/{split}/{SAMPLES}/1_fake"]
    elif image.kind == "twin":
        found = [f"{MAIN}/{split}/{image.adm}/1_fake"]
        found += [f"{BLURRED}/{split}/{SEEN}/1_fake"] if split == "test" and image.adm == SEEN else []
    if image.for_dire and image.adm != HELD_OUT:
        # plain real and generated images share a group, so generated ones are not compared with filtered photographs
        folders = {
            "real": f"{PHOTOGRAPHS}/plain/0_real",
            "blurred": f"{FILTERED}/filtered/0_real",
            "twin": f"{SEEN}/plain/1_fake",
            "sample": f"{SAMPLES}/plain/1_fake",
        }
        found.append(f"{DIRE}/{split}/{folders[image.kind]}")
    return found


def encode(pixels: Pixels) -> bytes:
    """Encode (3, 32, 32) uint8 as PNG without compression and metadata: the size does not depend on the content."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(stream, "PNG", compress_level=0)
    return stream.getvalue()


def _crops(split: Split, recipe: Recipe) -> list[DemoImage]:
    count = recipe.train_crops if split == "train" else recipe.test_crops
    return [
        DemoImage("real", crop.pixels, split, f"{scene.name}-{number:03}", number < recipe.dire_crops, crop=crop)
        for scene in scenes_of(split)
        for number, crop in enumerate(crops_of(scene, count, recipe.seed))
    ]


def _twins(crops: list[DemoImage], generator: Generator, recipe: Recipe) -> list[DemoImage]:
    """Return a twin of each crop, with the strengths in turn."""
    strengths = [recipe.strengths[number % len(recipe.strengths)] for number in range(len(crops))]
    names = [f"{recipe.seed} {crop.pair}" for crop in crops]
    made = generator.twins(np.stack([crop.pixels for crop in crops]), strengths, names)
    return [
        DemoImage("twin", pixels, real.split, real.pair, real.for_dire, generator.adm, real.crop, strength)
        for real, pixels, strength in zip(crops, made, strengths, strict=True)
    ]


def _save(root: Path, folder: str, image: DemoImage) -> ImageRecord:
    """Write one file and return its record."""
    content = encode(image.pixels)
    path = root / folder / f"{image.pair}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    dataset, _, generator, *_ = folder.split("/")
    crop = image.crop
    return ImageRecord(
        path=f"{folder}/{path.name}",
        key=hashlib.sha256(content).hexdigest()[:KEY_DIGITS],
        dataset=dataset,
        split=image.split,
        generator=generator,
        label=1 if folder.endswith("1_fake") else 0,
        kind=image.kind,
        adm=image.adm,
        pair=image.pair,
        scene=crop.scene.name if crop else None,
        photograph=crop.photograph if crop else None,
        window=crop.window if crop else None,
        strength=image.strength,
    )
