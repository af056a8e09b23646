"""Measure how far this program is from the papers' public code, on vectors that their code made.

    python tools/parity.py             # print the table of docs/measurements/parity.md
    python tools/parity.py --write     # print it, and put it into docs/measurements/parity.md
    python tools/parity.py --images FOLDER   # also measure on photographs what the rounding before the ADM changes

The vectors are in tests/reference; its README says how they were made. Each row compares what the program does now with
what the code of a paper gave for the same input, and has a bound. Exit code 1 if a deviation is beyond its bound.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from distil_cache.choices import STORED_PRESETS, ImagePreset, Precision
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.registry import make_specs, walk_of
from distil_cache.features.walk import to_signal
from distil_cache.images.decode import decode_image
from distil_cache.images.spec import ImageSpec
from distil_cache.metrics.measures import measures
from distil_cache.models.diffusion.checkpoints import LoadedAdm, load_adm
from distil_cache.models.diffusion.ddim import dire_image, invert, predict, sample, to_uint8
from distil_cache.models.diffusion.noise_schedule import respace
from distil_cache.pipeline.execution.networks import placed
from distil_cache.train.config import TrainConfig
from distil_cache.train.data.augment import (
    MixDraws,
    SampleDraws,
    cutmix,
    degraded,
    gaussian_blur,
    jpeg_compress,
    test_input,
)
from distil_cache.train.engine.lr_schedule import LrSchedule
from distil_cache.train.loss import losses
from distil_cache.train.methods.registry import find_method
from distil_cache.train.runs.forms import EpochMetrics, State
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, Resize

ROOT = Path(__file__).resolve().parent.parent
VECTORS = ROOT / "tests" / "reference"
PAGE = ROOT / "docs" / "measurements" / "parity.md"
BEGIN, END = "<!-- table: python tools/parity.py --write -->", "<!-- end of the table -->"

Array = NDArray[Any]
SIZE, CROP = 64, 56
RESIZED = ("wide", "twice", "same", "tall", "small", "square")
CHANGED = ("wide", "twice", "tall", "small", "square")
SCHEDULE = respace("ddim20")
CPU = torch.device("cpu")
ADM = "demo"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes
    ----------
    item, paper
        What is compared, and whose code made the vectors.
    largest, share
        Largest deviation, and share of the values that deviate, by more than rounding if the paper's are not rounded;
        None where a share says nothing.
    unit
        Unit of the deviation.
    bound, most
        Largest allowed deviation and share.
    on_purpose
        Whether the program differs deliberately; docs/explanation/differences.md then says why.
    exact
        Whether every machine gives the same numbers. Floating point in a network depends on the processor's kernels.
    """

    item: str
    paper: str
    largest: float
    unit: str
    bound: float
    share: float | None = None
    most: float = 1.0
    on_purpose: bool = False
    exact: bool = True

    @property
    def holds(self) -> bool:
        """Whether the deviation is within its bound."""
        return self.largest <= self.bound and (self.share is None or self.share <= self.most)

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the line: item, paper, largest deviation, share, bound, verdict."""
        share = "" if self.share is None else _percent(self.share)
        bound = self._quantity(self.bound)
        if self.share is not None and self.most < 1:
            bound += f", {_percent(self.most)}"
        verdict = "differs on purpose" if self.on_purpose else "same"
        verdict = verdict if self.holds else "**beyond its bound**"
        return self.item, self.paper, self._quantity(self.largest), share, bound, verdict

    def _quantity(self, value: float) -> str:
        unit = self.unit.removesuffix("s") if value == 1 else self.unit
        return f"{_number(value)} {unit}".strip()


def _number(value: float) -> str:
    return f"{value:.2g}" if value < 99.5 else f"{value:.0f}"


def _percent(share: float) -> str:
    return f"{_number(100 * share)} %"


@cache
def vectors(name: str) -> Mapping[str, Array]:
    """Return the arrays of one file of vectors."""
    with np.load(VECTORS / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def levels(item: str, paper: str, ours: Array, theirs: Array, *, bound: float = 0.0, **rest: Any) -> Row:
    """Compare 8-bit values, in levels; the paper's may be unrounded."""
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    rounding = 0 if theirs.dtype == np.uint8 else 0.501
    return Row(item, paper, float(apart.max()), "levels", bound, float((apart > rounding).mean()), **rest)


def floats(item: str, paper: str, ours: Array, theirs: Array, *, bound: float, **rest: Any) -> Row:
    """Compare floats, by the largest difference relative to the largest value."""
    apart = np.abs(ours.astype(np.float64) - theirs.astype(np.float64)).max()
    return Row(item, paper, float(apart / np.abs(theirs).max()), "", bound, **rest)


def image_of(preset: ImagePreset, pixels: Array, size: int = SIZE) -> Array:
    """Return the uint8 image (3, size, size) that a build caches under ``--image-preset``."""
    return decode_image(Image.fromarray(pixels), ImageSpec(size=size, preset=STORED_PRESETS[preset]))


def image_rows() -> Iterator[Row]:
    inputs = vectors("inputs")
    presets: tuple[tuple[ImagePreset, str], ...] = (("distildire", "DistilDIRE"), ("dire", "DIRE"))
    for preset, paper in presets:
        ours = np.stack([image_of(preset, inputs[name]) for name in RESIZED])
        theirs = np.stack([vectors(preset)[f"image.{name}"] for name in RESIZED])
        # the resize of floats may round a tie differently
        ties: dict[str, Any] = {"bound": 1, "most": 1e-4, "exact": False} if preset == "distildire" else {}
        yield levels(f"image, `--image-preset {preset}`, 6 sizes", paper, ours, theirs, **ties)
    given = vectors("distildire")
    ours, theirs = (
        np.stack([image_of("distildire", inputs[name]) for name in ("wide", "small")]),
        np.stack([given[f"input.{name}"] for name in ("wide", "small")]),
    )
    yield levels(
        "what the ADM sees, `distildire`: unrounded there",
        "DistilDIRE",
        ours,
        (theirs + 1) * 127.5,
        bound=0.501,
        on_purpose=True,
        exact=False,
    )
    names = ("wide", "twice", "same", "small")
    ours = np.stack([image_of("dnf", inputs[name]) for name in names]).astype(np.float64)
    theirs = (np.stack([vectors("dnf")[f"input.{name}"] for name in names]) + 1) * 127.5
    within = (theirs >= 0) & (theirs <= 255)
    yield levels(
        "what the network sees, `--image-preset dnf`: unrounded there",
        "DNF",
        ours[within],
        theirs[within],
        bound=15,
        on_purpose=True,
    )
    yield levels(
        "the same, where its bicubic filter leaves 0 to 255: clamped here",
        "DNF",
        ours[~within],
        theirs[~within],
        bound=40,
        on_purpose=True,
    )
    for preset, paper in presets:
        yield levels(
            f"transparent pixels, `{preset}`: white here, their stored colour (black) there",
            paper,
            image_of(preset, inputs["clear"]),
            vectors(preset)["image.clear"],
            bound=255,
            on_purpose=True,
        )


PASS = ("eps", "recon", "dire", "noise")


@cache
def adm() -> LoadedAdm:
    """Return the shipped diffusion model that the vectors were made with."""
    return load_adm(ADM)


class Made(NamedTuple):
    """First noise, reconstruction and DIRE of some images; DIRE in 8 bits."""

    eps: Tensor
    recon: Tensor
    dire: Tensor


@cache
def made(precision: Precision, *, images: str = "tiny", clip: bool = True) -> Made:
    """Invert and sample four small images with the model of a build on the CPU."""
    model = placed(load_adm(ADM).model, precision, CPU)
    pixels = vectors("inputs")["tiny"] if images == "tiny" else vectors("dire")["jpeg.input"]
    with torch.inference_mode():
        x = _signal(pixels.transpose(0, 3, 1, 2))
        inversion = invert(model, x, SCHEDULE, clip=clip)
        recon = sample(model, inversion.latent, SCHEDULE, clip=clip)
        return Made(inversion.eps, recon, to_uint8(dire_image(x, recon)))


def _signal(pixels: Array) -> Tensor:
    return to_signal(torch.from_numpy(np.ascontiguousarray(pixels)))


def adm_rows() -> Iterator[Row]:
    inputs, distildire, dire, dnf = vectors("inputs"), vectors("distildire"), vectors("dire"), vectors("dnf")
    identity = AdmIdentity.of(adm().digest, adm().config)
    image = ImageSpec.model_validate({"size": 32})
    found = made("fp32")
    walk = walk_of(make_specs(PASS, {"adm": identity, "reduction": "first"}, {"image": image}))
    assert walk is not None
    pixels = torch.from_numpy(np.ascontiguousarray(inputs["tiny"].transpose(0, 3, 1, 2)))
    whole = walk.route(frozenset(PASS))
    network_here = placed(load_adm(ADM).model, "fp32", CPU)
    rows = walk.queue(network_here, {"image": pixels}, [""] * len(pixels), PASS, whole)
    stored = {name: rows[name].numpy() for name in PASS}
    with torch.inference_mode():
        model = placed(load_adm(ADM).model, "fp32", CPU)
        latent = invert(model, _signal(inputs["tiny"].transpose(0, 3, 1, 2)), SCHEDULE).latent
        resized = np.stack([image_of("distildire", inputs[name], 32) for name in CHANGED])
        rounded = predict(model, _signal(resized), next(SCHEDULE.ascending())).eps
    network = {"exact": False}
    yield floats("eps before storage", "DistilDIRE", found.eps.numpy(), distildire["eps"], bound=1e-4, **network)
    yield floats(
        "eps as stored (float16)",
        "DistilDIRE",
        stored["eps"],
        distildire["eps"],
        bound=2**-11,
        on_purpose=True,
        **network,
    )
    apart = np.linalg.norm(rounded.numpy() - distildire["resized.eps"]) / np.linalg.norm(distildire["resized.eps"])
    yield Row(
        "eps of resized images: from unrounded values there",
        "DistilDIRE",
        float(apart),
        "of the norm",
        0.5,
        on_purpose=True,
        exact=False,
    )
    unclipped = made("fp32", clip=False)
    yield floats(
        "eps with `--no-clip`",
        "DistilDIRE",
        unclipped.eps.numpy(),
        distildire["eps_unclipped"],
        bound=1e-4,
        **network,
    )
    yield floats("latent of the inversion", "DistilDIRE", latent.numpy(), distildire["latent"], bound=1e-4, **network)
    yield floats(
        "recon before storage",
        "DistilDIRE",
        (found.recon.numpy() + 1) * 0.5,
        distildire["recon"],
        bound=1e-4,
        **network,
    )
    yield levels("recon as stored", "DIRE", stored["recon"], dire["recon"], bound=1, most=0.002, **network)
    for paper, theirs in (("DIRE", dire["dire"]), ("DistilDIRE", distildire["dire"])):
        yield levels("DIRE as stored", paper, stored["dire"], theirs, bound=1, most=0.002, **network)
    of_jpeg = made("fp32", images="jpeg").dire
    assert of_jpeg is not None
    yield levels(
        "DIRE of a JPEG source: saved as a JPEG there",
        "DIRE",
        of_jpeg.numpy(),
        dire["jpeg.dire"],
        bound=60,
        on_purpose=True,
        **network,
    )
    half = made("fp16")
    yield levels(
        "DIRE with `--precision fp16` (there `--use_fp16 True`)", "DIRE", half.dire.numpy(), dire["dire_fp16"],
        bound=1, most=0.1, **network,
    )  # fmt: skip
    first = unclipped.eps.numpy()
    yield floats(
        "first noise with `--no-clip`, the ADM in place of DNF's network",
        "DNF",
        first,
        dnf["raw_eps"],
        bound=1e-4,
        **network,
    )
    yield floats(
        "the same, clipped (default)", "DNF", stored["noise"], dnf["raw_eps"], bound=1, on_purpose=True, **network
    )
    yield floats(
        "the same as its file holds it: 8 bits, clamped to 0..1",
        "DNF",
        stored["noise"],
        dnf["noise_png"] / 255,
        bound=10,
        on_purpose=True,
        **network,
    )


def precision_lines() -> Iterator[str]:
    """Say how far half precision is from float32, here and in DIRE's code, each against itself."""
    theirs = vectors("dire")
    full = made("fp32").dire
    halves: tuple[Precision, ...] = ("fp16", "bf16")
    for name in halves:
        half = made(name).dire
        apart = (half.int() - full.int()).abs()
        yield f"DIRE here, {name} against fp32: {_percent((apart > 0).float().mean().item())}, at most {apart.max()}"
    apart_there = np.abs(theirs["dire_fp16"].astype(int) - theirs["dire"])
    yield f"DIRE there, fp16 against fp32: {_percent((apart_there > 0).mean())}, at most {apart_there.max()}"


def rounding_line(folder: Path) -> str:
    """Say how much eps changes if the ADM sees the image rounded: the first 32 images below a folder, at 32 pixels."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))[:32]
    unrounded = Compose([Resize(32, antialias=True), CenterCrop(32)])
    model = placed(load_adm(ADM).model, "fp32", CPU)
    pixels = [np.array(Image.open(path).convert("RGB")) for path in files]
    floats_ = torch.stack([unrounded(torch.from_numpy(x.transpose(2, 0, 1)) / 255) * 2 - 1 for x in pixels])
    rounded = _signal(np.stack([image_of("distildire", x, 32) for x in pixels]))
    with torch.inference_mode():
        there, here = (predict(model, x, next(SCHEDULE.ascending())).eps for x in (floats_, rounded))
    apart = ((here - there).norm() / there.norm()).item()
    return (
        f"eps of {len(files)} photographs, rounded against unrounded: {_percent(apart)} of the norm; "
        f"standard deviation {here.std():.3f} and {there.std():.3f}"
    )


def training_rows() -> Iterator[Row]:
    given, inputs = vectors("distildire"), vectors("inputs")
    tiny = torch.from_numpy(inputs["tiny"].transpose(0, 3, 1, 2).copy())
    official = find_method("distildire", "official-code")
    assert official.degradation is not None
    worst, best = official.degradation.jpeg
    of_quality = [draws(quality=(value - worst + 0.5) / (best - worst + 1)) for value in given["step.quality"]]
    compressed = torch.stack(
        [degraded(x, official.degradation, drawn) for x, drawn in zip(tiny, of_quality, strict=True)]
    )
    yield levels(
        "`official-code`: JPEG of an image stored at its size", "DistilDIRE", compressed.numpy(), given["step.jpeg"]
    )
    resized = torch.from_numpy(image_of("distildire", inputs["wide"]))
    drawn_65 = draws(quality=(65 - worst + 0.5) / (best - worst + 1))
    yield levels(
        "`official-code`: JPEG of a resized image: from unrounded values there",
        "DistilDIRE",
        degraded(resized, official.degradation, drawn_65).numpy()[None],
        given["step.jpeg_of_resized"],
        bound=30,
        on_purpose=True,
        exact=False,
    )
    mix, keep, row, column = given["step.draws"].tolist()
    drawn = MixDraws(mix, keep, (row + 0.5) / 32, (column + 0.5) / 32)
    assert drawn.mix < official.cutmix
    features = {
        "image": compressed,
        "eps": torch.from_numpy(given["eps"]),
        "dire": torch.from_numpy(given["dire"]),
    }
    mixed, label = cutmix(features, torch.tensor([1.0, 0.0, 0.0, 1.0]), drawn)
    for name in ("image", "dire"):
        yield levels(f"`official-code`: CutMix of {name}", "DistilDIRE", mixed[name].numpy(), given[f"step.{name}"])
    yield floats("`official-code`: CutMix of eps", "DistilDIRE", mixed["eps"].numpy(), given["step.eps"], bound=0)
    yield floats("`official-code`: labels of CutMix", "DistilDIRE", label.numpy(), given["step.label"], bound=1e-6)
    logit, target, maps, teacher = (
        torch.from_numpy(given[f"loss.{name}"]) for name in ("logit", "label", "map", "teacher")
    )
    found = losses(logit, target, maps, teacher, official.defaults.kd_weight, official.pos_weight)
    yield floats(
        "`official-code`: loss with and without distillation",
        "DistilDIRE",
        np.array([found.total.item(), found.bce.item()]),
        np.array([given["loss.total"], given["loss.bce"]]),
        bound=1e-6,
    )


def cnndet_rows() -> Iterator[Row]:
    given, inputs = vectors("cnndet"), vectors("inputs")
    image = torch.from_numpy(inputs["same"].transpose(2, 0, 1).copy())
    blurred = torch.stack([gaussian_blur(image, float(sigma)) for sigma in given["blur.sigma"]])
    yield levels("blur, sigma 0.1 to 3", "CNNDet", blurred.numpy(), given["blur.image"])
    compressed = torch.stack([jpeg_compress(image, int(quality)) for quality in given["jpeg.quality"]]).numpy()
    yield levels("JPEG, quality 30, 65, 100, against its Pillow", "CNNDet", compressed, given["jpeg.pil"])
    yield levels("JPEG, quality 30, 65, 100, against its OpenCV", "CNNDet", compressed, given["jpeg.cv2"])
    method = find_method("cnndet")
    assert method.degradation is not None
    of_validation = method.degradation.of_validation()
    assert of_validation is not None
    for name, settings in (("training", method.degradation), ("validation", of_validation)):
        ours = np.stack([degraded(image, settings, draws(*numbers)).numpy() for numbers in given["augment.draws"]])
        yield levels(f"blur and JPEG of a {name} image", "CNNDet", ours, given[f"augment.{name}"])
    cached = {name: image_of("distildire", inputs[name]) for name in ("same", "wide")}
    for name, what, on_purpose in (("same", "stored at its size", False), ("wide", "resized", True)):
        x = test_input({"image": torch.from_numpy(cached[name])[None]}, method, CROP, "crop")["image"][0].numpy()
        yield floats(
            f"validation input of an image {what}",
            "CNNDet",
            x,
            given[f"transform.{name}"],
            bound=0.01 if on_purpose else 1e-6,
            on_purpose=on_purpose,
        )
    dire = test_input({"dire": torch.from_numpy(cached["same"])[None]}, find_method("dire"), CROP, "crop")["dire"][
        0
    ].numpy()
    yield floats("validation input of a DIRE image", "DIRE", dire, vectors("dire")["transform.same"], bound=1e-6)
    traces = json.loads((VECTORS / "plateau.json").read_text())
    epochs = sum(len(trace["accuracy"]) for trace in traces)
    wrong = sum(plateau_errors(trace) for trace in traces)
    yield Row(
        f"`accuracy-plateau`: rates, best epochs and ends of 40 trainings, {epochs:,} epochs",
        "CNNDet",
        wrong,
        "errors",
        0,
    )


def draws(blur: float = 0.0, sigma: float = 0.0, jpeg: float = 0.0, quality: float = 0.0) -> SampleDraws:
    """Return the random numbers of one image; the position of its crop is not used."""
    return SampleDraws(*(np.float64(value) for value in (0, 0, blur, sigma, jpeg, quality)))  # type: ignore[arg-type]


def plateau_errors(trace: Mapping[str, Any]) -> int:
    """Follow the accuracies of one training; return the epochs with another rate, another best or another end."""
    config = TrainConfig.checked(dataset="d", method="cnndet")
    schedule, state, wrong = LrSchedule(config, steps=1), State(), 0
    for number, accuracy in enumerate(trace["accuracy"]):
        wrong += schedule.ended(state) is not None
        wrong += not np.isclose(schedule.rate(state), trace["rates"][number], rtol=1e-9, atol=0)
        state.epoch, state.step = state.epoch + 1, state.step + 1
        line: EpochMetrics = {"epoch": state.epoch, "val_bce": 1.0, "val_ap": 1.0, "val_acc": accuracy}
        state.history.append(line)
        best = schedule.is_best(state, line)
        if best:
            state.best_epoch = state.epoch
        wrong += best != (state.epoch in trace["saved"])
        schedule.after_epoch(state)
    return wrong + ((schedule.ended(state) is not None) != trace["stopped"])


def metric_rows() -> Iterator[Row]:
    given = vectors("dire")
    names = ("accuracy", "average_precision", "real_accuracy", "fake_accuracy")
    ours = []
    for labels, logits in zip(given["metrics.label"], given["metrics.logit"], strict=True):
        found = measures(labels, torch.sigmoid(torch.from_numpy(logits)).numpy())
        ours.append([found[name] for name in names])
    apart = np.abs(np.array(ours, dtype=np.float64) - given["metrics.value"])
    yield Row("accuracy, AP, accuracy of each class, 20 sets", "DIRE", float(apart.max()), "", 1e-12)


PARTS: tuple[Callable[[], Iterator[Row]], ...] = (image_rows, adm_rows, training_rows, cnndet_rows, metric_rows)


def rows() -> list[Row]:
    """Measure every row of the table."""
    return [row for part in PARTS for row in part()]


def table(measured: list[Row]) -> str:
    """Format the rows as a Markdown table."""
    head = ("item", "paper", "largest deviation", "values that deviate", "bound", "")
    lines = [head, tuple("---" for _ in head), *(row.cells() for row in measured)]
    return "\n".join("| " + " | ".join(" ".join(cell.split()) for cell in line) + " |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="photographs, to measure the effect of rounding")
    parser.add_argument("--write", action="store_true", help="replace the table in docs/measurements/parity.md")
    torch.set_num_threads(1)
    arguments = parser.parse_args()
    measured = rows()
    text = table(measured)
    print(text, end="\n\n")
    for line in precision_lines():
        print(line)
    if arguments.images:
        print(rounding_line(arguments.images))
    if arguments.write:
        before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    return 0 if all(row.holds for row in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
