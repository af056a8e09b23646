"""The pass through a diffusion model: DDIM inversion and sampling once, and all features that can be read off it.

Each feature of the pass has a tap, which sees every call of the model and keeps what it needs. A pass goes no further
than the features that an image lacks: ``first`` is one call, ``inversion`` one for each step, ``path`` inversion and
sampling. The first call of the inversion is the one of ``first``, for any respacing, so what needs only that costs
nothing beside anything else.

DDIM is that of Song et al. 2021 (eq. 12 with eta = 0), run forwards and backwards; see
:mod:`..models.diffusion.ddim`, which has the arithmetic of a step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor

from ..cache.spec import Spec
from ..choices import PassCalls, Precision
from ..errors import UserError
from ..images.spec import ImageSpec
from ..models.diffusion.conditioning import with_classes
from ..models.diffusion.ddim import NoiseModel, NoisePrediction, used_steps
from ..models.diffusion.noise_schedule import Step
from ..models.diffusion.pass_calls import predictor_of, steps_called
from ..models.transfer import HostArray
from .adm import AdmIdentity
from .contract import FINITE, Feature, Network, Producer, Route, all_finite

Reach = Literal["first", "inversion", "path"]
REACHES: tuple[Reach, ...] = ("first", "inversion", "path")
"""How far a pass goes, the shortest first."""
CALLS = "ADM calls"
ONE_STEP = "1"
"""Respacing of a pass of one call."""
_BYTES = 4
"""Bytes of a value of a state, float32."""


class WalkSpec(Spec):
    """What decides the first call of a pass over an image."""

    image: ImageSpec
    adm: AdmIdentity
    clip: bool = True
    precision: Precision = "fp32"


class PathSpec(WalkSpec):
    """What decides a whole pass.

    Attributes
    ----------
    real_step
        Number of the cleanest steps that are used, 0 for all.
    calls
        At which of them the model is called; ``fewer`` approximates the rest, see :mod:`..models.diffusion.pass_calls`.
    """

    ADDED: ClassVar[frozenset[str]] = frozenset({"calls"})

    steps: str = "ddim20"
    real_step: int = Field(default=0, ge=0)
    calls: PassCalls = "all"

    @property
    def used_steps(self) -> int:
        """Number of steps of the inversion, and of the sampling. Raises UserError as `used_steps` does."""
        return used_steps(self.adm.config.schedule(self.steps), self.real_step)


W = TypeVar("W", bound=WalkSpec)


class Tap:
    """Sees the calls of a pass over a batch, and makes one feature of them.

    Tensors are (B, 3, S, S) float32 on the device of the pass, which must not be waited for.
    """

    def up(self, step: Step, state: Tensor, seen: NoisePrediction) -> None:
        """See a call of the inversion, the one for the cleanest step first; ``state`` is what the model was given."""

    def down(self, step: Step, seen: NoisePrediction, cleaner: Tensor) -> None:
        """See a call of the sampling and the state after it; the last one is the reconstruction, in about [-1, 1]."""

    def rows(self) -> Tensor:
        """Return the rows (B, ...) when the pass has ended, in their stored dtype."""
        raise NotImplementedError


class WalkFeature(Feature[W]):
    """A feature of the pass."""

    @abstractmethod
    def reach(self, spec: W) -> Reach:
        """Return how far the pass must go."""

    @abstractmethod
    def tap(self, spec: W, start: Tensor) -> Tap:
        """Return the tap for a batch of images in [-1, 1]."""

    def held(self, spec: W) -> int:
        """Return how many states of each image a tap keeps at a time, if they are more than a few."""
        return 0


class Walk(Producer):
    """The pass for some features.

    Parameters
    ----------
    features
        Those of the pass and the spec of each.

    Attributes
    ----------
    adm, clip, precision
        What the specs share.
    schedule, steps
        The respaced schedule, and how many of its steps are used.
    called
        At which of them the model is called.

    Raises
    ------
    UserError
        The specs differ in what a pass has only once.
    """

    reads = ("image",)
    unit = CALLS

    def __init__(self, features: Iterable[tuple[WalkFeature[Any], WalkSpec]]) -> None:
        pairs = [(feature, spec) for feature, spec in features]
        self._features = {feature.name: feature for feature, _ in pairs}
        self.specs: Mapping[str, WalkSpec] = {feature.name: spec for feature, spec in pairs}
        shared = {(spec.image, spec.adm.weights, spec.clip, spec.precision) for spec in self.specs.values()}
        paths = {(spec.steps, spec.real_step, spec.calls) for spec in self.specs.values() if isinstance(spec, PathSpec)}
        if len(shared) != 1 or len(paths) > 1:
            raise UserError(
                f"{', '.join(self.specs)}: differ in image, model, steps, calls, clipping or precision, so one pass "
                "cannot compute them."
            )
        first = next(iter(self.specs.values()))
        self.image, self.adm, self.clip, self.precision = first.image, first.adm, first.clip, first.precision
        self._path = paths.pop() if paths else None
        respacing, real_step, self.called = self._path or (ONE_STEP, 0, "all")
        self.schedule = self.adm.config.schedule(respacing)
        self.steps = used_steps(self.schedule, real_step)

    @property
    def settings(self) -> dict[str, object]:
        """Settings of the specs that another feature of the same pass would have."""
        found: dict[str, object] = {"adm": self.adm, "clip": self.clip, "precision": self.precision}
        if self._path is not None:
            found |= zip(("steps", "real_step", "calls"), self._path, strict=True)
        return found

    @property
    def held_bytes(self) -> int:
        """Bytes of the states of an image that the taps keep, and of the noise that stands in for calls."""
        states = sum(self._features[name].held(spec) for name, spec in self.specs.items())
        if self.called == "fewer":
            states += self.steps
        return states * 3 * self.image.size**2 * _BYTES

    def calls_of(self, reach: Reach) -> int:
        """Return the model calls of an image on a route."""
        up, down = steps_called(self.called, self.steps)
        return {"first": 1, "inversion": len(up), "path": len(up) + len(down)}[reach]

    def route(self, lacking: frozenset[str]) -> Route:
        """See :class:`.contract.Producer`."""
        needed = {self._features[name].reach(self.specs[name]) for name in lacking}
        reach = max(needed, key=REACHES.index)
        return Route(reach, self.calls_of(reach))

    def queue(
        self,
        network: Network | None,
        rows: Mapping[str, Tensor],
        keys: Sequence[str],
        wanted: Sequence[str],
        route: Route,
    ) -> dict[str, Tensor]:
        """See :class:`.contract.Producer`; among the values is `FINITE`."""
        assert network is not None
        with torch.inference_mode():
            x = to_signal(rows["image"])
            taps = {name: self._features[name].tap(self.specs[name], x) for name in wanted}
            model = with_classes(network, self.adm.class_label, keys, x.device)
            finite = self._walked(model, x, route.name, taps.values())
            return {**{name: tap.rows() for name, tap in taps.items()}, FINITE: finite}

    def checked(self, keys: Sequence[str], values: Mapping[str, HostArray]) -> dict[str, HostArray]:
        """See :class:`.contract.Producer`. Eight bits would hide what is not finite."""
        found = dict(values)
        bad = [key for key, fine in zip(keys, found.pop(FINITE).tolist(), strict=False) if not fine]
        if bad:
            raise UserError(
                f"{', '.join(found)}: the diffusion model gave NaN or Inf for {len(bad)} of {len(keys)} images "
                f"(first: {bad[0]}), "
                "so nothing was stored for them. Try --precision fp32; if that is set already, the weights are damaged."
            )
        return found

    def rate_key(self) -> dict[str, object]:
        """See :class:`.contract.Producer`."""
        return {"adm": self.adm.weights, "size": self.image.size, "precision": self.precision}

    def _walked(self, model: NoiseModel, x: Tensor, reach: str, taps: Iterable[Tap]) -> Tensor:
        """Run the pass over images (B, 3, S, S) and return (B,) bool, whether all numbers of an image were finite.

        What is not finite in a call is so in all that follow.
        """
        state = x
        steps = list(self.schedule.ascending(1 if reach == "first" else self.steps))
        predictor = predictor_of(self.called, model, steps, clip=self.clip)
        for index, step in enumerate(steps):
            seen = predictor.up(index, state)
            for tap in taps:
                tap.up(step, state, seen)
            if reach == "first":
                return all_finite(seen.eps)
            state = step.next_signal * seen.x0 + step.next_noise * seen.eps
        if reach == "path":
            for index, step in reversed(list(enumerate(steps))):
                seen = predictor.down(index, state)
                state = step.prev_signal * seen.x0 + step.prev_noise * seen.eps
                for tap in taps:
                    tap.down(step, seen, state)
        return all_finite(state)


def to_signal(pixels: Tensor) -> Tensor:
    """Map uint8 pixels to a diffusion model's float32 input in [-1, 1]: k / 255 x 2 - 1, as the reference does.

    Except on a CPU, where it would change the last bits, the input has the memory format of the model's weights.
    """
    x = pixels.float() / 255 * 2 - 1
    return x if x.device.type == "cpu" else x.contiguous(memory_format=torch.channels_last)
