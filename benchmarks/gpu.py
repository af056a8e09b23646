"""One table for one GPU, in ten minutes: what a build reaches of the card's own rate, and how far it is from the papers' scripts.

    python benchmarks/gpu.py [--adm FILE] [--precision bf16 tf32 fp16] [--minutes 10] [--json gpu.json] [--markdown gpu.md]

Run it on an idle GPU. It needs torch and distil-cache with what that depends on, and nothing else: no git, no network,
no weights, no images. Without ``--adm`` the network is ADM-256, 552.8 million parameters, with random weights: speed does
not depend on their values, but the deviation of a precision does. Images are random, since a card draws less power on
zeros and runs faster.

It measures the code of a build: the same batches, settings and copies. Each precision has the batch size that a build
would choose for it. The plain procedure is what the papers' scripts do: batch 1, channels outermost, attention as two
einsums, every result fetched before the next is begun; at PyTorch's defaults (TF32 in cuDNN's convolutions alone), and in
each precision that is measured. What the minutes do not suffice for is marked as not measured.

``--self-test`` runs all of it with a tiny model on the CPU, where nothing is compiled and the figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import gpu_work as work
import torch
from distil_cache import __version__
from distil_cache.choices import Precision
from distil_cache.errors import DistilCacheError
from distil_cache.models.device import HALF_TYPES, choose_device, device_name
from distil_cache.models.diffusion.unet import Adm
from gpu_work import Subject

PRECISIONS: tuple[Precision, ...] = ("bf16", "tf32", "fp16", "fp32")
DEFAULT: tuple[Precision, ...] = ("bf16", "tf32", "fp16")
SELF_TEST: tuple[Precision, ...] = ("bf16", "fp32")
SIZES, TINY_SIZES = (8, 32, 63), (2, 4, 3)
"""Batches whose rows are compared."""
REPEATED = 8
"""Images that another process computes too, beside what this one holds in memory."""
PLAIN = "images/s of eps, DIRE and teacher, plain"
BUILD = "images/s of eps, DIRE and teacher, build"
DEFAULTS = "PyTorch's defaults"
"""Column of the plain procedure as the papers' scripts run it."""
NOT_MEASURED = "not measured"


@dataclass
class Table:
    """Values by measure and precision; ``began`` is when its minutes began."""

    minutes: float
    began: float = field(default_factory=time.monotonic)
    rows: dict[str, dict[str, object]] = field(default_factory=dict)
    aims: dict[str, str] = field(default_factory=dict)

    def add(
        self, measure: str, precision: str, make: Callable[..., object], *arguments: object, aim: str = ""
    ) -> float | None:
        """Measure a value unless the minutes are over, print it, and return it if it is a number.

        What fails on the device says why in its place and ends nothing.
        """
        value: object = NOT_MEASURED
        if time.monotonic() - self.began < self.minutes * 60:
            try:
                value = make(*arguments)
            except (RuntimeError, DistilCacheError) as error:
                value = f"failed: {str(error).strip().partition(chr(10))[0][:120]}"
        self.aims.setdefault(measure, aim)
        self.rows.setdefault(measure, {})[precision] = value
        print(f"{time.monotonic() - self.began:5.0f} s  {measure}, {precision}: {shown(value)}", flush=True)
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def add_ratio(self, measure: str, precision: str, over: float | None, under: float | None, aim: str = "") -> None:
        """Add the quotient of two values that were measured."""
        self.add(measure, precision, lambda: over / under if over and under else NOT_MEASURED, aim=aim)

    def markdown(self, conditions: dict[str, str]) -> str:
        """Return the table for a page of the documentation."""
        columns = list(dict.fromkeys(column for row in self.rows.values() for column in row))
        head = ["", *columns, "aim"]
        about = ", ".join(f"{name} {value}" for name, value in conditions.items())
        lines = [f"{about}.", "", _line(head), _line(["---"] * len(head))]
        for measure, row in self.rows.items():
            lines.append(_line([measure, *(shown(row.get(column, "")) for column in columns), self.aims[measure]]))
        return "\n".join(lines) + "\n"


def shown(value: object) -> str:
    """Return a value as the table shows it."""
    if value is None:
        return "no kernels in the trace"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Bench:
    """A subject, and the table that its measurements go to."""

    subject: Subject
    table: Table
    sizes: tuple[int, ...]
    again: tuple[str, ...]
    """Options with which another process measures the same."""
    _models: dict[str, Adm] = field(default_factory=dict)
    _batches: dict[str, float | None] = field(default_factory=dict)

    def run(self, precisions: Sequence[Precision]) -> None:
        """Fill the table: all of the first precision, then how far the others deviate, then the rest of them."""
        self.table.add(PLAIN, DEFAULTS, work.plain_rate, self.subject, None)
        first, *others = precisions
        self._speed(first)
        self._deviation(first)
        self._promises(first)
        for precision in others:
            self._deviation(precision)
        for precision in others:
            self._speed(precision)
            self._promises(precision)

    def model(self, precision: Precision) -> Adm:
        """Return the network, which float32 and TF32 share."""
        weights: Precision = precision if precision in HALF_TYPES else "fp32"
        if weights not in self._models:
            self._models[weights] = self.subject.on_device(weights)
        return self._models[weights]

    def batch(self, precision: Precision) -> int | None:
        """Return the batch size that a build chooses; None if the precision cannot be measured."""
        if precision not in self._batches:
            find = lambda: work.best_batch(self.subject, self.model(precision), precision)  # noqa: E731
            self._batches[precision] = self.table.add("images in a batch", precision, find)
        size = self._batches[precision]
        return None if size is None else int(size)

    def _speed(self, precision: Precision) -> None:
        subject, table, batch = self.subject, self.table, self.batch(precision)
        if batch is None:
            return
        same = table.add(PLAIN, precision, work.plain_rate, subject, precision)
        defaults = table.rows[PLAIN][DEFAULTS]
        for way in ("eager", "compiled"):
            model = self.model(precision) if way == "eager" else subject.compile(self.model(precision))
            of = (subject, model, precision, batch)
            calls = table.add(f"images x ADM calls a second, {way}", precision, work.call_rate, *of)
            most = table.add(
                f"TFLOP/s of a matrix product, after {way}", precision, work.matrix_rate, subject, precision
            )
            reached = calls * subject.flop / 1e12 if calls else None
            table.add_ratio(f"ADM over the matrix product's rate, {way}", precision, reached, most, "0.5")
            images = table.add(f"{BUILD}, {way}", precision, work.product_rate, *of)
            scripts = defaults if isinstance(defaults, float) else None
            table.add_ratio(f"build over plain at {DEFAULTS}, {way}", precision, images, scripts)
            table.add_ratio(f"build over plain in the same precision, {way}", precision, images, same)
            table.add(f"time without a kernel, {way}", precision, work.idle_share, *of, aim="< 0.05")

    def _deviation(self, precision: Precision) -> None:
        if precision == "fp32" or self.batch(precision) is None:
            return
        found: list[work.Deviation] = []

        def compare() -> float:
            found.append(work.deviation(self.subject, self.model("fp32"), self.model(precision), precision))
            return found[0].eps_relative

        self.table.add("relative error of eps against float32", precision, compare)
        if found:
            self.table.add("DIRE values off by more than 1", precision, lambda: found[0].dire_changed)

    def _promises(self, precision: Precision) -> None:
        subject, table, batch = self.subject, self.table, self.batch(precision)
        if batch is None:
            return
        model = self.model(precision)
        table.add(
            "two processes give the same bytes", precision, self._repeats, precision, min(batch, REPEATED), aim="yes"
        )
        for feature in ("eps", "dire"):
            measure = f"rows of {feature} that are equal in batches of {', '.join(map(str, self.sizes))}"
            table.add(measure, precision, work.equal_rows, subject, model, precision, self.sizes, feature)
        table.add("batch that memory does not suffice for", precision, self._halved, precision, batch)

    def _repeats(self, precision: Precision, batch: int) -> bool:
        """Return whether another process makes the same bytes."""
        command = [sys.executable, __file__, *self.again, "--digest", precision, "--batch", str(batch)]
        if self.subject.device.type == "cuda":
            torch.cuda.empty_cache()  # for the other process
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the other process ended with {done.returncode}: {done.stderr.strip()[-100:]}")
        return done.stdout.split()[-1] == work.digest(self.subject, self.model(precision), precision, batch)

    def _halved(self, precision: Precision, batch: int) -> str:
        size, same = work.halved(self.subject, self.model(precision), precision, batch)
        return f"{batch} became {size}, {'with' if same else 'WITHOUT'} that batch's bytes"


def conditions(subject: Subject, adm: str | None) -> dict[str, str]:
    """Return where, when and with what this is measured."""
    device = subject.device
    found = {"measured on": device_name(device)}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found["with"] = f"{card.total_memory / 2**30:.0f} GiB"
        found["compute capability"] = f"{card.major}.{card.minor}"
        found |= {"CUDA": str(torch.version.cuda), "cuDNN": str(torch.backends.cudnn.version())}
    found |= {"torch": torch.__version__, "Python": platform.python_version(), "distil-cache": __version__}
    return {**found, "network": adm or "with random weights", "on": datetime.now(UTC).date().isoformat()}


def _device(name: str) -> torch.device:
    try:
        return choose_device(name)
    except DistilCacheError as error:
        raise SystemExit(str(error)) from None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adm", help="file or name of a diffusion model; default: ADM-256 with random weights")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, help="default: bf16 tf32 fp16")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--self-test", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--markdown", type=Path, default=Path("gpu.md"))
    parser.add_argument("--digest", choices=PRECISIONS, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.self_test:
        subject, precisions, sizes = work.tiny_subject(torch.device("cpu")), SELF_TEST, TINY_SIZES
    else:
        subject, precisions, sizes = work.adm_subject(_device(options.device), options.adm), DEFAULT, SIZES
    if options.digest:
        print(work.digest(subject, subject.on_device(options.digest), options.digest, options.batch))
        return
    adm = ("--adm", options.adm) if options.adm else ()
    again = ("--self-test",) if options.self_test else ("--device", str(subject.device), *adm)
    where, table = conditions(subject, options.adm), Table(options.minutes)
    Bench(subject, table, sizes, again).run(options.precision or precisions)
    seconds = time.monotonic() - table.began
    measured = {"conditions": where, "seconds": seconds, "rows": table.rows, "aims": table.aims}
    options.json.write_text(json.dumps(measured, indent=2) + "\n", "utf-8")
    options.markdown.write_text(table.markdown(where), "utf-8")
    print(f"\n{table.markdown(where)}\n{seconds:.0f} s; also in {options.json} and {options.markdown}.")


if __name__ == "__main__":
    main()
