"""The rows of a training: of one dataset, or of several that are joined.

Each dataset has its own build, all with the same features by fingerprint, and its own validation part by the rules of
``select``. What any of the datasets keeps for its test neither trains nor validates, and what any of them validates on
does not train, whichever other dataset has it for training. A picture with both labels is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ...cache.records.builds import BuildRecord
from ...cache.shards.keys import KeyArray, keys_of_column
from ...cache.store import Cache
from ...errors import UserError
from ..config import TrainConfig
from .select import TrainingSplit, candidate_builds, choose_build, column, parse_select, training_parts


@dataclass(frozen=True)
class TrainingRows:
    """Tables of the dataset's schema, the build of each dataset, and in words where ``val`` comes from.

    left_out : rows that would train or validate if another dataset did not keep their picture for something else.
    """

    train: pa.Table
    val: pa.Table
    val_split: str
    builds: tuple[BuildRecord, ...]
    validation: str
    left_out: int


def find_rows(
    config: TrainConfig, cache: Cache, features: Sequence[str], known: Mapping[str, str], purpose: str
) -> TrainingRows:
    """Find the rows and builds of a training that reads ``features`` and validates on the method's inputs.

    known : dataset -> build, of a training that goes on. Raises UserError for whatever is missing or does not fit.
    """
    named = dict(known) or _named_builds(config, cache)
    found: list[TrainingSplit] = []
    builds: list[BuildRecord] = []
    kept: list[KeyArray] = []
    for dataset in config.dataset:
        revision, _ = candidate_builds(cache, dataset, named.get(dataset))
        table = cache.datasets().read(dataset, revision)
        parts = training_parts(table, parse_select(config.select), config.val_fraction, dataset)
        needed = {"train": tuple(features)}
        if parts.val_split != "train":
            needed[parts.val_split] = config.definition.inputs
        first = {name: built.fingerprint for name, built in builds[0].features.items()} if builds else None
        builds.append(choose_build(cache, dataset, named.get(dataset), needed, purpose=purpose, fingerprints=first))
        found.append(parts)
        kept.append(_kept_back(table, parts))
    train, val = pa.concat_tables([p.train for p in found]), pa.concat_tables([p.val for p in found])
    rows = train.num_rows + val.num_rows
    if len(found) > 1:
        val = _without(val, kept)
        train = _without(train, [*kept, keys_of_column(val["key"])])
        _check_labels(pa.concat_tables([train, val]), config.dataset)
    return TrainingRows(
        train=train,
        val=val,
        val_split=found[0].val_split,
        builds=tuple(builds),
        validation="; ".join(dict.fromkeys(_words(parts, config.val_fraction) for parts in found)),
        left_out=rows - train.num_rows - val.num_rows,
    )


def _named_builds(config: TrainConfig, cache: Cache) -> dict[str, str]:
    """Which dataset each build of the configuration belongs to; UserError for one that belongs to none, or two to one."""
    found: dict[str, str] = {}
    for build in config.build:
        dataset = cache.builds().read(build).dataset
        if dataset not in config.dataset:
            raise UserError(f"--build {build}: is a build of {dataset}, not of {', '.join(config.dataset)}.")
        if dataset in found:
            raise UserError(f"--build {build}: {dataset} has been given the build {found[dataset]} already.")
        found[dataset] = build
    return found


def _kept_back(table: pa.Table, parts: TrainingSplit) -> KeyArray:
    """Keys of the rows that a dataset has for another purpose than training and this validation."""
    split = column(table, "split")
    return keys_of_column(table.filter(pa.array((split != "train") & (split != parts.val_split)))["key"])


def _without(rows: pa.Table, kept: Sequence[KeyArray]) -> pa.Table:
    return rows.filter(pa.array(~np.isin(keys_of_column(rows["key"]), np.concatenate(kept))))


def _check_labels(rows: pa.Table, datasets: Sequence[str]) -> None:
    keys, label = keys_of_column(rows["key"]), column(rows, "label")
    both = np.intersect1d(keys[label == 0], keys[label == 1])
    if len(both):
        raise UserError(
            f"{' and '.join(datasets)}: {len(both):,} pictures are real in one and generated in the other. "
            "Train on one of them, or mend their labels and build again."
        )


def _words(parts: TrainingSplit, fraction: float) -> str:
    return "split val" if parts.val_split == "val" else f"{fraction:.0%} of train, by key"
