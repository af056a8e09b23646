"""What a DIRE of fewer or smaller network calls is worth: operations against likeness to the DIRE of ``ddim20``.

    python benchmarks/fewer_calls.py FOLDER [--adm demo] [--images 200] [--size 32] [--only TEXT] [--json FILE]

FOLDER has images, at any depth. Beside ``--calls fewer`` and fewer ``--steps``, four families of ways are tried that are
no choices of the program:

* **deep features kept** (after DeepCache, arXiv 2312.00858): every second or third call of a pass is whole; the others
  compute only the outermost blocks and take what comes from below them from the last whole call;
* **noise kept**: every second call is left out, and the noise of the last one, or the line through the last two, is used
  (``--calls fewer`` chooses the calls with more care, and takes the noise of the inversion on the way back);
* **second-order steps**: half as many steps, each with the noise extrapolated from this and the last call (two-step
  Adams-Bashforth in the variable of DPM-Solver, arXiv 2211.01095), in both directions.

Operations are counted by torch over the calls that a way makes. Likeness is the correlation of all pixels of the uint8
DIRE images, and of their means, with those of the whole pass; ``error`` is relative, ``size`` the ratio of the means.
The last line says what share of the operations the time embeddings are, which could be computed once for each step.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from distil_cache.images.decode import decode
from distil_cache.images.spec import ImageSpec
from distil_cache.models.diffusion.blocks import timestep_embedding
from distil_cache.models.diffusion.checkpoints import load_adm
from distil_cache.models.diffusion.ddim import NoiseModel, NoisePrediction, dire_image, predict, to_uint8
from distil_cache.models.diffusion.noise_schedule import Step
from distil_cache.models.diffusion.pass_calls import FewerCalls
from distil_cache.models.diffusion.unet import Adm
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

BATCH = 50
WHOLE = "ddim20"
Predict = Callable[[Tensor, Step], NoisePrediction]


class KeptFeatures:
    """A noise model of which only every ``every``-th call goes below its ``depth`` outermost blocks."""

    def __init__(self, model: Adm, depth: int, every: int) -> None:
        self._model, self._depth, self._every = model, depth, every
        self._calls = 0
        self._kept: Tensor | None = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict the noise, as an `Adm` does."""
        model, depth = self._model, self._depth
        emb = model.time_embed(timestep_embedding(t, model.config.num_channels))
        whole = self._calls % self._every == 0
        self._calls += 1
        h, skips = x, []
        for block in model.input_blocks if whole else list(model.input_blocks)[:depth]:
            h = block(h, emb)
            skips.append(h)
        outer = len(model.output_blocks) - depth
        if whole:
            h = model.middle_block(h, emb)
            for block in list(model.output_blocks)[:outer]:
                h = block(torch.cat([h, skips.pop()], dim=1), emb)
            self._kept = h
        assert self._kept is not None
        h = self._kept
        for block in list(model.output_blocks)[outer:]:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        norm, _, conv = model.out
        result: Tensor = conv(norm.activated(h))
        return result


class KeptNoise:
    """Predictions of which every second is made of the last noise, or of the line through the last two."""

    def __init__(self, model: NoiseModel, *, line: bool) -> None:
        self._model, self._line = model, line
        self._seen: list[tuple[float, Tensor]] = []
        self._calls = 0

    def __call__(self, x: Tensor, step: Step) -> NoisePrediction:
        """Predict for a state at a step."""
        self._calls += 1
        if self._calls % 2 or (self._line and len(self._seen) < 2):
            seen = predict(self._model, x, step)
            self._seen = [*self._seen[-1:], (half_log_snr(step), seen.eps)]
            return seen
        eps = self._seen[-1][1]
        if self._line:
            (first, before), (second, last) = self._seen
            eps = last + (last - before) * (half_log_snr(step) - second) / (second - first)
        x0 = (step.recip * x - step.recipm1 * eps).clamp(-1, 1)
        return NoisePrediction(eps=(step.recip * x - x0) / step.recipm1, x0=x0)


def half_log_snr(step: Step) -> float:
    """Return log(signal / noise), in which DPM-Solver's steps are even."""
    return -math.log(step.recipm1)


def first_order(x: Tensor, steps: Iterable[Step], predicted: Predict, *, up: bool) -> Tensor:
    """Walk up or down as DDIM does."""
    for step in steps:
        seen = predicted(x, step)
        x = moved(step, seen.x0, seen.eps, up=up)
    return x


def second_order(x: Tensor, steps: Iterable[Step], predicted: Predict, *, up: bool) -> Tensor:
    """Walk with the clean image extrapolated to the middle of each step from this call and the last (DPM-Solver++ 2M)."""
    before: tuple[float, Tensor] | None = None
    for step in steps:
        seen = predicted(x, step)
        here, there = half_log_snr(step), _target(step, up=up)
        x0 = seen.x0
        if before is not None and math.isfinite(there):
            ratio = (here - before[0]) / (there - here)
            x0 = (1 + 1 / (2 * ratio)) * seen.x0 - 1 / (2 * ratio) * before[1]
        before = here, seen.x0
        eps = (step.recip * x - x0) / step.recipm1
        x = moved(step, x0, eps, up=up)
    return x


def moved(step: Step, x0: Tensor, eps: Tensor, *, up: bool) -> Tensor:
    """Return the state at the next noisier or cleaner step."""
    if up:
        return step.next_signal * x0 + step.next_noise * eps
    return step.prev_signal * x0 + step.prev_noise * eps


def _target(step: Step, *, up: bool) -> float:
    signal, noise = (step.next_signal, step.next_noise) if up else (step.prev_signal, step.prev_noise)
    return math.log(signal / noise) if signal > 0 and noise > 0 else math.inf


class Way(NamedTuple):
    """A way to reconstruct images (B, 3, S, S) in [-1, 1]."""

    name: str
    reconstruct: Callable[[Tensor], Tensor]


def there_and_back(
    model: Adm, steps: str, walk: Callable[..., Tensor], predictor: Callable[[], Predict]
) -> Callable[[Tensor], Tensor]:
    """Return a way of one integrator and what predicts, made anew for each direction."""
    schedule = model.config.schedule(steps)

    def reconstruct(x: Tensor) -> Tensor:
        latent = walk(x, schedule.ascending(), predictor(), up=True)
        return walk(latent, schedule.descending(), predictor(), up=False)

    return reconstruct


def ways(model: Adm) -> list[Way]:
    """Return the whole pass, then all that is compared with it."""

    def plain() -> Predict:
        return lambda x, step: predict(model, x, step)

    def kept(depth: int, every: int) -> Callable[[], Predict]:
        def predictor() -> Predict:
            network = KeptFeatures(model, depth, every)
            return lambda x, step: predict(network, x, step)

        return predictor

    def way(name: str, steps: str, walk: Callable[..., Tensor], predictor: Callable[[], Predict]) -> Way:
        return Way(name, there_and_back(model, steps, walk, predictor))

    blocks = len(model.input_blocks)
    found = [way("whole", WHOLE, first_order, plain), Way("--calls fewer", lambda x: fewer(model, x))]
    found += [way(f"--steps {steps}", steps, first_order, plain) for steps in ("ddim50", "ddim10", "ddim5")]
    found += [
        way(f"deep features kept, {depth} of {blocks} blocks, every {every}", WHOLE, first_order, kept(depth, every))
        for every in (2, 3)
        for depth in range(1, blocks)
    ]
    found += [
        way(f"noise kept, {name}", WHOLE, first_order, lambda line=line: KeptNoise(model, line=line))
        for name, line in (("as it is", False), ("on a line", True))
    ]
    found += [way(f"second order, {steps}", steps, second_order, plain) for steps in (WHOLE, "ddim10")]
    return found


def fewer(model: Adm, x: Tensor) -> Tensor:
    """Reconstruct as a build with ``--calls fewer``."""
    steps = list(model.config.schedule(WHOLE).ascending())
    predictor = FewerCalls(model, steps, clip=True)
    for index, step in enumerate(steps):
        seen = predictor.up(index, x)
        x = moved(step, seen.x0, seen.eps, up=True)
    for index, step in reversed(list(enumerate(steps))):
        seen = predictor.down(index, x)
        x = moved(step, seen.x0, seen.eps, up=False)
    return x


def dire_of(way: Way, images: Tensor) -> Tensor:
    """Return uint8 DIRE images (N, 3, S, S) of uint8 images."""
    found = []
    for part in images.split(BATCH):
        x = part.float() / 255 * 2 - 1
        found.append(to_uint8(dire_image(x, way.reconstruct(x))))
    return torch.cat(found)


def operations(way: Way, image: Tensor) -> int:
    """Return the floating-point operations of a way for one image (1, 3, S, S)."""
    with FlopCounterMode(display=False) as counter:
        dire_of(way, image)
    return int(counter.get_total_flops())


def embedding_operations(model: Adm) -> int:
    """Return those of a call that depend on the timestep alone: its embedding, and what each block makes of it."""
    matrices = {name: weight for name, weight in model.named_parameters() if weight.dim() == 2}
    return 2 * sum(weight.numel() for name, weight in matrices.items() if "emb" in name)


def images_in(folder: Path, count: int, size: int) -> Tensor:
    """Return ``count`` images of a folder, evenly drawn from the sorted ones, as (N, 3, S, S) uint8."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png"})
    chosen = [paths[index] for index in np.linspace(0, len(paths) - 1, min(count, len(paths))).astype(int)]
    spec = ImageSpec(size=size)
    return torch.from_numpy(np.stack([decode(path.read_bytes(), spec) for path in chosen]))


def likeness(dire: Tensor, whole: Tensor) -> dict[str, float]:
    """Compare DIRE images with those of the whole pass."""
    one, other = dire.double(), whole.double()
    return {
        "pixels": float(np.corrcoef(one.flatten(), other.flatten())[0, 1]),
        "means": float(np.corrcoef(one.mean((1, 2, 3)), other.mean((1, 2, 3)))[0, 1]),
        "error": float((one - other).norm() / other.norm()),
        "size": float(one.mean() / other.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--adm", default="demo")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--only", default="", help="only ways whose name has this text")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_grad_enabled(False)
    model = load_adm(asked.adm).model
    images = images_in(asked.folder, asked.images, asked.size)
    tried = ways(model)
    whole = dire_of(tried[0], images)
    most = operations(tried[0], images[:1])
    print(
        f"{asked.adm}: {len(images)} images of {asked.size} pixels, {most / 1e9:.2f} GFLOP an image for the whole pass\n"
    )
    print(f"{'':58}{'operations':>11}{'pixels':>9}{'means':>8}{'error':>8}{'size':>7}")
    rows = []
    for way in (way for way in tried[1:] if asked.only in way.name):
        share = operations(way, images[:1]) / most
        like = likeness(dire_of(way, images), whole)
        rows.append({"way": way.name, "operations": share, **like})
        values = f"{like['pixels']:9.3f}{like['means']:8.3f}{like['error']:8.3f}{like['size']:7.2f}"
        print(f"  {way.name:56}{share:11.2f}{values}", flush=True)
    print(f"\nTime embeddings: {40 * embedding_operations(model) / most:.4f} of the operations.")
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
