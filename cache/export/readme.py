"""The description of an exported training set: README.md for people, specs.json for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ..maintenance.listing import spec_summary
from ..shards.format import Rows
from ..store import FeatureStore


class FeatureFacts:
    """What is known of one exported feature.

    Attributes
    ----------
    spec
        Its settings as JSON values.
    fingerprint
        64 hex digits.
    description
        What the values mean.
    shape, dtype
        Those of one row.
    low, high
        Smallest and largest exported value.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.spec = store.spec
        self.fingerprint = store.fingerprint
        self.description = store.description
        self.shape: tuple[int, ...] = ()
        self.dtype = ""
        self.low, self.high = float("inf"), float("-inf")

    def update(self, rows: Rows) -> None:
        """Take rows, (N, *shape), into account."""
        self.shape, self.dtype = rows.shape[1:], rows.dtype.name
        self.low, self.high = min(self.low, float(rows.min())), max(self.high, float(rows.max()))

    @property
    def sentences(self) -> list[str]:
        """A line about the spec, followed by lines about the specs from which it derives."""
        return list(_sentences(self.spec))


def specs_json(about: Mapping[str, Any], facts: Mapping[str, FeatureFacts]) -> str:
    """Return the content of ``specs.json``: what was exported, and everything that decides each feature's values.

    Parameters
    ----------
    about
        The facts of the export, as returned by :func:`.webdataset.export_build`.
    facts
        The exported features, by name.
    """
    features = {
        name: {
            "fingerprint": fact.fingerprint,
            "dtype": fact.dtype,
            "shape": list(fact.shape),
            "range": [fact.low, fact.high],
            "words": fact.sentences,
            "spec": fact.spec,
        }
        for name, fact in facts.items()
    }
    return json.dumps({**about, "features": features}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def readme(about: Mapping[str, Any], facts: Mapping[str, FeatureFacts]) -> str:
    """Return the content of ``README.md``; parameters as for :func:`specs_json`."""
    lines = [
        f"# {about['dataset']}",
        "",
        f"Cached features of the dataset `{about['dataset']}` (revision {about['revision']}, build {about['build']}), "
        f"joined sample by sample and shuffled with seed {about['seed']}. Written by distil-cache.",
        "",
        "| split | samples | tars | features |",
        "|---|---|---|---|",
    ]
    for name, split in about["splits"].items():
        lines.append(f"| {name} | {split['samples']:,} | {len(split['tars'])} | {', '.join(split['features'])} |")
    lines += [
        "",
        "The tars are uncompressed webdataset shards. A sample `KEY` has a member `KEY.FEATURE.npy` for each feature, "
        "and `KEY.json` with `label` (0 real, 1 fake), `split`, `generator`, `family`, `group` and `key`, the "
        "first 32 hex digits of the SHA-256 of the image file. If an image occurs several times in the dataset, a "
        "number follows its KEY.",
        "",
        "| feature | dtype | shape | range | description |",
        "|---|---|---|---|---|",
    ]
    for name, fact in facts.items():
        shape = " x ".join(map(str, fact.shape))
        lines.append(f"| {name} | {fact.dtype} | {shape} | {fact.low:g} to {fact.high:g} | {fact.description} |")
    lines += ["", "How each was computed (`specs.json` has all settings in machine-readable form):", ""]
    lines += [f"* {sentence}" for sentence in dict.fromkeys(line for fact in facts.values() for line in fact.sentences)]
    lines += ["", "Read the tars with webdataset:", "", "```python", *_example(about), "```", ""]
    lines += ["Verify the files: `sha256sum -c SHA256SUMS`", ""]
    return "\n".join(lines)


def _example(about: Mapping[str, Any]) -> Iterator[str]:
    name, split = next(iter(about["splits"].items()))
    last = len(split["tars"]) - 1
    tars = f"{name}-{{000000..{last:06d}}}.tar" if last else f"{name}-000000.tar"
    members = ", ".join(f'"{feature}.npy"' for feature in split["features"])
    yield "import webdataset"
    yield ""
    yield f'samples = webdataset.WebDataset("{tars}", shardshuffle=False).decode()'
    yield f'for *features, about in samples.to_tuple({members}, "json"):'
    yield '    print(about["label"], [feature.shape for feature in features])'
    yield "    break"


def _sentences(spec: Mapping[str, Any]) -> Iterator[str]:
    yield f"{spec['feature']}: {spec_summary(spec)}"
    for value in spec.values():
        if isinstance(value, dict) and "feature" in value:
            yield from _sentences(value)
