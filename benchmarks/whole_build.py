"""Whole builds: as the papers' scripts go about it, as ours does, and the bare arithmetic between the two."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import torch
from adm_call import plain_adm
from compare import Comparison
from distil_cache.features.walk import to_signal
from distil_cache.models.diffusion.checkpoints import load_adm
from distil_cache.models.diffusion.ddim import dire_image, invert, predict, sample, to_uint8
from distil_cache.models.diffusion.noise_schedule import NoiseSchedule, respace
from distil_cache.models.diffusion.unet import Adm
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.execution.networks import placed
from distil_cache.progress import Silent
from PIL import Image
from torch.nn import functional as F

IMAGES = 16
BATCH = 8
STEPS = "ddim20"


def write_sources(folder: Path, images: int, side: int = 96) -> Path:
    """Save smooth random pictures as PNG, half of them in each class, in the layout of the papers."""
    rng = np.random.default_rng(0)
    for number in range(images):
        coarse = torch.from_numpy(rng.random((1, 3, 12, 12), dtype=np.float32))
        picture = F.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)[0]
        place = folder / "train" / "adm" / ("0_real" if number % 2 else "1_fake")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((picture.permute(1, 2, 0) * 255).byte().numpy()).save(place / f"{number:06d}.png")
    return folder


def whole_build(folder: Path) -> Comparison:
    """Image, eps and DIRE of a few images with the demo's ADM; ours makes the teacher's features as well."""
    sources = write_sources(folder / "sources", IMAGES)
    model = load_adm("demo").model
    plain = plain_adm(model)
    schedule = respace(STEPS, noise_schedule="linear", steps=1000)
    fresh = (folder / f"out-{number}" for number in count())
    return Comparison(
        f"building one image: 32 pixels, demo ADM, {STEPS}",
        {
            "papers' procedure (41 calls, batch 1)": lambda: papers_procedure(sources, next(fresh), plain, schedule),
            "distil-cache build (40 calls, and teacher)": lambda: ours(sources, next(fresh)),
            "bare arithmetic of the ADM (40 calls)": bare(sources, model, schedule),
        },
        IMAGES,
        rounds=3,
    )


def papers_procedure(sources: Path, out: Path, model: Adm, schedule: NoiseSchedule) -> None:
    """One image at a time: a pass for eps, another for DIRE, and a loose file for each feature."""
    out.mkdir()
    for path in sorted(sources.rglob("*.png")):
        x = read_unrounded(path)
        with torch.inference_mode():
            eps = predict(model, x, next(schedule.ascending())).eps
            found = to_uint8(dire_image(x, sample(model, invert(model, x, schedule).latent, schedule)))
        torch.save(eps[0].clone(), out / f"{path.stem}.pt")
        Image.fromarray(found[0].permute(1, 2, 0).numpy()).save(out / f"{path.stem}-dire.png")
        pixels = ((x[0] + 1) * 127.5).round().clamp(0, 255).byte()
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(out / f"{path.stem}-image.png")
    shutil.rmtree(out)


def ours(sources: Path, cache: Path) -> None:
    """The same features and the teacher's into a new cache, scan and records included."""
    config = BuildConfig.checked(
        sources=(sources,), cache=cache, dataset="benchmark", adm="demo", steps=STEPS, teacher="efficientnet_lite0",
        train_size=64, features=("image,eps,dire,teacher",), batch_size=BATCH, device="cpu",
    )  # fmt: skip
    assert run_build(config, Silent())["adm_calls"] == 40 * IMAGES
    shutil.rmtree(cache)


def bare(sources: Path, model: Adm, schedule: NoiseSchedule) -> Callable[[], object]:
    """The pass over the same images from memory to memory, in the same batches."""
    x = torch.cat([read_unrounded(path) for path in sorted(sources.rglob("*.png"))])
    x = to_signal(((x + 1) * 127.5).round().byte())
    own = placed(copy.deepcopy(model), "fp32", torch.device("cpu"))  # as a build has it

    def run() -> None:
        with torch.inference_mode():
            for batch in x.split(BATCH):
                to_uint8(dire_image(batch, sample(own, invert(own, batch, schedule).latent, schedule)))

    return run


def read_unrounded(path: Path) -> torch.Tensor:
    """An image as DistilDIRE's code feeds it: resized as floats, never rounded; (1, 3, 32, 32) in [-1, 1]."""
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(pixels, size=(32, 32), mode="bilinear", antialias=True) * 2 - 1


def warm_build(folder: Path, images: int = 2000) -> Comparison:
    """Listing the sources, and a whole build of them that has nothing to do."""
    from distil_cache.pipeline.sources.discover import discover

    sources = write_sources(folder / "many", images)
    config = BuildConfig.checked(
        sources=(sources,), cache=folder / "warm", dataset="benchmark", adm="demo", features=("image",), device="cpu"
    )
    run_build(config, Silent())

    def nothing_to_do() -> None:
        result = run_build(config, Silent())
        assert (result["opened"], result["decoded"]) == (0, 0)

    return Comparison(
        "one image of a build that has nothing to do",
        {"listing the files alone": lambda: discover(sources), "warm build": nothing_to_do},
        images,
    )
