"""Which images belong together, so that the bootstrap draws them together: by a column of an evaluation's scores.

By default images of one source group are a cluster, if there are enough groups to draw from. A few groups, such as
``imagenet`` and ``celebahq``, are parts of the test that are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..choices import CLUSTER_COLUMNS
from ..errors import UsageError
from .measures import Array

AUTO, IMAGE = "auto", "image"
COLUMNS = ("group", "generator", "family")
"""Columns that may name clusters."""
FEWEST_GROUPS = 10
"""With fewer source groups of a class, images are drawn unless the column is named."""
FEW_CLUSTERS = 20
"""Over fewer clusters of a class, intervals are too narrow."""


@dataclass(frozen=True)
class Clusters:
    """The clusters of some images.

    Attributes
    ----------
    names : ndarray of str, (N,)
        Cluster of each image.
    column : str
        Where the names are from; ``IMAGE`` if images with the same bytes alone are drawn together.
    number : int
        Clusters of the class that has fewer.
    left_out : int
        Source groups that were too few to be drawn by default; 0 if there are none, or one.
    """

    names: Array
    column: str
    number: int
    left_out: int = 0

    @property
    def sentence(self) -> str:
        """What to know of the clusters; empty if images are drawn and there is nothing else to draw."""
        if self.left_out:
            return (
                f"the images are in {self.left_out} source groups, too few to be drawn: intervals resample images and hold "
                "for these groups alone (--cluster group resamples groups)"
            )
        if self.column == IMAGE:
            return ""
        few = f"; fewer than {FEW_CLUSTERS} make intervals too narrow" if self.number < FEW_CLUSTERS else ""
        return f"intervals resample whole clusters by `{self.column}`, {self.number} of the class that has fewer{few}"


def choose_clusters(choice: str, keys: Array, labels: Array, columns: Mapping[str, Array]) -> Clusters:
    """Return the clusters of the images of an evaluation.

    Parameters
    ----------
    choice : str
        One of ``choices.CLUSTER_COLUMNS``.
    keys : ndarray of str, (N,)
        An image without a name in the column is a cluster of its own, together with its copies.
    labels : ndarray, (N,)
    columns : Mapping
        The columns of `COLUMNS`, (N,) each.

    Raises
    ------
    UsageError
        The choice is none of these, or the column does not divide the images.
    """
    if choice not in CLUSTER_COLUMNS:
        raise UsageError(f"--cluster {choice}: is none of {', '.join(CLUSTER_COLUMNS)}.")
    if choice in (AUTO, IMAGE):
        groups = columns["group"]
        counts = [len(set(groups[(labels == label) & (groups != "")].tolist())) for label in (0, 1)]
        several = len(set(groups[groups != ""].tolist()))
        shared = 1 < several < np.sum(groups != "")
        if choice == IMAGE or not shared or min(filter(None, counts)) < FEWEST_GROUPS:
            return Clusters(keys, IMAGE, _fewest(keys, labels), several if shared and choice == AUTO else 0)
        return _by_column("group", keys, labels, groups)
    names = columns[choice]
    if len(set(names.tolist())) < 2:
        raise UsageError(f"--cluster {choice}: all images have the same {choice}, so there is nothing to draw from.")
    return _by_column(choice, keys, labels, names)


def _by_column(column: str, keys: Array, labels: Array, values: Array) -> Clusters:
    names = np.where(values == "", keys, np.char.add(f"{column} ", values.astype(str)))
    return Clusters(names, column, _fewest(names, labels))


def _fewest(names: Array, labels: Array) -> int:
    return min(len(set(names[labels == label].tolist())) for label in (0, 1))
