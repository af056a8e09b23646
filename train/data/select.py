"""Which rows of a dataset a training or an evaluation uses, and which build serves their features.

Selection never sees test: only a dataset with train, val and test is validated on its own ``val``; any other gets a
validation part carved out of ``train``, so that the split which is left can serve as the user's test set. The carved
part is a range of keys. A key is a hash of the picture's bytes, so this is a draw that depends on nothing else, and all
occurrences of a picture fall on one side.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...cache.records.builds import BuildRecord
from ...cache.spec import imported_from, unperturbed_fingerprint
from ...cache.store import Cache
from ...errors import UsageError, UserError
from ...metrics.measures import test_sets

Mask = npt.NDArray[np.bool_]

_FIELDS = {"generator": "generator", "family": "family", "group": "group", "source_group": "group"}


@dataclass(frozen=True)
class Selection:
    """Parsed ``--select``; an empty set leaves its column alone.

    ``generator`` and ``family`` choose fakes, and with them the reals that their test sets pair them with (reals of the
    same generator's folder, else all reals of the same source group). ``group`` chooses fakes and reals alike.
    """

    generator: frozenset[str] = frozenset()
    family: frozenset[str] = frozenset()
    group: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TrainingSplit:
    """The rows of a training, as tables of the dataset's schema; ``val`` may be empty.

    val_split : the split whose rows ``val`` holds, ``val``, or ``train`` where it was carved.
    """

    train: pa.Table
    val: pa.Table
    val_split: str


def parse_select(text: str | None) -> Selection:
    """``generator=a|b,source_group=imagenet`` -> Selection; UsageError names what cannot be read."""
    chosen: dict[str, frozenset[str]] = {}
    for item in (text or "").split(","):
        if not item.strip():
            continue
        name, equals, values = (part.strip() for part in item.partition("="))
        column = _FIELDS.get(name)
        wanted = frozenset(value.strip() for value in values.split("|") if value.strip())
        if column is None:
            raise UsageError(f"--select {text}: there is no field {name!r}, only {', '.join(_FIELDS)}.")
        if not equals or not wanted:
            raise UsageError(f"--select {text}: {name} needs values, as in {name}=a|b.")
        if column in chosen:
            raise UsageError(f"--select {text}: {name} is given twice; separate its values by |.")
        chosen[column] = wanted
    return Selection(**chosen)


def select_rows(table: pa.Table, selection: Selection, where: str) -> pa.Table:
    """The rows that a selection keeps; UserError, with the values there are, if a class is left without rows.

    where : what ``table`` holds, for the message.
    """
    label, generator = column(table, "label"), column(table, "generator")
    family, group = column(table, "family"), column(table, "group")
    in_group = _chosen(group, selection.group)
    keep = in_group
    if selection.generator or selection.family:
        fakes = in_group & (label == 1) & _chosen(generator, selection.generator) & _chosen(family, selection.family)
        candidates = np.flatnonzero(fakes | (in_group & (label == 0)))
        keep = np.zeros(len(label), dtype=bool)
        for rows in test_sets(label[candidates], generator[candidates], group[candidates]).values():
            keep[candidates[rows]] = True
    if selection != Selection() and not (keep & (label == 1)).any():
        there = (
            f"generators {_listed(generator[label == 1])}, families {_listed(family[label == 1])}, "
            f"source groups {_listed(group)}"
        )
        raise UserError(f"{where}: --select leaves no generated image. There are {there}.")
    if selection != Selection() and not (keep & (label == 0)).any():
        raise UserError(f"{where}: --select leaves no real image, since none is paired with what it chooses.")
    return table.filter(pa.array(keep))


def split_rows(table: pa.Table, split: str, dataset: str) -> pa.Table:
    """The rows of one split; UserError naming the splits there are."""
    rows = table.filter(pa.array(column(table, "split") == split))
    if not rows.num_rows:
        raise UserError(f"{dataset}: has no split {split!r}, only {_listed(column(table, 'split'))}.")
    return rows


def training_parts(table: pa.Table, selection: Selection, val_fraction: float, dataset: str) -> TrainingSplit:
    """Divide a dataset's rows into those that train and those that choose the checkpoint.

    Raises UserError without a ``train`` split, and if the training rows are not of both classes.
    """
    train = select_rows(split_rows(table, "train", dataset), selection, f"{dataset}, split train")
    if {"train", "val", "test"} <= set(column(table, "split")):
        val = select_rows(split_rows(table, "val", dataset), selection, f"{dataset}, split val")
        parts = TrainingSplit(train, val, "val")
    else:
        held = held_out(column(train, "key"), val_fraction)
        parts = TrainingSplit(train.filter(pa.array(~held)), train.filter(pa.array(held)), "train")
    labels = set(column(parts.train, "label").tolist())
    if labels != {0, 1}:
        missing = "real" if 0 not in labels else "generated"
        raise UserError(f"{dataset}, split train: holds no {missing} image to learn from. Training needs both.")
    return parts


def held_out(keys: npt.NDArray[Any], fraction: float) -> Mask:
    """Which keys (N hex strings) are carved for validation: those below ``fraction`` of the range of keys."""
    return np.array([int(key[:8], 16) < fraction * 2**32 for key in keys], dtype=bool)


def candidate_builds(cache: Cache, dataset: str, build: str | None) -> tuple[str, list[BuildRecord]]:
    """The revision to use and its builds, oldest first: the newest revision's, or the one that ``build`` names."""
    if build is None:
        revision = cache.datasets().head(dataset)
        return revision, [record for record in cache.builds().find(dataset) if record.revision == revision]
    record = cache.builds().read(build)
    if record.dataset != dataset:
        raise UserError(f"--build {build}: is a build of {record.dataset}, not of {dataset}.")
    return record.revision, [record]


def choose_build(
    cache: Cache,
    dataset: str,
    build: str | None,
    needed: Mapping[str, Collection[str]],
    *,
    purpose: str,
    fingerprints: Mapping[str, str] | None = None,
    perturbed: bool = False,
) -> BuildRecord:
    """The build whose features serve.

    build : an id, or None for the one that fits among those of the dataset's newest revision. Builds whose needed
        features are the same count as one, the newest of them.
    needed : split -> features. fingerprints : what a feature must be, by name, to count. perturbed : one of a derived
        dataset counts too if it would be that feature but for the perturbation of its pictures.
    purpose : who needs them, for the message, such as ``method distildire``.
    Raises UserError where none or several fit.
    """
    revision, candidates = candidate_builds(cache, dataset, build)
    names = sorted({feature for features in needed.values() for feature in features})
    fitting: dict[tuple[str, ...], BuildRecord] = {}
    for record in candidates:
        if all(serves(record, split, name) for split, features in needed.items() for name in features):
            fitting[tuple(record.features[name].fingerprint for name in names)] = record
    fixed = {name: fingerprint for name, fingerprint in (fingerprints or {}).items() if name in names}
    matching = [record for record in fitting.values() if _same_features(cache, record, fixed, perturbed=perturbed)]
    if fitting and not matching:
        raise UserError(
            f"{dataset}: its features {', '.join(names)} were made with other settings than those the student learnt "
            "from, so scores would mean nothing. Build it with the options of the training's build."
        )
    if not matching:
        split, feature = _first_gap(candidates, needed)
        table = cache.datasets().read(dataset, revision)
        rows = int(np.sum(column(table, "split") == split))
        raise missing_feature(cache, table, dataset, purpose, feature, rows, rows, split, names)
    if len(matching) > 1:
        described = "; ".join(describe(cache, matching))
        raise UserError(f"{dataset}: several builds serve {purpose}: {described}. Choose one with --build ID.")
    _refuse_mixture(cache, matching[0], names)
    return matching[0]


def _same_features(cache: Cache, record: BuildRecord, fixed: Mapping[str, str], *, perturbed: bool) -> bool:
    """Say whether a build's features have these fingerprints, if need be but for a perturbation of all of them alike."""
    if all(record.features[name].fingerprint == want for name, want in fixed.items()):
        return True
    if not perturbed or record.origin is None:
        return False
    specs = {name: cache.open_feature(record.features[name].folder).spec for name in fixed}
    return all(unperturbed_fingerprint(specs[name]) == want for name, want in fixed.items())


def _refuse_mixture(cache: Cache, record: BuildRecord, names: Sequence[str]) -> None:
    """Raise UserError for a build that joins imported features with computed ones, or with imports of another origin.

    Their eps and DIRE belong to pictures that were prepared differently.
    """
    origins = {name: imported_from(cache.open_feature(record.features[name].folder).spec) for name in names}
    if len(set(origins.values())) > 1:
        shown = ", ".join(
            f"{name} ({f'imported, {origin}' if origin else 'computed'})" for name, origin in origins.items()
        )
        raise UserError(f"build {record.id}: joins {shown}. Train from features of one origin.")


def serves(record: BuildRecord, split: str, feature: str) -> bool:
    """Say whether a build has a feature for a split."""
    return feature in record.features and split in record.features[feature].splits


def missing_feature(
    cache: Cache,
    table: pa.Table,
    dataset: str,
    purpose: str,
    feature: str,
    lacking: int,
    rows: int,
    split: str,
    features: Sequence[str],
) -> UserError:
    """The error for ``lacking`` of ``rows`` rows of a split without a feature, with the command that makes it."""
    origin = next((record.origin for record in cache.builds().find(dataset) if record.origin), None)
    if origin is None:
        sources = " ".join(shlex.quote(source) for source in sorted(set(column(table, "source"))) if source) or "SOURCE"
        named = f"--dataset {shlex.quote(dataset)}"
    else:
        sources = "--from-cache"
        named = f"--dataset {shlex.quote(origin.dataset)} --perturb {origin.perturbation} --as {shlex.quote(dataset)}"
        splits = cache.datasets().read(dataset, columns=["split"])
        named += f" --splits {','.join(sorted(set(column(splits, 'split'))))}"
    asked = ",".join(sorted(features))
    return UserError(
        f"{dataset}: {purpose} needs feature `{feature}` for {lacking:,} of {rows:,} samples of split {split}. "
        f"Build it with: distil-cache build {sources} --cache {shlex.quote(str(cache.root))} "
        f"{named} --features {split}:{asked} (and the other options of the build before)"
    )


def describe(cache: Cache, records: Sequence[BuildRecord]) -> list[str]:
    """One phrase a build: id, date, features with their splits, and the settings in which these builds differ."""
    settings = [_settings(cache, record) for record in records]
    phrases = []
    for record, own in zip(records, settings, strict=True):
        features = ", ".join(f"{name} ({'+'.join(built.splits)})" for name, built in record.features.items())
        differing = [name for name in own if any(other.get(name) != own[name] for other in settings)]
        shown = ", ".join(f"{name}={own[name]:.12}" for name in differing)
        phrase = f"{record.id} of {record.created:%Y-%m-%d %H:%M}: {features}"
        phrases.append(f"{phrase}, with {shown}" if shown else phrase)
    return phrases


def column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """A column as a numpy array: strings, or int64 for ``label``."""
    return np.array(table[name].to_pylist(), dtype=np.int64 if name == "label" else np.str_)


def _chosen(values: npt.NDArray[Any], wanted: frozenset[str]) -> Mask:
    return np.isin(values, list(wanted)) if wanted else np.ones(len(values), dtype=bool)


def _listed(values: npt.NDArray[Any]) -> str:
    return ", ".join(sorted(set(values))) or "none"


def _first_gap(records: Sequence[BuildRecord], needed: Mapping[str, Collection[str]]) -> tuple[str, str]:
    """The first (split, feature) that is missing from the build that comes nearest."""
    gaps = [
        [(split, name) for split, names in needed.items() for name in names if not serves(record, split, name)]
        for record in records
    ] or [[(split, name) for split, names in needed.items() for name in names]]
    return min(gaps, key=len)[0]


def _settings(cache: Cache, record: BuildRecord) -> dict[str, str]:
    """All settings of a build's features, flat, such as ``dire.steps`` -> ``ddim20``: what tells two builds apart."""
    found: dict[str, str] = {}
    waiting = [(name, cache.open_feature(built.folder).spec) for name, built in record.features.items()]
    while waiting:
        owner, spec = waiting.pop()
        for name, value in spec.items():
            if isinstance(value, dict):
                waiting.append((name, value))
            else:
                found[f"{owner}.{name}"] = str(value)
    return found
