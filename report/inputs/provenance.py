"""Where the report's numbers come from: dataset revisions, feature fingerprints, run configurations, software versions.

It is in report.json, in ``tables/tables.json``, in the metadata of ``scores.parquet``, and in short at the top of
``report.tex``. It has no date, so that two reports of the same runs have the same provenance.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from ... import __version__
from .runs import Evaluation, Run

LIBRARIES = ("matplotlib", "numpy", "pyarrow", "scikit-learn")
"""Libraries that compute and write the report."""


def provenance(runs: Sequence[Run]) -> dict[str, Any]:
    """Return the provenance of a report as plain values: software, runs and evaluations."""
    return {
        "software": {
            "distil-cache": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
        "runs": [_run(run) for run in runs],
        "evaluations": [_evaluation(run, one) for run in runs for one in run.evaluations],
    }


def summary_lines(runs: Sequence[Run]) -> list[str]:
    """Return the provenance in short, one line per run and evaluation, for text files."""
    lines = []
    for run in runs:
        trained = [f"{one['dataset']} revision {one['revision']} build {one['build']}" for one in _datasets(run)]
        features = [
            f"{name} {fingerprint[:16]}" for name, fingerprint in sorted(_mapping(run.get("fingerprints")).items())
        ]
        versions = [f"{name} {number}" for name, number in sorted(_mapping(run.get("versions")).items())]
        parts = [f"run {run.name}: {run.get('method')}, seed {run.get('seed')}", *trained, *features, *versions]
        lines.append("; ".join(parts))
        for one in run.evaluations:
            origin = f"dataset {one.info['dataset']} revision {one.info['revision']} split {one.info['split']}"
            lines.append(f"run {run.name}, evaluation {one.name}: {origin}")
    return lines


def _run(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "run": run.config.get("run"),
        "created": run.config.get("created"),
        "datasets": _datasets(run),
        "fingerprints": _mapping(run.get("fingerprints")),
        "config": run.config["config"],
        "imported": run.get("imported"),
        "versions": _mapping(run.get("versions")),
    }


def _datasets(run: Run) -> list[dict[str, Any]]:
    first = {name: run.get(name) for name in ("dataset", "revision", "build")}
    return [first, *(dict(other) for other in run.get("others") or ())]


def _evaluation(run: Run, one: Evaluation) -> dict[str, Any]:
    names = ("dataset", "revision", "build", "split", "transform", "select", "checkpoint", "fingerprints", "versions")
    return {"run": run.name, "evaluation": one.name, **{name: one.info.get(name) for name in names}}


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}
