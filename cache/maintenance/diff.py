"""The differences between two builds, two features or two caches, as phrases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ...choices import preset_name
from ...errors import UsageError
from ...storage import AnyPath
from ..records.builds import BuildRecord
from ..store import Cache, FeatureStore
from .listing import short_value

_Difference = tuple[str, str]
"""The subject, such as ``teacher``, and how it differs."""

_LABELS = ("real", "fake")


def diff(a: str, b: str, cache: AnyPath | str | None = None) -> dict[str, Any]:
    """Compare two builds, two features or two caches.

    Parameters
    ----------
    a, b
        Ids of builds, or names of feature folders, of ``cache``; unambiguous beginnings will do. Without ``cache``, the
        paths of two caches.
    cache
        The cache that holds both.

    Returns
    -------
    dict
        ``kind`` (builds, features or caches), ``a`` and ``b`` (full names), ``same``, and ``differences``, a list of
        ``about`` and ``what``.

    Raises
    ------
    UsageError
        If a name fits nothing or several things, or the two are of different kinds.
    """
    if cache is None:
        found = list(caches(Cache.open(a), Cache.open(b)))
        return _result("caches", a, b, found)
    opened = Cache.open(cache)
    names = [_resolve(opened, name) for name in (a, b)]
    if names[0][0] != names[1][0]:
        raise UsageError(f"{a} is one of the {names[0][0]}, {b} one of the {names[1][0]}: they cannot be compared.")
    kind, (first, second) = names[0][0], (name for _, name in names)
    if kind == "builds":
        records = opened.builds().read(first), opened.builds().read(second)
        return _result(kind, first, second, list(builds(opened, *records)))
    stores = opened.open_feature(first), opened.open_feature(second)
    return _result(kind, first, second, list(features(*stores)))


def builds(cache: Cache, a: BuildRecord, b: BuildRecord) -> Iterator[_Difference]:
    """Yield the differences between two builds of one cache: the dataset, the features' settings, the shards."""
    if a.dataset != b.dataset:
        yield "dataset", f"{a.dataset} -> {b.dataset}"
    if (a.dataset, a.revision) != (b.dataset, b.revision):
        what = ", ".join(tables(*(cache.datasets().read(record.dataset, record.revision) for record in (a, b))))
        yield "dataset", what or f"revision {a.revision} -> {b.revision}, with the same samples"
    yield from _only(
        {"only in A": a.features.keys() - b.features.keys(), "only in B": b.features.keys() - a.features.keys()}
    )
    both = [name for name in a.features if name in b.features]
    changed = {name for name in both if a.features[name].fingerprint != b.features[name].fingerprint}
    for name in both:
        built_a, built_b = a.features[name], b.features[name]
        if name in changed:
            stores = cache.open_feature(built_a.folder), cache.open_feature(built_b.folder)
            yield name, "; ".join(settings(stores[0].spec, stores[1].spec, changed - {name}))
        else:
            yield from ((name, what) for what in _shards(set(built_a.shards), set(built_b.shards)))
        if set(built_a.splits) != set(built_b.splits):
            yield name, f"splits {_list(built_a.splits)} -> {_list(built_b.splits)}"


def features(a: FeatureStore, b: FeatureStore) -> Iterator[_Difference]:
    """Yield the differences between two features: their settings, and the samples that they have."""
    if a.feature != b.feature:
        yield "feature", f"{a.feature} -> {b.feature}"
    for what in settings(a.spec, b.spec, ()):
        yield "settings", what
    keys = a.index().keys, b.index().keys
    for where, here, there in (("A", *keys), ("B", keys[1], keys[0])):
        count = len(np.setdiff1d(here, there, assume_unique=True))
        if count:
            yield "samples", f"{count:,} only in {where}"


def caches(a: Cache, b: Cache) -> Iterator[_Difference]:
    """Yield the differences between two caches: datasets, builds, and the shards of features."""
    names = [set(cache.datasets().names()) for cache in (a, b)]
    yield from _only({"only in A": names[0] - names[1], "only in B": names[1] - names[0]}, "dataset ")
    for name in sorted(names[0] & names[1]):
        if a.datasets().head(name) != b.datasets().head(name):
            what = ", ".join(tables(a.datasets().read(name), b.datasets().read(name)))
            yield f"dataset {name}", what or "another revision of the same samples"
    built = [set(cache.builds().ids()) for cache in (a, b)]
    yield from _only({"only in A": built[0] - built[1], "only in B": built[1] - built[0]}, "build ")
    folders = [{folder.name: folder for folder in cache.feature_folders()} for cache in (a, b)]
    both = folders[0].keys() & folders[1].keys()
    yield from _only({"only in A": folders[0].keys() - both, "only in B": folders[1].keys() - both})
    for name in sorted(both):
        stores = FeatureStore(folders[0][name]), FeatureStore(folders[1][name])
        ids = [set(store.marker_ids()) for store in stores]
        yield from ((name, what) for what in _shards(*ids))
        other = sum(stores[0].marker(shard).sha256 != stores[1].marker(shard).sha256 for shard in ids[0] & ids[1])
        if other:
            yield name, f"{other:,} shards of the same samples with other bytes (another format, or other arithmetic)"


def tables(a: pa.Table, b: pa.Table) -> list[str]:
    """Compare two tables of a dataset by the samples' keys.

    A sample that occurs several times is compared by all its occurrences together.

    Returns
    -------
    list of str
        A phrase with a count for each kind of change: added, removed, relabelled, moved, and so on.
    """
    before, after = _by_key(a), _by_key(b)
    changes: Counter[str] = Counter()
    changes["added"] = len(after.keys() - before.keys())
    changes["removed"] = len(before.keys() - after.keys())
    for key in before.keys() & after.keys():
        for column, (old, new) in enumerate(zip(before[key], after[key], strict=True)):
            if old != new:
                changes[_change(column, old, new)] += 1
    found = [(count, what) for what, count in changes.items() if count]
    return [_counted(count, "sample", what) if n == 0 else f"{count:,} {what}" for n, (count, what) in enumerate(found)]


def settings(a: Mapping[str, Any], b: Mapping[str, Any], reported: Iterable[str], where: str = "") -> list[str]:
    """Compare two specs setting by setting, including the specs from which they derive.

    Parameters
    ----------
    a, b
        The specs as JSON values.
    reported
        Features whose own settings are compared elsewhere.
    where
        Prefix of the settings' names.

    Returns
    -------
    list of str
        A phrase for each difference.
    """
    found: list[str] = []
    for name in dict.fromkeys((*a, *b)):
        value_a, value_b = a.get(name), b.get(name)
        if value_a == value_b or name == "feature":
            continue
        if isinstance(value_a, dict) and isinstance(value_b, dict):
            if value_b.get("feature") in set(reported):
                found.append(f"made from the other {value_b['feature']}")
            else:
                found += settings(value_a, value_b, reported, f"{where}{name}.")
        else:
            values = [preset_name(value) if name == "preset" else value for value in (value_a, value_b)]
            found.append(f"{where}{name} {short_value(values[0])} -> {short_value(values[1])}")
    return list(dict.fromkeys(found))


def _by_key(table: pa.Table) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Return key -> labels, splits, generators and groups of its occurrences, each sorted."""
    columns = [table.column(name).to_pylist() for name in ("key", "label", "split", "generator", "group")]
    found: dict[str, list[tuple[str, ...]]] = {}
    for key, label, *others in zip(*columns, strict=True):
        found.setdefault(key, []).append((_LABELS[label], *others))
    return {key: tuple(tuple(sorted(values)) for values in zip(*rows, strict=True)) for key, rows in found.items()}


def _change(column: int, old: tuple[str, ...], new: tuple[str, ...]) -> str:
    """Return one change of a sample as a phrase, such as ``moved from train to val``."""
    if len(old) != len(new):
        return "that occur more or less often"
    name = ("relabelled", "moved", "with another generator", "in another source group")[column]
    before, after = _list(dict.fromkeys(old)), _list(dict.fromkeys(new))
    return f"moved from {before} to {after}" if name == "moved" else name


def _shards(a: set[str], b: set[str]) -> Iterator[str]:
    for where, count in (("A", len(a - b)), ("B", len(b - a))):
        if count:
            yield _counted(count, "shard", f"only in {where}")


def _counted(count: int, thing: str, what: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'} {what}"


def _only(names: Mapping[str, Iterable[str]], kind: str = "") -> Iterator[_Difference]:
    for where, here in names.items():
        yield from ((f"{kind}{name}", where) for name in sorted(here))


def _list(names: Iterable[str]) -> str:
    return "+".join(name or "none" for name in sorted(names)) or "none"


def _resolve(cache: Cache, name: str) -> tuple[str, str]:
    """Return the kind and the full name of the build or feature that ``name``, or a fingerprint, begins."""
    found = [("builds", build) for build in cache.builds().ids() if name and build.startswith(name)]
    for folder in cache.feature_folders():
        if name and (folder.name.startswith(name) or folder.name.partition("-")[2].startswith(name)):
            found.append(("features", folder.name))
    exact = [match for match in found if match[1] == name]
    if len(exact or found) == 1:
        return (exact or found)[0]
    what = f"fits several: {', '.join(full for _, full in found)}" if found else "is neither a build nor a feature"
    raise UsageError(f"{name}: {what}. List them with: distil-cache cache ls {cache.root}")


def _result(kind: str, a: str, b: str, found: list[_Difference]) -> dict[str, Any]:
    differences = [{"about": about, "what": what} for about, what in found]
    return {"kind": kind, "a": a, "b": b, "same": not differences, "differences": differences}
