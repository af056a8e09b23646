"""The features of pictures that are in memory, made by the pipeline's arithmetic and rounded as a cache stores them.

A student learnt from stored values: eps and noise in float16, DIRE as uint8. So the same rounding is applied here, and a
picture gives what ``evaluate`` reads for it from the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch

from ..errors import UsageError, UserError
from ..models.device import set_precision
from ..models.diffusion.ddim import extract, used_steps
from ..models.diffusion.unet import Adm
from ..pipeline.execution.batches import BatchSize, pad_batch, run_batches
from ..pipeline.execution.compute import stored_rows, to_signal
from ..pipeline.execution.networks import automatic_batch, placed
from ..pipeline.execution.transfer import HostArray, HostCopy, to_device
from ..pipeline.specs import DireSpec, NoiseSpec, one_call_features
from .feature_specs import PassSpec
from .find_adm import AdmFile

STEPS = "ddim20"
"""Where no feature walks the whole path; the first step is the same for every respacing."""
ONE = 1
WITHOUT_ADM = 64
"""Pictures at once where no model but the student looks at them."""


class FeatureMaker:
    """Makes features of pictures on a device. The model is loaded once, when it is first needed.

    specs : feature -> spec; they share picture, model, steps, clipping and precision. Empty: nothing is made, no model needed.
    batch_size : images in one ADM call. A number pads each batch to it, as a build does; ``auto`` takes at most what the
    device holds, and no more than there are.
    Raises UsageError for a precision that the device does not have, UserError for specs that do not belong together.
    """

    def __init__(
        self,
        specs: Mapping[str, PassSpec],
        adm: AdmFile | None,
        device: torch.device,
        batch_size: Literal["auto"] | int = "auto",
    ) -> None:
        self.specs = dict(specs)
        self.adm_file = adm
        self.device = device
        self._asked = batch_size
        if specs:
            self._prepare()

    @property
    def calls(self) -> int:
        """ADM calls that an image costs."""
        if not self.specs:
            return 0
        if "dire" in self.specs:
            return 2 * used_steps(self._schedule, self._real_step)
        if set(self.specs) <= one_call_features(self.specs):
            return ONE
        return used_steps(self._schedule, self._real_step)

    def make(self, pictures: HostArray) -> dict[str, HostArray]:
        """Return feature -> rows (N, 3, S, S) in their stored types, for uint8 pictures (N, 3, S, S).

        Raises UserError where the model gives anything but finite numbers, or the device's memory is too small.
        """
        made: dict[str, list[HostArray]] = {name: [] for name in self.specs}
        if not self.specs:
            return {}
        asked = {"eps"} if self.calls == ONE else set(self.specs)

        def launch(batch: Sequence[int], size: int) -> HostCopy:
            with torch.inference_mode():
                x = to_signal(to_device(pictures[pad_batch(batch, size)], self.device))
                found = extract(self.adm, x, self._schedule, asked, clip=self._clip, real_step=self._real_step)
                rows = {name: stored_rows(name, found, spec) for name, spec in self.specs.items()}
                return HostCopy({**rows, "finite": found.finite})

        def land(batch: Sequence[int], values: dict[str, HostArray]) -> None:
            if not values.pop("finite")[: len(batch)].all():
                raise UserError("predict: the diffusion model gave NaN or Inf for an image. Try a wider --precision.")
            for name, rows in values.items():
                made[name].append(rows[: len(batch)])

        run_batches(range(len(pictures)), self._batch(len(pictures)), launch, land)
        return {name: np.concatenate(rows) for name, rows in made.items()}

    def room(self, pictures: int | None) -> int:
        """How many pictures to make features of at once, of so many (None: nobody knows yet)."""
        if not self.specs:
            return WITHOUT_ADM
        return self._batch(pictures).size if pictures else self._limit.size

    @cached_property
    def adm(self) -> Adm:
        """The diffusion model on its device."""
        assert self.adm_file is not None
        return placed(self.adm_file.load(), self._precision, self.device)

    @cached_property
    def _limit(self) -> BatchSize:
        """The most that one call takes."""
        if self._asked != "auto":
            return BatchSize(self._asked)
        assert self.adm_file is not None
        weights = self.adm_file.identity.weights
        return automatic_batch(weights, self._precision, self.device, self.adm, self.size)

    def _batch(self, pictures: int) -> BatchSize:
        """How many of these pictures one call takes; what the memory cannot hold lowers the limit for good."""
        if self._asked != "auto":
            return self._limit
        if pictures == ONE:
            return BatchSize(ONE)  # nothing to find out, which would cost more calls than the picture

        def shrunk(size: int) -> None:
            while self._limit.size > size:
                self._limit.halve()

        return BatchSize(min(self._limit.size, pictures), shrunk)

    def _prepare(self) -> None:
        assert self.adm_file is not None
        shared = {(spec.clip, spec.precision) for spec in self.specs.values()}
        paths = {(s.steps, s.real_step) for s in self.specs.values() if isinstance(s, DireSpec | NoiseSpec)}
        if len(shared) != 1 or len(paths) > 1:
            raise UserError(
                "predict: the features have different steps, clipping or precision; one pass cannot make them."
            )
        ((self._clip, self._precision),) = shared
        steps, self._real_step = paths.pop() if paths else (STEPS, 0)
        flags = self.adm_file.config
        self._schedule = flags.schedule(steps)
        self.size = next(iter(self.specs.values())).image.size
        factor = 2 ** (len(flags.multipliers()) - 1)
        if self.size % factor:
            raise UsageError(
                f"--adm {self.adm_file.name}: halves images to 1/{factor}, and the student's have {self.size} pixels."
            )
        set_precision(self._precision, self.device)
