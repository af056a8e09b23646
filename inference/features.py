"""Compute the features of images in memory, with the build's arithmetic and the rounding of the cache.

Students are trained on stored values: eps and noise in float16, DIRE in uint8. The same rounding is applied here, so an
image has the features that ``evaluate`` reads from the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from ..cache.records.about import Layout
from ..cache.spec import Spec
from ..choices import Precision
from ..errors import UsageError, UserError
from ..features.contract import FINITE, Network, Producer, Single
from ..features.registry import layout_of, producers_of, walk_of
from ..features.walk import Walk
from ..models.device import arithmetic, check_precision
from ..models.diffusion.kinds import DiffusionModel
from ..models.layout import move_network
from ..models.transfer import HostArray, HostCopy, to_device
from ..pipeline.execution.batches import BatchSize, pad_batch, start_batches
from ..pipeline.execution.networks import SINGLE_BATCH, automatic_batch, given_batch, placed
from .find_adm import AdmFile
from .find_network import find_network

IMAGES_WITHOUT_ADM = 64
"""Images per pass if only the student runs."""


@dataclass(frozen=True)
class StartedFeatures:
    """Features that a device computes or has computed.

    Attributes
    ----------
    rows
        Feature -> rows (N, ...) on the device, in their stored dtypes; of views the plain one.
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
    """Computes features of images on a device. Networks are loaded when they are first needed.

    Parameters
    ----------
    specs : Mapping
        Feature -> spec, with all that these are made of. What the ADM makes has the same image, model, steps, clipping
        and precision. ``image`` is given and not computed.
    adm : AdmFile or None
        The diffusion model; may be None if no feature needs one.
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
        specs: Mapping[str, Spec],
        adm: AdmFile | None,
        device: torch.device,
        batch_size: Literal["auto"] | int = "auto",
        weights: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.specs = {name: spec for name, spec in specs.items() if name != "image"}
        self.adm_file = adm
        self.device = device
        self._asked, self._weights = batch_size, weights
        self._walk = walk_of(self.specs)
        self._producers = producers_of(self.specs)
        self._layouts = {name: layout_of(spec) for name, spec in self.specs.items()}
        self._networks: dict[str, Network | None] = {}
        if self._walk is not None:
            self._check(self._walk)

    @property
    def calls(self) -> int:
        """ADM calls per image."""
        return 0 if self._walk is None else self._walk.whole_route.calls

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
            Feature -> rows (N, ...) in their stored dtypes; of views the plain one.

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

        def launch(batch: Sequence[int], size: int) -> HostCopy:
            rows_of = pad_batch(batch, size)
            rows = {"image": to_device(images[rows_of], self.device)}
            told = [keys[row] for row in rows_of]
            with torch.inference_mode():
                finite = torch.ones(size, dtype=torch.bool, device=self.device)
                for producer in self._producers:
                    rows |= producer.queue_all(self._network(producer), rows, told)
                    finite = finite & rows.pop(FINITE) if FINITE in rows else finite
                copy = HostCopy({FINITE: finite})
            for name, layout in self._layouts.items():
                if rows[name].shape[1:] != layout.shape:
                    raise UserError(f"predict: `{name}` lacks its network. Name its weights: --weights-of {name}=FILE.")
                view = plain_view(layout)
                made[name].append((rows[name] if view is None else rows[name][:, view])[: len(batch)])
            return copy

        def land(batch: Sequence[int], values: dict[str, HostArray]) -> None:
            if not values[FINITE][: len(batch)].all():
                raise UserError(
                    "predict: a network returned NaN or Inf for an image. Choose a --precision with a wider range."
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

    @property
    def _precision(self) -> Precision:
        """The precision of the features, one for all."""
        found: Precision = "fp32"
        for spec in self.specs.values():
            found = getattr(spec, "precision", found)
        return found if self._walk is None else self._walk.precision

    def _network(self, producer: Producer) -> Network | None:
        """Return the network of a producer on the device."""
        if not isinstance(producer, Single):
            return self.adm
        name = producer.feature.name
        if name not in self._networks:
            found = find_network(producer.feature, self.specs[name], self._weights.get(name))
            self._networks[name] = None if found is None else move_network(found, self.device)
        return self._networks[name]

    @cached_property
    def adm(self) -> DiffusionModel:
        """The diffusion model on its device."""
        assert self.adm_file is not None
        assert self._walk is not None
        return placed(self.adm_file.load(), self._walk.precision, self.device)

    @cached_property
    def _limit(self) -> BatchSize:
        """The largest batch of one call."""
        walk = self._walk
        if walk is None:
            return BatchSize(SINGLE_BATCH[self.device.type] if self._asked == "auto" else self._asked)
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


def plain_view(layout: Layout) -> int | None:
    """Return the place of the plain image's view along the first axis of a row; None if that is no axis of views."""
    return layout.views.index("identity") if layout.views else None
