"""Compute the features of images in memory, with the build's arithmetic and the rounding of the cache.

Students are trained on stored values: eps and noise in float16, DIRE in uint8. The same rounding is applied here, so an
image has the features that ``evaluate`` reads from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..errors import UsageError, UserError
from ..models.device import arithmetic, check_precision
from ..models.diffusion.conditioning import with_classes
from ..models.diffusion.ddim import extract, used_steps
from ..models.diffusion.unet import Adm
from ..models.transfer import HostArray, HostCopy, to_device
from ..pipeline.execution.batches import BatchSize, pad_batch, start_batches
from ..pipeline.execution.compute import stored_rows, to_signal
from ..pipeline.execution.networks import automatic_batch, given_batch, placed
from ..pipeline.specs import DireSpec, NoiseSpec, one_call_features
from .feature_specs import AdmFeatureSpec
from .find_adm import AdmFile

STEPS = "ddim20"
"""Respacing if no feature needs more than the first step, which is the same for every respacing."""
IMAGES_WITHOUT_ADM = 64
"""Images per pass if only the student runs."""


@dataclass(frozen=True)
class StartedFeatures:
    """Features that a device computes or has computed.

    Attributes
    ----------
    rows
        Feature -> rows (N, 3, S, S) on the device, in their stored dtypes.
    check
        Waits for the rows. Raises UserError if the model returned NaN or Inf.
    """

    rows: Mapping[str, Tensor]
    check: Callable[[], None]

    def arrays(self) -> dict[str, HostArray]:
        """Wait for the features and return them on the host."""
        copy = HostCopy(self.rows)
        self.check()
        return copy.arrays()


class FeatureMaker:
    """Computes features of images on a device. The ADM is loaded when it is first needed.

    Parameters
    ----------
    specs : Mapping
        Feature -> spec. All have the same image, model, steps, clipping and precision. Without specs nothing is
        computed.
    adm : AdmFile or None
        The model; may be None without specs.
    device : torch.device
    batch_size : int or 'auto'
        Images per ADM call. Batches are padded to a number, as in a build; ``auto`` takes what the device's memory
        holds, and no more than there are.

    Raises
    ------
    UsageError
        If the device does not support the precision, or the ADM the image size.
    UserError
        If the specs differ in what they must share.
    """

    def __init__(
        self,
        specs: Mapping[str, AdmFeatureSpec],
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
        """ADM calls per image."""
        if not self.specs:
            return 0
        if "dire" in self.specs:
            return 2 * used_steps(self._schedule, self._real_step)
        if set(self.specs) <= one_call_features(self.specs):
            return 1
        return used_steps(self._schedule, self._real_step)

    def make(self, images: HostArray, keys: Sequence[str]) -> dict[str, HostArray]:
        """Compute the features of some images.

        Parameters
        ----------
        images : ndarray of uint8, (N, 3, S, S)
        keys : sequence of str
            Key of each image, from which a class-conditional model's classes are drawn.

        Returns
        -------
        dict
            Feature -> rows (N, 3, S, S) in their stored dtypes.

        Raises
        ------
        UserError
            If the model returns NaN or Inf, or the device's memory is too small.
        """
        return self.start(images, keys).arrays()

    def start(self, images: HostArray, keys: Sequence[str]) -> StartedFeatures:
        """Do the same as :meth:`make`, but return while the device computes; errors of its values come with the arrays."""
        made: dict[str, list[Tensor]] = {name: [] for name in self.specs}
        if not self.specs:
            return StartedFeatures({}, lambda: None)
        asked = {"eps"} if self.calls == 1 else set(self.specs)

        def launch(batch: Sequence[int], size: int) -> HostCopy:
            with torch.inference_mode():
                rows_of = pad_batch(batch, size)
                x = to_signal(to_device(images[rows_of], self.device))
                told = with_classes(self.adm, self._class_label, [keys[row] for row in rows_of], self.device)
                found = extract(told, x, self._schedule, asked, clip=self._clip, real_step=self._real_step)
                rows = {name: stored_rows(name, found, spec) for name, spec in self.specs.items()}
                copy = HostCopy({"finite": found.finite})
            for name, values in rows.items():
                made[name].append(values[: len(batch)])
            return copy

        def land(batch: Sequence[int], values: dict[str, HostArray]) -> None:
            if not values["finite"][: len(batch)].all():
                raise UserError(
                    "predict: the diffusion model returned NaN or Inf for an image. Choose a --precision with a wider range."
                )

        with arithmetic(self._precision, self.device):
            check = start_batches(range(len(images)), self._batch(len(images)), launch, land)
        with torch.inference_mode():
            return StartedFeatures({name: torch.cat(rows) for name, rows in made.items()}, check)

    def images_per_pass(self, images: int | None) -> int:
        """Return how many images to process at once; ``images`` is their total number, None if unknown."""
        if not self.specs:
            return IMAGES_WITHOUT_ADM
        return self._batch(images).size if images else self._limit.size

    @cached_property
    def adm(self) -> Adm:
        """The diffusion model on its device."""
        assert self.adm_file is not None
        return placed(self.adm_file.load(), self._precision, self.device)

    @cached_property
    def _limit(self) -> BatchSize:
        """The largest batch of one call."""
        assert self.adm_file is not None
        if self._asked != "auto":
            return given_batch(self._asked, self.device, self.adm_file.config, self.size)
        weights = self.adm_file.identity.weights
        return automatic_batch(weights, self._precision, self.device, self.adm, self.size, self._class_label)

    @property
    def _class_label(self) -> str | None:
        return None if self.adm_file is None else self.adm_file.identity.class_label

    def _batch(self, images: int) -> BatchSize:
        """Return the batch size for ``images`` images; running out of memory lowers the limit permanently."""
        if self._asked != "auto":
            return self._limit
        if images == 1:
            return BatchSize(1)  # finding the largest batch would take more calls than the image

        def shrunk(size: int) -> None:
            while self._limit.size > size:
                self._limit.halve()

        return BatchSize(min(self._limit.size, images), shrunk)

    def _prepare(self) -> None:
        assert self.adm_file is not None
        shared = {(spec.clip, spec.precision) for spec in self.specs.values()}
        paths = {(s.steps, s.real_step) for s in self.specs.values() if isinstance(s, DireSpec | NoiseSpec)}
        if len(shared) != 1 or len(paths) > 1:
            raise UserError(
                "predict: the features differ in steps, clipping or precision, so one pass cannot compute them."
            )
        ((self._clip, self._precision),) = shared
        steps, self._real_step = paths.pop() if paths else (STEPS, 0)
        flags = self.adm_file.config
        self._schedule = flags.schedule(steps)
        self.size = next(iter(self.specs.values())).image.size
        factor = 2 ** (len(flags.multipliers()) - 1)
        if self.size % factor:
            raise UsageError(
                f"--adm {self.adm_file.name}: needs image sizes divisible by {factor}, but the student's is {self.size} pixels."
            )
        check_precision(self._precision, self.device)
