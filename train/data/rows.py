"""The rows of a training: of one dataset, or of several joined ones.

Each dataset has its own build, all with the same features by fingerprint, and its own validation rows by the rules of
``select``. Rows that any dataset reserves for testing are used neither for training nor for validation, and rows that
any dataset validates on are not used for training, even if another dataset has them for training. An image with both
labels is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...cache.records.builds import BuildRecord
from ...cache.records.datasets import TablePieces
from ...cache.shards.keys import BINARY, KeyArray, keys_of_column
from ...cache.store import Cache
from ...errors import UserError
from ..config import TrainConfig
from .select import TrainingSplit, candidate_builds, choose_build, column, dataset_rows, parse_select, training_parts

OWN_VAL = "split val"
"""Description of validation rows that are a dataset's own."""


@dataclass(frozen=True)
class TrainingRows:
    """The rows of a training.

    Attributes
    ----------
    train, val
        Tables in the schema of a dataset.
    val_split
        The split of the rows in ``val``.
    builds
        The build of each dataset.
    validation
        Description of the origin of ``val``.
    left_out
        Number of rows not used because another dataset reserves their image for another purpose.
    """

    train: pa.Table
    val: pa.Table
    val_split: str
    builds: tuple[BuildRecord, ...]
    validation: str
    left_out: int


def find_rows(
    config: TrainConfig,
    cache: Cache,
    features: Sequence[str],
    known: Mapping[str, str],
    purpose: str,
    *,
    val_beside_test: bool = False,
) -> TrainingRows:
    """Find the rows and builds of a training that reads ``features`` and validates on the method's inputs.

    Parameters
    ----------
    config
        The configuration of the training.
    cache
        The cache.
    features
        Features that the training reads.
    known
        Build of each dataset, for a training that resumes.
    purpose
        What needs the features, for error messages.
    val_beside_test
        Use the split ``val`` only of a dataset that also has ``test``, as runs of record version 2 and before did.

    Raises
    ------
    UserError
        A dataset, split, class, build or feature is missing or does not fit.
    """
    named = dict(known) or _named_builds(config, cache)
    splits: list[TrainingSplit] = []
    builds: list[BuildRecord] = []
    reserved: list[KeyArray] = []
    for dataset in config.dataset:
        revision, _ = candidate_builds(cache, dataset, named.get(dataset))
        pieces = dataset_rows(cache.datasets(), dataset, revision)
        own_val = config.val_from == "val" and (not val_beside_test or _has_split(pieces, "test"))
        parts = training_parts(pieces, parse_select(config.select), config.val_fraction, dataset, own_val=own_val)
        needed = {"train": tuple(features)}
        if parts.val_split != "train":
            needed[parts.val_split] = config.definition.inputs
        first = {name: built.fingerprint for name, built in builds[0].features.items()} if builds else None
        builds.append(choose_build(cache, dataset, named.get(dataset), needed, purpose=purpose, fingerprints=first))
        splits.append(parts)
        if len(config.dataset) > 1:
            reserved.append(_reserved_keys(pieces, parts))
    train, val = pa.concat_tables([s.train for s in splits]), pa.concat_tables([s.val for s in splits])
    rows = train.num_rows + val.num_rows
    if len(splits) > 1:
        val = _without(val, reserved)
        train = _without(train, [*reserved, keys_of_column(val["key"])])
        _check_labels(pa.concat_tables([train, val]), config.dataset)
    return TrainingRows(
        train=train,
        val=val,
        val_split=splits[0].val_split,
        builds=tuple(builds),
        validation="; ".join(dict.fromkeys(_describe_validation(parts, config.val_fraction) for parts in splits)),
        left_out=rows - train.num_rows - val.num_rows,
    )


def _named_builds(config: TrainConfig, cache: Cache) -> dict[str, str]:
    """Map datasets to the builds of the configuration; UserError if one matches no dataset, or two the same."""
    named: dict[str, str] = {}
    for build in config.build:
        dataset = cache.builds().read(build).dataset
        if dataset not in config.dataset:
            raise UserError(f"--build {build}: is a build of {dataset}, not of {', '.join(config.dataset)}.")
        if dataset in named:
            raise UserError(f"--build {build}: {dataset} already has the build {named[dataset]}.")
        named[dataset] = build
    return named


def _has_split(pieces: TablePieces, split: str) -> bool:
    return any(split in piece["split"].combine_chunks().dictionary.to_pylist() for piece in pieces())


def _reserved_keys(pieces: TablePieces, parts: TrainingSplit) -> KeyArray:
    """Return the keys that a dataset reserves for other purposes than training and this validation."""
    others = pa.array(["train", parts.val_split])
    rows = (piece.filter(pc.invert(pc.is_in(piece["split"].cast(pa.string()), others))) for piece in pieces())
    return np.concatenate([np.empty(0, BINARY), *(keys_of_column(piece["key"]) for piece in rows)])


def _without(rows: pa.Table, reserved: Sequence[KeyArray]) -> pa.Table:
    return rows.filter(pa.array(~np.isin(keys_of_column(rows["key"]), np.concatenate(reserved))))


def _check_labels(rows: pa.Table, datasets: Sequence[str]) -> None:
    keys, label = keys_of_column(rows["key"]), column(rows, "label")
    both = np.intersect1d(keys[label == 0], keys[label == 1])
    if len(both):
        raise UserError(
            f"{' and '.join(datasets)}: {len(both):,} images are real in one and generated in the other. "
            "Train on one of them, or correct the labels and build again."
        )


def _describe_validation(parts: TrainingSplit, fraction: float) -> str:
    return OWN_VAL if parts.val_split == "val" else f"{fraction:.0%} of train, by key"
