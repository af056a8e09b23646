"""Compare cached images with what their files decode to today.

Rules get stricter: a file that an earlier version decoded may now be refused, or give other pixels. Its rows lie in the
cache all the same. This reads the sources again, decodes each file by the spec of every cached image of it, and names
the suspects; see :mod:`..cache.maintenance.suspects` for how they are taken out of their datasets.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from ..cache.gather import gather
from ..cache.maintenance.suspects import remove_rows
from ..cache.set_aside import write_set_aside
from ..cache.shards.keys import KeyArray, binary_keys, keys_of_column
from ..cache.spec import algorithms, fingerprint_without
from ..cache.store import Cache, FeatureStore
from ..errors import UserError
from ..images.decode import decode
from ..images.file import ImageRejected, content_key, rejection
from ..images.spec import ImageSpec
from ..progress import Progress, Silent
from ..storage import AnyPath, to_path
from .sources.discover import discover
from .sources.file import AS_RECOGNISED, ReadingOptions, SourceFile, printable
from .sources.read import read_image, readers

OTHERWISE = "decodes-otherwise"
"""Reason of a suspect whose file is decoded, to other pixels than those in the cache."""
_BLOCK = 64
"""Files that are read before the next ones are."""


@dataclass
class _DatasetImages:
    """The newest revision of a dataset, the images of its builds, and what is found about them.

    Of builds that differ in ``algorithm`` alone, only the newest counts, as in a training.
    """

    name: str
    revision: str
    keys: KeyArray
    """Distinct keys of the rows, sorted."""
    images: Sequence[FeatureStore]
    features: Mapping[str, Sequence[FeatureStore]]
    seen: NDArray[np.bool_]
    """Which keys were found in the sources."""
    suspects: dict[str, dict[str, str]] = field(default_factory=dict)
    """Folder of the images -> key -> ``reason: detail``."""

    def among(self, keys: Sequence[str]) -> list[str]:
        """Return those of some keys that the dataset has, and note that they were seen."""
        if not len(self.keys) or not keys:
            return []
        position = np.minimum(np.searchsorted(self.keys, binary_keys(keys)), len(self.keys) - 1)
        has = self.keys[position] == binary_keys(keys)
        self.seen[position[has]] = True
        return [key for key, there in zip(keys, has.tolist(), strict=True) if there]

    def reasons(self) -> dict[str, str]:
        """Return key -> reason, whatever the images."""
        return {key: why for found in self.suspects.values() for key, why in found.items()}


def verify_sources(
    cache: Cache,
    sources: Sequence[AnyPath | str],
    *,
    layout: str | None = None,
    reading: ReadingOptions = AS_RECOGNISED,
    set_aside: bool = False,
    threads: int = 4,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Decode the files of some sources again and compare them with the cached images of the newest revisions.

    Parameters
    ----------
    cache
        The cache.
    sources
        Folders, tables or tars, as for a build.
    layout, reading
        How to read them, as for a build.
    set_aside
        Take the suspects out of their datasets.
    threads
        Threads that read and decode.
    progress
        Receives the files.

    Returns
    -------
    dict
        What ``cache verify --sources --json`` prints.

    Raises
    ------
    UserError
        For sources that cannot be read.
    IntegrityError
        If the cache is damaged.
    """
    progress = progress or Silent()
    files = [file for source in sources for file in discover(to_path(source), layout, reading).files]
    datasets = [_dataset_images(cache, name) for name in cache.datasets().names()]
    unreadable: list[dict[str, str]] = []
    unknown = 0
    progress.start("sources", len(files))
    with ThreadPoolExecutor(readers(files, threads)) as pool, ThreadPoolExecutor(threads) as decoders:
        for start in range(0, len(files), _BLOCK):
            block = files[start : start + _BLOCK]
            data: dict[str, bytes] = {}
            keys: list[str] = []
            for file, found in zip(block, pool.map(_read, block), strict=True):
                if isinstance(found, ImageRejected):
                    unreadable.append(_reject(file, found))
                else:
                    keys.append(content_key(found))
                    data[keys[-1]] = found
            known: set[str] = set()
            for dataset in datasets:
                present = dataset.among(list(data))
                known.update(present)
                _check(dataset, {key: data[key] for key in present}, decoders)
            unknown += sum(key not in known for key in keys)
            progress.advance("sources", len(block))
    left = list(_set_aside(cache, datasets)) if set_aside else []
    suspects = [suspect for dataset in datasets for suspect in _suspects(cache, dataset)]
    return {
        "sources": [str(source) for source in sources],
        "files": len(files),
        "not_in_cache": unknown,
        "unreadable": unreadable,
        "datasets": [_summary(cache, dataset) for dataset in datasets],
        "suspects": suspects,
        "counts": _counts(suspects),
        "set_aside": set_aside,
        "left": left,
    }


def _dataset_images(cache: Cache, name: str) -> _DatasetImages:
    revision = cache.datasets().head(name)
    keys = np.unique(keys_of_column(cache.datasets().read(name, revision, columns=["key"]).column("key")))
    newest: dict[str, FeatureStore] = {}
    features: dict[str, list[FeatureStore]] = {}
    for record in cache.builds().find(name):
        if record.revision != revision or "image" not in record.features:
            continue
        stores = {feature: cache.open_feature(built.folder) for feature, built in record.features.items()}
        settings = fingerprint_without(stores["image"].spec, "algorithm")
        known = newest.get(settings)
        if known is None or algorithms(known.spec) <= algorithms(stores["image"].spec):
            newest[settings] = stores["image"]
        features.setdefault(stores["image"].fingerprint, []).extend(stores.values())
    kept = list(newest.values())
    of_images = {store.folder.name: features[store.fingerprint] for store in kept}
    return _DatasetImages(name, revision, keys, kept, of_images, np.zeros(len(keys), bool))


def _read(file: SourceFile) -> bytes | ImageRejected:
    try:
        return read_image(file)[0]
    except Exception as error:  # whatever it is, it costs this file alone
        return rejection(b"", error)


def _check(dataset: _DatasetImages, files: Mapping[str, bytes], decoders: ThreadPoolExecutor) -> None:
    """Compare the files of a block, by key, with every cached image of them."""
    if not files:
        return
    for store in dataset.images:
        held = [
            key for key, number in zip(files, store.index().locate(list(files))[0].tolist(), strict=True) if number >= 0
        ]
        if not held:
            continue
        spec = _decoding_spec(store)
        decoded = list(decoders.map(lambda key, spec=spec: _decoded(files[key], spec), held))
        for key, now, then in zip(held, decoded, gather(store, held), strict=True):
            why = _difference(now, then)
            if why:
                dataset.suspects.setdefault(store.folder.name, {})[key] = why


def _decoding_spec(store: FeatureStore) -> ImageSpec:
    """Return the spec by which the decoder makes a feature's images."""
    spec = store.spec
    if "imported" in spec:
        preset = "distildire" if spec.get("resize") == "none" else spec.get("resize")
        spec = {"size": spec.get("size"), "preset": preset}
    try:
        return ImageSpec.model_validate(spec)
    except ValidationError as error:
        raise UserError(
            f"{store.folder}: its images have settings that this version does not know. Install the one that made them."
        ) from error


def _decoded(data: bytes, spec: ImageSpec) -> NDArray[np.uint8] | ImageRejected:
    try:
        return decode(data, spec)
    except Exception as error:
        return rejection(data, error)


def _difference(now: NDArray[np.uint8] | ImageRejected, then: NDArray[np.uint8]) -> str:
    """Return ``reason: detail`` of a suspect; empty if the file decodes to what is in the cache."""
    if isinstance(now, ImageRejected):
        return str(now)
    if now.shape == then.shape and np.array_equal(now, then):
        return ""
    if now.shape != then.shape:
        return f"{OTHERWISE}: to another size"
    distance = np.abs(now.astype(np.int16) - then)
    return f"{OTHERWISE}: {(distance > 0).mean():.1%} of the values differ, by {int(distance.max())} levels at most"


def _set_aside(cache: Cache, datasets: Sequence[_DatasetImages]) -> Iterator[str]:
    """Take the suspects out of their datasets; yield a sentence for each that was left as it is."""
    for dataset in datasets:
        reasons = dataset.reasons()
        if not reasons:
            continue
        try:
            remove_rows(cache, dataset.name, reasons)
        except UserError as error:
            yield str(error)
            continue
        for store in dataset.images:
            found = dataset.suspects.get(store.folder.name)
            if found:
                write_set_aside(store, found)


def _suspects(cache: Cache, dataset: _DatasetImages) -> Iterator[dict[str, Any]]:
    if not dataset.suspects:
        return
    table = cache.datasets().read(dataset.name, dataset.revision)
    table = table.filter(pc.is_in(table.column("key"), pa.array(list(dataset.reasons()), pa.string())))
    rows = {row["key"]: row for row in reversed(table.to_pylist())}
    for folder, found in dataset.suspects.items():
        for key, why in found.items():
            row = rows[key]
            reason, _, detail = why.partition(": ")
            held = sorted({store.feature for store in dataset.features[folder] if key in store.index()})
            yield {
                "dataset": dataset.name,
                **{name: row[name] for name in ("path", "key", "label", "split", "generator", "group")},
                "reason": reason,
                "detail": detail,
                "image": folder,
                "rows": held,
            }


def _counts(suspects: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Count suspects by dataset, generator, label and reason."""
    names = ("dataset", "generator", "label", "reason")
    counted = Counter(tuple(suspect[name] for name in names) for suspect in suspects)
    return [{**dict(zip(names, values, strict=True)), "images": count} for values, count in sorted(counted.items())]


def _summary(cache: Cache, dataset: _DatasetImages) -> dict[str, Any]:
    reasons = dataset.reasons()
    otherwise = sum(why.startswith(OTHERWISE) for why in reasons.values())
    return {
        "name": dataset.name,
        "revision": dataset.revision,
        "samples": len(dataset.keys),
        "seen": int(dataset.seen.sum()),
        "not_seen": int((~dataset.seen).sum()),
        "refused": len(reasons) - otherwise,
        "decoded_otherwise": otherwise,
        "newest_revision": cache.datasets().head(dataset.name),
    }


def _reject(file: SourceFile, rejected: ImageRejected) -> dict[str, str]:
    return {"path": printable(file.location), "reason": rejected.reason, "detail": rejected.detail}
