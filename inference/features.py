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
from ..features.contract import Route
from ..features.registry import walk_of
from ..features.walk import FINITE, Walk, WalkSpec
from ..models.device import arithmetic, check_precision
from ..models.diffusion.unet import Adm
from ..models.transfer import HostArray, HostCopy, to_device
from ..pipeline.execution.batches import BatchSize, pad_batch, start_batches
from ..pipeline.execution.networks import automatic_batch, given_batch, placed
from .find_adm import AdmFile

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
        specs: Mapping[str, WalkSpec],
        adm: AdmFile | None,
        device: torch.device,
        batch_size: Literal["auto"] | int = "auto",
    ) -> None:
        self.specs = dict(specs)
        self.adm_file = adm
        self.device = device
        self._asked = batch_size
        self._walk = walk_of(self.specs)
        if self._walk is not None:
            self._check(self._walk)

    @cached_property
    def _route(self) -> Route:
        """The pass that makes all features."""
        assert self._walk is not None
        return self._walk.route(frozenset(self.specs))

    @property
    def calls(self) -> int:
        """ADM calls per image."""
        return 0 if self._walk is None else self._route.calls

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
        walk = self._walk
        if walk is None:
            return StartedFeatures({}, lambda: None)

        def launch(batch: Sequence[int], size: int) -> HostCopy:
            with torch.inference_mode():
                rows_of = pad_batch(batch, size)
                read = {"image": to_device(images[rows_of], self.device)}
                rows = walk.queue(self.adm, read, [keys[row] for row in rows_of], list(self.specs), self._route)
                copy = HostCopy({FINITE: rows.pop(FINITE)})
            for name, values in rows.items():
                made[name].append(values[: len(batch)])
            return copy

        def land(batch: Sequence[int], values: dict[str, HostArray]) -> None:
            if not values[FINITE][: len(batch)].all():
                raise UserError(
                    "predict: the diffusion model returned NaN or Inf for an image. Choose a --precision with a wider range."
                )

        with arithmetic(walk.precision, self.device):
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
        assert self._walk is not None
        return placed(self.adm_file.load(), self._walk.precision, self.device)

    @cached_property
    def _limit(self) -> BatchSize:
        """The largest batch of one call."""
        walk = self._walk
        assert walk is not None
        identity, size = walk.adm, walk.image.size
        if self._asked != "auto":
            return given_batch(self._asked, self.device, identity.config, size)
        return automatic_batch(
            identity.weights, walk.precision, self.device, self.adm, size, identity.class_label, held=walk.held_bytes
        )

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

    def _check(self, walk: Walk) -> None:
        """Raise UsageError if the ADM does not take images of this size, or the device does not have the precision."""
        assert self.adm_file is not None
        factor = 2 ** (len(walk.adm.config.multipliers()) - 1)
        if walk.image.size % factor:
            raise UsageError(
                f"--adm {self.adm_file.name}: needs image sizes divisible by {factor}, but the student's is "
                f"{walk.image.size} pixels."
            )
        check_precision(walk.precision, self.device)
