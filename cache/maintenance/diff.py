"""What differs between two builds, two features or two caches, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from ...errors import UsageError
from ...storage import AnyPath
from ..records.builds import BuildRecord
from ..store import Cache, FeatureStore
from .listing import short_value

Difference = tuple[str, str]
"""What it is about, such as ``teacher``, and how it differs."""

_LABELS = ("real", "fake")


def diff(a: str, b: str, cache: AnyPath | str | None = None) -> dict[str, Any]:
    """Compare two things of one kind and say what differs.

    a, b : ids of builds, or names of feature folders (beginnings will do) of the cache at ``cache``; without it, the
    paths of two caches.
    Returns ``kind`` (builds, features or caches), ``a``, ``b`` (full names), ``same`` and ``differences``, a list of
    ``about`` and ``what``.
    Raises UsageError for a name that fits nothing, or several things, and for two things of different kinds.
    """
    if cache is None:
        found = list(caches(Cache.open(a), Cache.open(b)))
        return _result("caches", a, b, found)
    opened = Cache.open(cache)
    names = [_resolve(opened, name) for name in (a, b)]
    if names[0][0] != names[1][0]:
        raise UsageError(f"{a} is one of the {names[0][0]}, {b} one of the {names[1][0]}: they cannot be compared.")
    kind, (one, two) = names[0][0], (name for _, name in names)
    if kind == "builds":
        records = opened.builds().read(one), opened.builds().read(two)
        return _result(kind, one, two, list(builds(opened, *records)))
    return _result(kind, one, two, list(features(opened.open_feature(one), opened.open_feature(two))))


def builds(cache: Cache, a: BuildRecord, b: BuildRecord) -> Iterator[Difference]:
    """Yield what differs between two builds of one cache: the data, the settings of the features, the shards."""
    if a.dataset != b.dataset:
        yield "dataset", f"{a.dataset} -> {b.dataset}"
    if (a.dataset, a.revision) != (b.dataset, b.revision):
        what = ", ".join(tables(*(cache.datasets().read(one.dataset, one.revision) for one in (a, b))))
        yield "dataset", what or f"revision {a.revision} -> {b.revision}, with the same samples"
    yield from _only(
        {"only in A": a.features.keys() - b.features.keys(), "only in B": b.features.keys() - a.features.keys()}
    )
    both = [name for name in a.features if name in b.features]
    changed = {name for name in both if a.features[name].fingerprint != b.features[name].fingerprint}
    for name in both:
        one, two = a.features[name], b.features[name]
        if name in changed:
            stores = cache.open_feature(one.folder), cache.open_feature(two.folder)
            yield name, "; ".join(settings(stores[0].spec, stores[1].spec, changed - {name}))
        else:
            yield from ((name, what) for what in _shards(set(one.shards), set(two.shards)))
        if set(one.splits) != set(two.splits):
            yield name, f"splits {_list(one.splits)} -> {_list(two.splits)}"


def features(a: FeatureStore, b: FeatureStore) -> Iterator[Difference]:
    """Yield what differs between two features: their settings, and the samples that they have."""
    if a.feature != b.feature:
        yield "feature", f"{a.feature} -> {b.feature}"
    for what in settings(a.spec, b.spec, ()):
        yield "settings", what
    keys = a.index().keys, b.index().keys
    for where, here, there in (("A", *keys), ("B", keys[1], keys[0])):
        count = len(np.setdiff1d(here, there, assume_unique=True))
        if count:
            yield "samples", f"{count:,} only in {where}"


def caches(a: Cache, b: Cache) -> Iterator[Difference]:
    """Yield what differs between two caches: datasets, builds, and the shards of features."""
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
    """Compare two tables of a dataset by the samples' keys: added, removed, relabelled, moved, and so on, each a phrase.

    A sample that occurs several times is compared by all its occurrences together.
    """
    before, after = _by_key(a), _by_key(b)
    changes: Counter[str] = Counter()
    changes["added"] = len(after.keys() - before.keys())
    changes["removed"] = len(before.keys() - after.keys())
    for key in before.keys() & after.keys():
        for column, (one, two) in enumerate(zip(before[key], after[key], strict=True)):
            if one != two:
                changes[_change(column, one, two)] += 1
    found = [(count, what) for what, count in changes.items() if count]
    return [_counted(count, "sample", what) if n == 0 else f"{count:,} {what}" for n, (count, what) in enumerate(found)]


def settings(a: Mapping[str, Any], b: Mapping[str, Any], told: Iterable[str], where: str = "") -> list[str]:
    """Compare two specs setting by setting; what they derive from is followed, but for features ``told`` elsewhere."""
    found: list[str] = []
    for name in dict.fromkeys((*a, *b)):
        one, two = a.get(name), b.get(name)
        if one == two or name == "feature":
            continue
        if isinstance(one, dict) and isinstance(two, dict):
            if two.get("feature") in set(told):
                found.append(f"made from the other {two['feature']}")
            else:
                found += settings(one, two, told, f"{where}{name}.")
        else:
            found.append(f"{where}{name} {short_value(one)} -> {short_value(two)}")
    return list(dict.fromkeys(found))


def _by_key(table: pa.Table) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Return key -> labels, splits, generators and groups of its occurrences, each sorted."""
    columns = [table.column(name).to_pylist() for name in ("key", "label", "split", "generator", "group")]
    found: dict[str, list[tuple[str, ...]]] = {}
    for key, label, *others in zip(*columns, strict=True):
        found.setdefault(key, []).append((_LABELS[label], *others))
    return {key: tuple(tuple(sorted(values)) for values in zip(*rows, strict=True)) for key, rows in found.items()}


def _change(column: int, one: tuple[str, ...], two: tuple[str, ...]) -> str:
    """Return one change of a sample as a phrase: ``moved from train to val``."""
    if len(one) != len(two):
        return "that occur more or less often"
    name = ("relabelled", "moved", "with another generator", "in another source group")[column]
    before, after = _list(dict.fromkeys(one)), _list(dict.fromkeys(two))
    return f"moved from {before} to {after}" if name == "moved" else name


def _shards(a: set[str], b: set[str]) -> Iterator[str]:
    for where, count in (("A", len(a - b)), ("B", len(b - a))):
        if count:
            yield _counted(count, "shard", f"only in {where}")


def _counted(count: int, thing: str, what: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'} {what}"


def _only(names: Mapping[str, Iterable[str]], kind: str = "") -> Iterator[Difference]:
    for where, here in names.items():
        yield from ((f"{kind}{name}", where) for name in sorted(here))


def _list(names: Iterable[str]) -> str:
    return "+".join(name or "none" for name in sorted(names)) or "none"


def _resolve(cache: Cache, name: str) -> tuple[str, str]:
    """Return the kind and the full name of what ``name`` is, or begins; a feature may also be given by its fingerprint."""
    found = [("builds", build) for build in cache.builds().ids() if name and build.startswith(name)]
    for folder in cache.feature_folders():
        if name and (folder.name.startswith(name) or folder.name.partition("-")[2].startswith(name)):
            found.append(("features", folder.name))
    exact = [one for one in found if one[1] == name]
    if len(exact or found) == 1:
        return (exact or found)[0]
    what = f"fits several: {', '.join(full for _, full in found)}" if found else "is neither a build nor a feature"
    raise UsageError(f"{name}: {what}. List them with: distil-cache cache ls {cache.root}")


def _result(kind: str, a: str, b: str, found: list[Difference]) -> dict[str, Any]:
    differences = [{"about": about, "what": what} for about, what in found]
    return {"kind": kind, "a": a, "b": b, "same": not differences, "differences": differences}
