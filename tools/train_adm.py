"""Train a small ADM (guided-diffusion's UNet) on a folder of images.

    python tools/train_adm.py IMAGES --out RUN --flags '{"image_size": 32, ...}' --minutes 120
    python tools/train_adm.py IMAGES --out RUN --init-from weights.safetensors --until 09:35

The loss is the mean squared error of the predicted noise (Ho et al. 2020, L_simple). A share of each batch is drawn from the low
timesteps, where DDIM inversion begins. The exponential moving average of the weights is what is exported.

Started again with the same --out, a run goes on from its last saved state. SIGTERM and Ctrl-C save and end. RUN holds
``state.safetensors`` (everything needed to go on), ``ema.safetensors`` (the newest export), ``snapshots/``, ``loss.json`` and, when
the budget is used up, ``final.safetensors`` with the flags in its metadata.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import torch
from distil_cache.errors import UserError
from distil_cache.models.diffusion.noise_schedule import full_schedule
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
LOG_EVERY = 50


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, besides the data, the flags and the budget."""

    batch: int
    lr: float
    warmup: int
    decay_share: float
    ema: float
    low_share: float
    low_below: int
    seed: int


@dataclass
class Budget:
    """How far the training is, from 0 to 1: by steps, or by the seconds spent so far and those left until a deadline."""

    steps: int | None
    seconds_left: float
    spent_before: float
    started: float = field(default_factory=time.monotonic)

    def spent(self) -> float:
        """Seconds of training, earlier sittings included."""
        return self.spent_before + time.monotonic() - self.started

    def progress(self, step: int) -> float:
        """Share of the budget that is used before this step."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        return min(1.0, self.spent() / (self.spent_before + self.seconds_left))


class Averaged:
    """The exponential moving average of a model's parameters."""

    def __init__(self, model: Adm, decay: float) -> None:
        self.decay = decay
        self.live = dict(model.named_parameters())
        self.mean = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the live weights; faster during the first steps."""
        weight = 1.0 - min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self.live.items():
            self.mean[name].lerp_(parameter, weight)


def load_images(folder: Path, size: int, key_prefix: str) -> Tensor:
    """Images whose SHA-256 begins with one of the hex digits in key_prefix, as (N, 3, size, size) uint8."""
    pictures = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest()[0] in key_prefix:
            with Image.open(io.BytesIO(data)) as image:
                picture = ImageOps.fit(
                    ImageOps.exif_transpose(image).convert("RGB"), (size, size), Image.Resampling.LANCZOS
                )
            pictures.append(np.asarray(picture).transpose(2, 0, 1))
    if not pictures:
        raise UserError(
            f"{folder}: no image whose SHA-256 begins with one of {key_prefix}; check the folder and --key-prefix."
        )
    return torch.from_numpy(np.stack(pictures))


def make_batch(images: Tensor, abar: Tensor, recipe: Recipe, step: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images (B, 3, S, S), timesteps (B,) and the noise in them, decided by the seed and the step alone."""
    dice = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
    chosen = images[torch.randint(len(images), (recipe.batch,), generator=dice)]
    flip = torch.rand(recipe.batch, generator=dice) < 0.5
    clean = torch.where(flip[:, None, None, None], chosen.flip(3), chosen).float() / 127.5 - 1.0
    t = torch.randint(len(abar), (recipe.batch,), generator=dice)
    low = int(recipe.batch * recipe.low_share)
    t[:low] = torch.randint(recipe.low_below, (low,), generator=dice)
    noise = torch.randn(clean.shape, generator=dice)
    level = abar[t][:, None, None, None]
    return level.sqrt() * clean + (1.0 - level).sqrt() * noise, t, noise


def learning_rate(recipe: Recipe, step: int, progress: float) -> float:
    """Linear warm-up by steps, then constant, then a cosine to zero over the last share of the budget."""
    into_decay = max(0.0, (progress - (1.0 - recipe.decay_share)) / recipe.decay_share)
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1.0 + math.cos(math.pi * into_decay))


class Training:
    """Model, optimiser, average and history of one run; saves itself and goes on from what it saved."""

    def __init__(self, out: Path, config: AdmConfig, recipe: Recipe, init: dict[str, Tensor] | None) -> None:
        self.out, self.config, self.recipe = out, config, recipe
        torch.manual_seed(recipe.seed)
        self.model = Adm(config).train()
        if init is not None:
            self.model.load_state_dict(init)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=recipe.lr, weight_decay=0.0, fused=True)
        self.average = Averaged(self.model, recipe.ema)
        self.step = 0
        self.spent = 0.0
        self.loss: list[tuple[int, float]] = []
        (out / "snapshots").mkdir(parents=True, exist_ok=True)
        if (out / "state.safetensors").exists():
            self._restore()

    def save(self, spent: float) -> None:
        """Write the state in one atomic replacement, and the loss curve."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.average.mean.items()}
        for index, values in self.optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": v for k, v in values.items()}
        progress = {"step": self.step, "spent": spent, "loss": self.loss}
        write_safetensors(self.out / "state.safetensors", tensors, {"progress": json.dumps(progress)})
        summary = {"recipe": vars(self.recipe), "flags": self.config.model_dump(), "seconds": round(spent), **progress}
        (self.out / "loss.json").write_text(json.dumps(summary, indent=1))

    def export(self, name: str) -> None:
        """Write the averaged weights, float32, with the flags (and the number of steps) in the metadata."""
        metadata = {"flags": json.dumps(self.config.model_dump()), "steps": str(self.step)}
        write_safetensors(self.out / name, self.average.mean, metadata)

    def _restore(self) -> None:
        path = self.out / "state.safetensors"
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            progress = json.loads(file.metadata()["progress"])
        self.model.load_state_dict(section(tensors, "model."))
        for name, value in section(tensors, "ema.").items():
            self.average.mean[name].copy_(value)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in section(tensors, "adam.").items():
            index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.step, self.spent = progress["step"], progress["spent"]
        self.loss = [(step, loss) for step, loss in progress["loss"]]


def section(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose name begins with prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Replace path atomically."""
    partial = path.with_suffix(".partial")
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, partial, metadata)
    partial.replace(path)


def loss_function(model: Adm, *, compiled: bool, bf16: bool) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Mean squared error of the predicted noise; compiled forwards and backwards, or with bfloat16 convolutions, if asked."""

    def loss(noisy: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            predicted = model(noisy, t)
        return torch.nn.functional.mse_loss(predicted.float(), noise)

    return torch.compile(loss, dynamic=False) if compiled else loss


def train(
    run: Training,
    images: Tensor,
    budget: Budget,
    *,
    compiled: bool,
    bf16: bool,
    save_every: float,
    snapshot_every: float,
) -> None:
    """Train until the budget is used up or a signal asks to stop; save and export on the way."""
    stop = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.append(True))
    abar = torch.from_numpy(full_schedule(run.config.noise_schedule, run.config.diffusion_steps).alphas_cumprod).float()
    loss_of = loss_function(run.model, compiled=compiled, bf16=bf16)
    saved = snapped = budget.spent()
    window: list[float] = []
    while not stop and (progress := budget.progress(run.step)) < 1.0:
        noisy, t, noise = make_batch(images, abar, run.recipe, run.step)
        lr = learning_rate(run.recipe, run.step, progress)
        for group in run.optimiser.param_groups:
            group["lr"] = lr
        loss = loss_of(noisy, t, noise)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimiser.step()
        run.optimiser.zero_grad(set_to_none=True)
        run.average.update(run.step)
        run.step += 1
        window.append(loss.item())
        now = budget.spent()
        if run.step % LOG_EVERY == 0:
            run.loss.append((run.step, sum(window) / len(window)))
            window.clear()
            print(f"step {run.step}  loss {run.loss[-1][1]:.5f}  lr {lr:.2e}  {now:.0f} s  {progress:.1%}", flush=True)
        if now - snapped > snapshot_every * 60:
            run.export(f"snapshots/ema-{run.step:06d}.safetensors")
            run.export("ema.safetensors")
            snapped = now
        if now - saved > save_every * 60:
            run.save(now)
            saved = now
    run.save(budget.spent())
    run.export("ema.safetensors" if stop else "final.safetensors")


def read_start(path: Path) -> tuple[AdmConfig, dict[str, Tensor]]:
    """Flags and float32 weights of a safetensors file that this tool, or one like it, exported."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if "flags" not in metadata:
        raise UserError(f"{path}: no flags in the metadata; start from a file that this tool exported.")
    return AdmConfig.from_flags(json.loads(metadata["flags"])), {k: v.float() for k, v in load_file(path).items()}


def seconds_until(clock: str) -> float:
    """Seconds from now to the next time the clock shows HH:MM."""
    now = datetime.now()
    then = datetime.combine(now.date(), datetime.strptime(clock, "%H:%M").time())
    return (then - now + timedelta(days=1 if then <= now else 0)).total_seconds()


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of training images, read with its subfolders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an interrupted one goes on")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--flags", help="guided-diffusion flags of a new network, as JSON")
    source.add_argument(
        "--init-from", type=Path, help="safetensors with flags in the metadata: go on from these weights"
    )
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--steps", type=int, help="number of steps in all")
    budget.add_argument("--minutes", type=float, help="minutes of this sitting")
    budget.add_argument("--until", help="end of this sitting as HH:MM, local time")
    parser.add_argument(
        "--key-prefix", default="0123456789abcdef", help="use images whose SHA-256 begins with one of these digits"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument(
        "--decay-share", type=float, default=0.35, help="last share of the budget in which lr falls to zero"
    )
    parser.add_argument("--ema", type=float, default=0.9995)
    parser.add_argument(
        "--low-share", type=float, default=1 / 3, help="share of a batch drawn from the timesteps below --low-below"
    )
    parser.add_argument("--low-below", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the step: slow start, faster steps")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 convolutions: faster where the CPU has them")
    parser.add_argument("--save-every", type=float, default=3.0, help="minutes between saved states")
    parser.add_argument("--snapshot-every", type=float, default=10.0, help="minutes between exported snapshots")
    return parser.parse_args()


def main() -> None:
    """Read the arguments and the images, then train."""
    args = parse()
    if args.init_from:
        config, init = read_start(args.init_from)
    else:
        config, init = AdmConfig.from_flags(json.loads(args.flags)), None
    recipe = Recipe(
        batch=args.batch,
        lr=args.lr,
        warmup=args.warmup,
        decay_share=args.decay_share,
        ema=args.ema,
        low_share=args.low_share,
        low_below=args.low_below,
        seed=args.seed,
    )
    seconds = seconds_until(args.until) if args.until else 60 * (args.minutes or 0.0)
    images = load_images(args.images, config.image_size, args.key_prefix)
    run = Training(args.out, config, recipe, init)
    print(f"{len(images)} images, {run.model.parameter_count():,} parameters, from step {run.step}", flush=True)
    budget = Budget(args.steps, seconds, run.spent)
    train(
        run,
        images,
        budget,
        compiled=args.compile,
        bf16=args.bf16,
        save_every=args.save_every,
        snapshot_every=args.snapshot_every,
    )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
