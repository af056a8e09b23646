"""Which rows of a dataset a training or an evaluation uses, and which build supplies their features.

Training never sees the test split. A dataset is validated on its own ``val`` if it has one, else on rows held out of
``train``, as it is on request. The held-out rows are a range of keys. A key is a hash of the image file, so this is a
random draw that depends on nothing else, and all occurrences of an image are on the same side.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from ...cache.describe import describe
from ...cache.records.builds import BuildRecord
from ...cache.records.datasets import DatasetStore, RowKinds, TablePieces
from ...cache.shards.keys import BINARY, KeyArray, binary_keys, keys_of_column
from ...cache.spec import algorithms, fingerprint_of, fingerprint_without, imported_from, with_decoding, without
from ...cache.store import Cache
from ...choices import IMAGE_ALGORITHMS
from ...errors import ChoiceError, UsageError, UserError
from ...metrics.measures import test_sets
from ...storage.disk_table import DiskTable
from .other_settings import other_settings

_Mask = npt.NDArray[np.bool_]

_FIELDS = {"generator": "generator", "family": "family", "group": "group", "source_group": "group"}


@dataclass(frozen=True)
class Selection:
    """Parsed ``--select``; an empty set does not restrict its column.

    Attributes
    ----------
    generator, family
        Fakes to keep. The reals that their test sets pair with them are kept as well: those of the same generator's
        folder, else all reals of the same source group.
    group
        Source groups to keep, of fakes and reals alike.
    """

    generator: frozenset[str] = frozenset()
    family: frozenset[str] = frozenset()
    group: frozenset[str] = frozenset()


@dataclass(frozen=True)
class TrainingSplit:
    """The rows of a training, as tables in the schema of a dataset.

    Attributes
    ----------
    train, val
        The rows; ``val`` may be empty.
    val_split
        The split of the rows in ``val``: ``val``, or ``train`` if they were held out of it.
    """

    train: pa.Table
    val: pa.Table
    val_split: str


def parse_select(text: str | None) -> Selection:
    """Parse ``generator=a|b,source_group=imagenet``.

    Raises
    ------
    UsageError
        The text cannot be parsed; the message names what is wrong.
    """
    chosen: dict[str, frozenset[str]] = {}
    for item in (text or "").split(","):
        if not item.strip():
            continue
        name, equals, values = (part.strip() for part in item.partition("="))
        column_name = _FIELDS.get(name)
        wanted = frozenset(value.strip() for value in values.split("|") if value.strip())
        if column_name is None:
            raise UsageError(f"--select {text}: unknown field {name!r}; use {', '.join(_FIELDS)}.")
        if not equals or not wanted:
            raise UsageError(f"--select {text}: {name} needs values, as in {name}=a|b.")
        if column_name in chosen:
            raise UsageError(f"--select {text}: {name} is given twice; separate its values by |.")
        chosen[column_name] = wanted
    return Selection(**chosen)


KIND = ("label", "split", "generator", "family", "group")
"""What a selection looks at: rows that agree in all of these are kept or left out together."""
COLUMNS = ("key", "source", *KIND)
"""The columns of a dataset that a training or an evaluation reads."""
_CODED = ("source", "split", "generator", "family", "group")


def dataset_rows(store: DatasetStore, dataset: str, revision: str) -> TablePieces:
    """Return what yields the rows of a dataset in pieces, with the columns ``COLUMNS``; few of them are in memory."""

    def pieces() -> Iterator[pa.Table]:
        for piece in store.pieces(dataset, revision, columns=COLUMNS):
            yield with_codes(piece)

    return pieces


def with_codes(table: pa.Table) -> pa.Table:
    """Return a table whose repeated texts are dictionary-encoded: four bytes a row and column."""
    for name in _CODED:
        if name in table.column_names and not pa.types.is_dictionary(table[name].type):
            coded = table[name].dictionary_encode()
            place = table.column_names.index(name)
            table = table.set_column(place, table.schema.field(name).with_type(coded.type), coded)
    return table


def with_texts(table: pa.Table) -> pa.Table:
    """Return a table without dictionaries, as it is stored."""
    plain = [field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field for field in table.schema]
    return table.cast(pa.schema(plain, table.schema.metadata))


class _Kinds:
    """The distinct kinds of the rows of a dataset.

    Attributes
    ----------
    table
        A row for each kind, with the columns ``KIND``, and ``kind``, its number.
    """

    def __init__(self, pieces: TablePieces) -> None:
        self._numbering = RowKinds(KIND)
        for piece in pieces():
            self._numbering.numbers(piece)
        found = list(self._numbering.found)
        columns = {name: [values[place] for values in found] for place, name in enumerate(KIND)}
        types = [pa.int8(), *(pa.string() for _ in KIND[1:])]
        schema = pa.schema([*zip(KIND, types, strict=True), ("kind", pa.int64())])
        self.table = pa.table({**columns, "kind": list(range(len(found)))}, schema=schema)

    def chosen(self, rows: pa.Table) -> Callable[[pa.Table], _Mask]:
        """Return what says of a piece's rows, (N,), whether their kind is one of ``rows`` of the table."""
        flags = np.zeros(self.table.num_rows, bool)
        flags[rows["kind"].to_numpy()] = True
        return lambda piece: flags[self._numbering.numbers(piece)]


def select_rows(table: pa.Table, selection: Selection, where: str) -> pa.Table:
    """Return the rows that a selection keeps.

    Parameters
    ----------
    table
        Rows in the schema of a dataset, or one row for each kind of them.
    selection
        What to keep.
    where
        What ``table`` is, for error messages.

    Raises
    ------
    UserError
        No real or no generated image is left; the message lists the values that exist.
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
        existing = (
            f"generators {_listed(generator[label == 1])}, families {_listed(family[label == 1])}, "
            f"source groups {_listed(group)}"
        )
        raise UserError(f"{where}: --select leaves no generated image. There are {existing}.")
    if selection != Selection() and not (keep & (label == 0)).any():
        raise UserError(f"{where}: --select leaves no real image: none is paired with the selected fakes.")
    return table.filter(pa.array(keep))


def split_rows(table: pa.Table, split: str, dataset: str) -> pa.Table:
    """Return the rows of one split. Raises UserError, listing the splits, if there are none."""
    rows = table.filter(pa.array(column(table, "split") == split))
    if not rows.num_rows:
        raise UserError(f"{dataset}: has no split {split!r}, only {_listed(column(table, 'split'))}.")
    return rows


def evaluation_rows(pieces: TablePieces, split: str, selection: Selection, dataset: str) -> pa.Table:
    """Return the rows of one split that a selection keeps; errors as for :func:`split_rows` and :func:`select_rows`."""
    kinds = _Kinds(pieces)
    of_split = select_rows(split_rows(kinds.table, split, dataset), selection, f"{dataset}, split {split}")
    is_chosen = kinds.chosen(of_split)
    rows = DiskTable(_first_schema(pieces))
    for piece in pieces():
        rows.append(piece.filter(pa.array(is_chosen(piece))))
    return rows.finished()


def training_parts(
    table: pa.Table | TablePieces, selection: Selection, val_fraction: float, dataset: str, *, own_val: bool = True
) -> TrainingSplit:
    """Divide a dataset's rows into training rows and validation rows.

    Parameters
    ----------
    table
        Rows of the dataset; or what yields them in pieces, which is called twice.
    selection
        Rows to keep in both.
    val_fraction
        Share of the keys of ``train`` to hold out if ``val`` does not serve.
    dataset
        Its name, for error messages.
    own_val
        Validate on the split ``val`` if there is one.

    Raises
    ------
    UserError
        There is no split ``train``, or its rows lack a class.
    """
    pieces = (lambda: [table]) if isinstance(table, pa.Table) else table
    kinds = _Kinds(pieces)
    of_train = select_rows(split_rows(kinds.table, "train", dataset), selection, f"{dataset}, split train")
    in_train = kinds.chosen(of_train)
    in_val = None
    if own_val and "val" in set(column(kinds.table, "split")):
        of_val = select_rows(split_rows(kinds.table, "val", dataset), selection, f"{dataset}, split val")
        in_val = kinds.chosen(of_val)
    train, val = (DiskTable(_first_schema(pieces)) for _ in range(2))
    for piece in pieces():
        rows = in_train(piece)
        if in_val is None:
            held = held_out(keys_of_column(piece["key"]), val_fraction)
            train.append(piece.filter(pa.array(rows & ~held)))
            val.append(piece.filter(pa.array(rows & held)))
        else:
            train.append(piece.filter(pa.array(rows)))
            val.append(piece.filter(pa.array(in_val(piece))))
    parts = TrainingSplit(train.finished(), val.finished(), "train" if in_val is None else "val")
    labels = set(pc.unique(parts.train["label"]).to_pylist())
    if labels != {0, 1}:
        missing = "real" if 0 not in labels else "generated"
        raise UserError(f"{dataset}, split train: has no {missing} image. Training needs both classes.")
    return parts


def _first_schema(pieces: TablePieces) -> pa.Schema:
    return next(iter(pieces())).schema


def held_out(keys: KeyArray | npt.NDArray[Any], fraction: float) -> _Mask:
    """Return which keys (N,) are held out for validation: those below ``fraction`` of the range of keys."""
    first = np.ascontiguousarray(binary_keys(keys)).view(">u4")[:: BINARY.itemsize // 4]
    held: _Mask = first < fraction * 2**32
    return held


def candidate_builds(cache: Cache, dataset: str, build: str | None) -> tuple[str, list[BuildRecord]]:
    """Return the revision to use and its builds, oldest first: the newest revision, or that of ``build`` if given."""
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
    decoded_otherwise: bool = False,
) -> BuildRecord:
    """Choose the build to read features from.

    Parameters
    ----------
    cache
        The cache.
    dataset
        Name of the dataset.
    build
        Id of the build; None to choose among those of the newest revision. Builds with the same features count as one,
        the newest of them, and so do builds whose features differ in their ``algorithm`` alone.
    needed
        Features by split.
    purpose
        What needs them, for error messages, such as ``method distildire``.
    fingerprints
        Required fingerprints, by feature.
    perturbed
        Accept a build of a derived dataset whose features have these fingerprints except for the perturbation.
    decoded_otherwise
        If no build fits, accept one whose features have these fingerprints except for the ``algorithm`` of the image.

    Raises
    ------
    UserError
        No build fits, or several do.
    """
    revision, candidates = candidate_builds(cache, dataset, build)
    names = sorted({feature for features in needed.values() for feature in features})
    fitting: dict[tuple[str, ...], BuildRecord] = {}
    for record in candidates:
        if all(serves(record, split, name) for split, features in needed.items() for name in features):
            fitting[tuple(record.features[name].fingerprint for name in names)] = record
    fixed = {name: fingerprint for name, fingerprint in (fingerprints or {}).items() if name in names}
    matching: list[BuildRecord] = []
    for allowed in (False, True) if decoded_otherwise else (False,):
        matching = matching or [
            record
            for record in fitting.values()
            if _same_features(cache, record, fixed, perturbed=perturbed, decoded_otherwise=allowed)
        ]
    matching = _newest_algorithms(cache, matching, names)
    if fitting and not matching:
        raise other_settings(cache, dataset, list(fitting.values()), fixed, names)
    if not matching:
        split, feature = _first_gap(candidates, needed)
        table = cache.datasets().read(dataset, revision, columns=("source", "split"))
        rows = int(pc.sum(pc.equal(table["split"], split)).as_py() or 0)
        raise missing_feature(cache, table, dataset, purpose, feature, rows, rows, split, names)
    if len(matching) > 1:
        raise ChoiceError(f"{dataset}: several builds serve {purpose}. Choose one:", describe(cache, matching))
    _refuse_mixture(cache, matching[0], names)
    return matching[0]


def _same_features(
    cache: Cache, record: BuildRecord, fixed: Mapping[str, str], *, perturbed: bool, decoded_otherwise: bool
) -> bool:
    """Return whether a build's features have these fingerprints, optionally except for a common perturbation, or for
    the rules that decoded the images.
    """
    if all(record.features[name].fingerprint == want for name, want in fixed.items()):
        return True
    perturbed = perturbed and record.origin is not None
    if not perturbed and not decoded_otherwise:
        return False
    specs: dict[str, Mapping[str, object]] = {}
    for name in fixed:
        spec = cache.open_feature(record.features[name].folder).spec
        specs[name] = without(spec, "perturb") if perturbed else spec
    variants = [specs]
    if decoded_otherwise:
        variants = [{name: with_decoding(spec, number) for name, spec in specs.items()} for number in IMAGE_ALGORITHMS]
    return any(all(fingerprint_of(own[name]) == want for name, want in fixed.items()) for own in variants)


def _newest_algorithms(cache: Cache, records: Sequence[BuildRecord], names: Sequence[str]) -> list[BuildRecord]:
    """Of builds with the same settings, keep the one whose features have the highest ``algorithm``."""
    if len(records) < 2:
        return list(records)
    specs = [[cache.open_feature(record.features[name].folder).spec for name in names] for record in records]
    raised = [[algorithms(spec) for spec in own] for own in specs]
    newest: dict[tuple[str, ...], BuildRecord] = {}
    for number in sorted(range(len(records)), key=raised.__getitem__):
        newest[tuple(fingerprint_without(spec, "algorithm") for spec in specs[number])] = records[number]
    return list(newest.values())


def _refuse_mixture(cache: Cache, record: BuildRecord, names: Sequence[str]) -> None:
    """Raise UserError for a build that mixes imported features with computed ones, or with imports of another origin.

    Their eps and DIRE belong to images that were prepared differently.
    """
    origins = {name: imported_from(cache.open_feature(record.features[name].folder).spec) for name in names}
    if len(set(origins.values())) > 1:
        described = ", ".join(
            f"{name} ({f'imported, {origin}' if origin else 'computed'})" for name, origin in origins.items()
        )
        raise UserError(f"build {record.id}: mixes {described}. Train from features of one origin.")


def serves(record: BuildRecord, split: str, feature: str) -> bool:
    """Return whether a build has a feature for a split."""
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
    """Make the error for ``lacking`` of ``rows`` rows of a split without a feature, with the command that builds it."""
    origin = next((record.origin for record in cache.builds().find(dataset) if record.origin), None)
    if origin is None:
        sources = " ".join(shlex.quote(source) for source in distinct(table, "source") if source) or "SOURCE"
        named = f"--dataset {shlex.quote(dataset)}"
    else:
        sources = "--from-cache"
        named = f"--dataset {shlex.quote(origin.dataset)} --perturb {origin.perturbation} --as {shlex.quote(dataset)}"
        splits = cache.datasets().read(dataset, columns=["split"])
        named += f" --splits {','.join(sorted(set(column(splits, 'split'))))}"
    requested = ",".join(sorted(features))
    return UserError(
        f"{dataset}: {purpose} needs feature `{feature}` for {lacking:,} of {rows:,} samples of split {split}. "
        f"Build it with: distil-cache build {sources} --cache {shlex.quote(str(cache.root))} "
        f"{named} --features {split}:{requested} (and the other options of the build before)"
    )


def column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    """Return a column as an array: strings, or int64 for ``label``."""
    if name == "label":
        return np.array(table[name].to_numpy(), np.int64)
    return np.array(table[name].to_pylist(), dtype=np.str_)


def distinct(table: pa.Table, name: str) -> list[str]:
    """Return the distinct texts of a column, sorted."""
    return sorted({text for chunk in table[name].chunks for text in chunk.unique().to_pylist()})


def _chosen(values: npt.NDArray[Any], wanted: frozenset[str]) -> _Mask:
    return np.isin(values, list(wanted)) if wanted else np.ones(len(values), dtype=bool)


def _listed(values: npt.NDArray[Any]) -> str:
    return ", ".join(sorted(set(values))) or "none"


def _first_gap(records: Sequence[BuildRecord], needed: Mapping[str, Collection[str]]) -> tuple[str, str]:
    """Return the first missing (split, feature) of the build that lacks the fewest."""
    gaps = [
        [(split, name) for split, names in needed.items() for name in names if not serves(record, split, name)]
        for record in records
    ] or [[(split, name) for split, names in needed.items() for name in names]]
    return min(gaps, key=len)[0]
