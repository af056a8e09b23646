"""What a feature is: a spec, the layout of its rows, and how to compute them.

A spec is the whole declaration. A field that is a :class:`..cache.spec.Spec` is an input: rows of that feature. Any
other field is a setting. Dependencies follow from that and are stated nowhere else.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn

from ..cache.records.about import Layout
from ..cache.spec import Spec
from ..errors import IntegrityError
from ..models.transfer import HostArray
from ..progress import Progress

S = TypeVar("S", bound=Spec)

Network = Callable[..., Tensor]
"""A frozen network on its device."""


class Feature(ABC, Generic[S]):
    """A feature: the type of its spec, and what follows from a spec of that type."""

    spec_type: type[S]
    description: str
    """What the values mean, a phrase of plain ASCII."""
    built: Literal["on request", "for train", "always"] = "on request"
    """Whether a build that is asked for no features makes it: for which splits."""

    @cached_property
    def name(self) -> str:
        """Name of the feature, which its spec states."""
        return str(self.spec_type.model_fields["feature"].default)

    @cached_property
    def inputs(self) -> Mapping[str, str]:
        """Fields of the spec that are inputs -> the features whose rows they are."""
        fields = self.spec_type.model_fields.items()
        named = {
            name: [str(kind.model_fields["feature"].default) for kind in _specs_in(f.annotation)] for name, f in fields
        }
        return {name: features[0] for name, features in named.items() if features}

    @cached_property
    def settings(self) -> frozenset[str]:
        """Fields of the spec with a choice: no inputs, and more than one possible value."""
        fixed = {
            name
            for name, field in self.spec_type.model_fields.items()
            if get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1
        }
        return frozenset(self.spec_type.model_fields) - fixed - set(self.inputs)

    @abstractmethod
    def layout(self, spec: S) -> Layout:
        """Return what a row is."""

    def warnings(self, spec: S) -> list[str]:
        """Return sentences about a spec whose rows will be of little use."""
        return []

    def derived(self, settings: Mapping[str, Any], inputs: Mapping[str, Spec]) -> Mapping[str, object]:
        """Return fields of the spec that follow from settings of another name, or from the specs of the inputs.

        Parameters
        ----------
        settings
            By name.
        inputs
            By field.
        """
        return {}


FINITE = "finite"
"""Name of (B,) bool among the values of a producer: whether all numbers of an image were finite."""


def all_finite(values: Tensor) -> Tensor:
    """Return (B,) bool, whether all numbers (B, ...) of an image are finite."""
    return torch.isfinite(values).flatten(1).all(dim=1)


@dataclass(frozen=True)
class Hidden:
    """Rows of eight bits, which hide what was not finite, and (B,) bool, whether all numbers of an image were."""

    rows: Tensor
    finite: Tensor


class NetworkSource(Protocol):
    """Where a frozen network comes from, as the options of a build name it. Equal sources name the same network."""

    def __hash__(self) -> int:
        """Return the hash of the options."""
        ...

    def digest(self, progress: Progress | None = None) -> str:
        """Return the digest of its weights (SHA-256).

        Raises
        ------
        AbsentWeightsError
            They would have to be downloaded, and that is forbidden.
        UserError
            They cannot be obtained, or do not fit.
        """
        ...

    def fields(self, digest: str) -> Mapping[str, object]:
        """Return the fields of the feature's spec that name the network with weights of this digest."""
        ...

    def load(self) -> nn.Module:
        """Load the network: on the CPU, in evaluation mode, without gradients, float32."""
        ...

    def build(self) -> nn.Module:
        """Build the network with random weights, in evaluation mode."""
        ...


@functools.cache
def network_bytes(source: NetworkSource) -> int:
    """Return the bytes of a network's parameters in float32."""
    with torch.device("meta"):
        return sum(parameter.nbytes for parameter in source.build().parameters())


class SingleFeature(Feature[S]):
    """A feature whose rows are made of others by itself: by one call of a network, or by arithmetic alone.

    Attributes
    ----------
    unit
        What progress counts.
    """

    unit: str
    remedy = "What it is computed of is damaged: run `cache verify`."
    """What to do if values are not finite."""

    def network(self, options: Mapping[str, Any]) -> NetworkSource | None:
        """Return where the network comes from, by the options of a build; None without one."""
        return None

    def options(self, spec: S) -> Mapping[str, Any]:
        """Return the options of a build that name the network of a spec, for `network`, with its published weights.

        The option with the name of the feature and ``_weights`` names a file of other weights.
        """
        return {}

    @abstractmethod
    def rows(self, network: Network | None, inputs: Mapping[str, Tensor], spec: S) -> Tensor | Hidden:
        """Compute the rows of a batch, (B, ...) in their stored dtype.

        Parameters
        ----------
        network
            The network; None for a feature without one.
        inputs
            Rows of the inputs (B, ...) by feature, on the network's device, which must not be waited for.
        spec
            The spec.
        """

    def check(self, rows: HostArray, spec: S) -> None:
        """Raise IntegrityError if rows must not be stored."""
        if not np.isfinite(rows).all():
            raise self.not_finite()

    def not_finite(self) -> IntegrityError:
        """Return the error about a value that is not a finite number."""
        return IntegrityError(f"{self.name}: a value is not a finite number, so nothing was stored. {self.remedy}")

    def warnings_about(self, rows: HostArray, spec: S) -> list[str]:
        """Return sentences about the first rows (N, ...) of a build if they are of little use."""
        return []

    @abstractmethod
    def rate_key(self, spec: S) -> dict[str, object]:
        """Return what the time of a call depends on apart from the device."""


@dataclass(frozen=True)
class Route:
    """A way through a producer, and the network calls that an image takes there; one if there is no network."""

    name: str
    calls: int


class Producer(ABC):
    """Makes one feature, or several in one pass, of rows that are there.

    Attributes
    ----------
    specs
        Specs of what it makes, by feature.
    reads
        Features whose rows it reads.
    unit
        What progress, log and cost count: images x network calls.
    """

    specs: Mapping[str, Spec]
    reads: tuple[str, ...]
    unit: str

    @abstractmethod
    def route(self, lacking: frozenset[str]) -> Route:
        """Return the shortest route that makes what an image lacks, at least one of `specs`."""

    @abstractmethod
    def queue(
        self,
        network: Network | None,
        rows: Mapping[str, Tensor],
        keys: Sequence[str],
        wanted: Sequence[str],
        route: Route,
    ) -> dict[str, Tensor]:
        """Queue the work on a batch and return tensors on the device, without waiting for it.

        Parameters
        ----------
        network
            The network; None if the producer has none.
        rows
            Rows (B, ...) of `reads`, on the device.
        keys
            Keys of the images, B.
        wanted
            Features to make, of those that the route makes.
        route
            The route.
        """

    @property
    def whole_route(self) -> Route:
        """The route that makes all of `specs`."""
        return self.route(frozenset(self.specs))

    def queue_all(self, network: Network | None, rows: Mapping[str, Tensor], keys: Sequence[str]) -> dict[str, Tensor]:
        """Queue the work on images that lack all of `specs`; see :meth:`queue`. ``rows`` may have more than it reads."""
        read = {name: rows[name] for name in self.reads}
        return self.queue(network, read, keys, list(self.specs), self.whole_route)

    @abstractmethod
    def checked(self, keys: Sequence[str], values: Mapping[str, HostArray]) -> dict[str, HostArray]:
        """Return the rows by feature from what `queue` returned, copied to the host.

        ``values`` may have more rows than ``keys``. Raises UserError or IntegrityError if a row must not be stored.
        """

    @abstractmethod
    def rate_key(self) -> dict[str, object]:
        """Return what the time of a call depends on apart from the device."""

    def divide(self, keys: Sequence[str], missing: Mapping[str, Sequence[str]]) -> dict[Route, list[str]]:
        """Divide keys by the route of each; those that lack nothing of `specs` have none.

        Parameters
        ----------
        keys
            Keys of a task.
        missing
            Feature -> keys without a row.

        Returns
        -------
        dict
            Route -> keys, both in the order in which they first occur.
        """
        lacks: dict[str, int] = {}  # a bit for each feature: plans have millions of keys
        for number, feature in enumerate(self.specs):
            bit = 1 << number
            for key in missing.get(feature, ()):
                lacks[key] = lacks.get(key, 0) | bit
        divided: dict[Route, list[str]] = {}
        of_bits: dict[int, list[str]] = {}
        for key in keys:
            bits = lacks.get(key)
            if bits is None:
                continue
            if bits not in of_bits:
                lacking = frozenset(name for number, name in enumerate(self.specs) if bits >> number & 1)
                of_bits[bits] = divided.setdefault(self.route(lacking), [])
            of_bits[bits].append(key)
        return divided

    def calls(self, keys: Sequence[str], missing: Mapping[str, Sequence[str]]) -> int:
        """Return images x calls of a task; arguments as for `divide`."""
        return sum(route.calls * len(those) for route, those in self.divide(keys, missing).items())


class Single(Producer):
    """Makes one feature of others.

    Parameters
    ----------
    feature, spec
        The feature and its spec.

    Attributes
    ----------
    feature
        The feature.
    """

    def __init__(self, feature: SingleFeature[Any], spec: Spec) -> None:
        self.specs = {feature.name: spec}
        self.reads = tuple(feature.inputs.values())
        self.unit = feature.unit
        self.feature, self._spec = feature, spec

    def route(self, lacking: frozenset[str]) -> Route:
        """See :class:`Producer`."""
        return Route(self.feature.name, 1)

    def queue(
        self,
        network: Network | None,
        rows: Mapping[str, Tensor],
        keys: Sequence[str],
        wanted: Sequence[str],
        route: Route,
    ) -> dict[str, Tensor]:
        """See :class:`Producer`."""
        made = self.feature.rows(network, rows, self._spec)
        if isinstance(made, Hidden):
            return {self.feature.name: made.rows, FINITE: made.finite}
        return {self.feature.name: made}

    def checked(self, keys: Sequence[str], values: Mapping[str, HostArray]) -> dict[str, HostArray]:
        """See :class:`Producer`."""
        found, name = dict(values), self.feature.name
        if FINITE in found and not found.pop(FINITE)[: len(keys)].all():
            raise self.feature.not_finite()
        self.feature.check(found[name], self._spec)
        return found

    def rate_key(self) -> dict[str, object]:
        """See :class:`Producer`."""
        return self.feature.rate_key(self._spec)


def _specs_in(annotation: object) -> Iterator[type[Spec]]:
    """Yield the types of specs in an annotation, such as both of ``A | B``."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        yield annotation
    for part in get_args(annotation):
        yield from _specs_in(part)
