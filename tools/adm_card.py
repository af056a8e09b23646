"""Look at a small ADM: a grid of its samples, its loss curve, and its reconstruction error on images of each kind.

    python tools/adm_card.py WEIGHTS --images IMAGES --loss RUN/loss.json --out docs/adm --name demo

WEIGHTS is a safetensors file with flags, or one of the shipped names. IMAGES is the folder that it was trained on;
--seen names the first digits of the SHA-256 of those images that it saw. Prints a Markdown table: mean DIRE in units of
[-1, 1], with its standard error, and how well low DIRE and low Laplacian energy tell each set from unseen reals (AUC).
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from distil_cache.demo.generate import noise_level, standardised
from distil_cache.models.diffusion.checkpoints import load_adm
from distil_cache.models.diffusion.ddim import dire_image, invert, sample
from distil_cache.models.diffusion.noise_schedule import NoiseSchedule
from distil_cache.models.diffusion.unet import Adm
from PIL import Image, ImageFilter
from sklearn.metrics import roc_auc_score
from torch import Tensor
from train_adm import load_images

mpl.use("Agg")
import matplotlib.pyplot as plt

STRENGTHS = (100, 200, 400)
BLURS = (0.5, 0.7)
BATCH = 16


def to_signal(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def on_grid(x: Tensor) -> Tensor:
    """Round images in [-1, 1] to 8 bits, as a file would hold them."""
    return to_signal(((x + 1) * 127.5).round().clamp(0, 255))


def mean_dire(adm: Adm, schedule: NoiseSchedule, x: Tensor) -> Tensor:
    """Mean DIRE of each image, (N,), in units of [-1, 1]."""
    means = []
    for batch in x.split(BATCH):
        recon = sample(adm, invert(adm, batch, schedule).latent, schedule)
        means.append(dire_image(batch, recon).flatten(1).mean(1))
    return torch.cat(means)


def denoised(adm: Adm, schedule: NoiseSchedule, x: Tensor, steps: int) -> Tensor:
    return on_grid(torch.cat([sample(adm, batch, schedule, real_step=steps) for batch in x.split(BATCH)]))


def twins(adm: Adm, schedule: NoiseSchedule, x: Tensor, timestep: int, dice: torch.Generator) -> Tensor:
    """Noise images to a timestep of the schedule and denoise them from there."""
    step = schedule.timesteps.index(timestep)
    level = float(schedule.alphas_cumprod[step])
    noise = standardised(torch.randn(x.shape, generator=dice))
    return denoised(adm, schedule, level**0.5 * x + (1 - level) ** 0.5 * noise, step + 1)


def blurred(x: Tensor, radius: float) -> Tensor:
    pictures = [Image.fromarray(p) for p in ((x + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()]
    soft = np.stack([np.asarray(picture.filter(ImageFilter.GaussianBlur(radius))) for picture in pictures])
    return to_signal(torch.from_numpy(soft).permute(0, 3, 1, 2))


def laplacian_energy(x: Tensor) -> Tensor:
    """Mean square of the 4-neighbour Laplacian of each image, (N,)."""
    inner = x[..., 1:-1, 1:-1]
    around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
    return (around - 4 * inner).square().flatten(1).mean(1)


def separation(low: Tensor, high: Tensor) -> float:
    """AUC with which low values tell the first set from the second."""
    labels = np.r_[np.ones(len(low)), np.zeros(len(high))]
    return float(roc_auc_score(labels, -np.r_[low.numpy(), high.numpy()]))


def save_grid(x: Tensor, path: Path, columns: int = 12) -> None:
    rows = [torch.cat(list(row), dim=2) for row in x.split(columns)]
    pixels = ((torch.cat(rows, dim=1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.NEAREST).save(path)


def save_curve(losses: list[list[float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.plot(*np.array(losses).T, linewidth=1)
    axes.set(xlabel="step", ylabel="mean squared error of eps", ylim=(0, None))
    figure.savefig(path, dpi=110)


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seen", default="01234567", help="first digits of the SHA-256 of images used in training")
    parser.add_argument("--loss", type=Path, help="loss.json of the training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--count", type=int, default=48, help="images a set")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dice = torch.Generator().manual_seed(options.seed)
    loaded = load_adm(options.weights)
    adm, size = loaded.model, loaded.config.image_size
    schedule = loaded.config.schedule("ddim20")
    unseen_digits = re.sub(f"[{options.seen}]", "", "0123456789abcdef")

    def some(digits: str) -> Tensor:
        pictures = load_images(options.images, size, digits)
        return to_signal(pictures[torch.randperm(len(pictures), generator=dice)[: options.count]])

    unseen = some(unseen_digits)
    signal, level = noise_level(
        schedule, schedule.timesteps[-1]
    )  # the mean colours of the samples are those of photographs
    noise = standardised(torch.randn(unseen.shape, generator=dice))
    samples = denoised(adm, schedule, signal * unseen.mean((2, 3), keepdim=True) + level * noise, len(schedule))
    sets = {"seen reals": some(options.seen), "unseen reals": unseen}
    for strength in STRENGTHS:
        sets[f"twins of unseen reals, t = {strength}"] = twins(adm, schedule, unseen, strength, dice)
    sets["its own samples"] = samples
    for radius in BLURS:
        sets[f"unseen reals, Gaussian blur {radius}"] = blurred(unseen, radius)

    options.out.mkdir(parents=True, exist_ok=True)
    save_grid(samples, options.out / f"{options.name}-samples.png")
    if options.loss:
        save_curve(json.loads(options.loss.read_text())["loss"], options.out / f"{options.name}-loss.png")
    errors = {name: mean_dire(adm, schedule, x) for name, x in sets.items()}
    print("| set | mean DIRE | AUC by DIRE | AUC by Laplacian energy |\n|---|---|---|---|")
    for name, x in sets.items():
        mean, error = float(errors[name].mean()), float(errors[name].std() / len(x) ** 0.5)
        by_dire, by_energy = (
            separation(f(name), f("unseen reals"))
            for f in (errors.__getitem__, lambda key: laplacian_energy(sets[key]))
        )
        shown = "| | |" if name in ("seen reals", "unseen reals") else f"| {by_dire:.2f} | {by_energy:.2f} |"
        print(f"| {name} | {mean:.3f} ± {error:.3f} {shown}")


if __name__ == "__main__":
    main()
