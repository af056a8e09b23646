"""Find the network of a run's feature: the one whose weights have the digest in the feature's spec."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..cache.spec import Spec
from ..errors import UserError
from ..features.contract import SingleFeature


def find_network(feature: SingleFeature[Any], spec: Spec, weights: str | None = None) -> nn.Module | None:
    """Load the network of a feature, on the CPU; None if the feature has none.

    Parameters
    ----------
    feature : SingleFeature
    spec : Spec
        Its spec in the run.
    weights : str or None
        File or address of the weights; None for the published ones.

    Raises
    ------
    UserError
        The weights cannot be obtained, or are not those of the spec.
    """
    options = {**feature.options(spec), f"{feature.name}_weights": weights}
    source = feature.network(options)
    if source is None:
        return None
    expected = source.fields(source.digest())
    differing = [name for name, value in expected.items() if getattr(spec, name) != value]
    if differing:
        raise UserError(
            f"predict: the network of `{feature.name}` is not that of the student's training ({differing[0]} "
            f"{str(expected[differing[0]])[:16]}, there {str(getattr(spec, differing[0]))[:16]}). Name the file of its "
            f"weights with --weights-of {feature.name}=FILE."
        )
    return source.load()
