"""A model card of a run's best student, as model hubs read it: Markdown with YAML front matter, all from the run's record.

The licence is left to whoever publishes the model. Texts of a run may come from a stranger, so they are escaped for Markdown,
and YAML is written by a library.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ... import __version__
from ...errors import UserError
from ...storage.atomic import create_file
from ...storage.text import harmless, visible
from ...train.evaluation.summary import WHOLE, summarise
from ...train.runs.forms import KnownBest, known_best, read_evaluation
from ..layout.page import environment
from ..layout.tables import Table
from ..wording import percent

if TYPE_CHECKING:
    from ...train.runs.folder import RunRecord

CARD = "README.md"
_MEASURES = {"at_half": ("accuracy", "accuracy at 0.5"), "ap": ("average_precision", "average precision")}
"""Cell of a summary -> the hub's name of the measure, and its title."""


def card_path(file: Path) -> Path:
    """Return the path of the card beside an exported file. Raises UserError if something is there."""
    path = file.parent / CARD
    if path.exists() or path.is_symlink():
        raise UserError(f"{path}: exists already, and a card is not written over it. Export into another folder.")
    return path


def write_card(text: str, file: Path) -> Path:
    """Write a card beside the exported file that it names.

    Parameters
    ----------
    text
        From :func:`card_text`.
    file
        The exported file.

    Returns
    -------
    Path
        The card, ``README.md``.

    Raises
    ------
    UserError
        A file of that name exists.
    """
    path = card_path(file)
    if not create_file(path, text.encode()):
        raise UserError(f"{path}: exists already, and a card is not written over it. Export into another folder.")
    return path


def card_text(run: Path, file: str) -> str:
    """Return the text of the card; ``file`` is the name of the exported file.

    Raises
    ------
    UserError
        The folder is no run, or one of its evaluations is damaged.
    """
    from ...train.runs.folder import RunFolder  # brings torch with it

    record, best = RunFolder(run).read(), known_best(run)
    evaluations = list(_evaluations(run, best)) if best else []
    page = {
        "front_matter": yaml.safe_dump(
            harmless(_front_matter(record, evaluations)), sort_keys=False, allow_unicode=True, width=120
        ),
        "title": visible(record.run),
        "method": f"{record.method.name} (preset {record.method.preset})",
        "version": record.versions.get("distil-cache", __version__),
        "notes": [visible(note[:1].upper() + note[1:] + ".") for note in record.notes()],
        "training": [(name, visible(value)) for name, value in _training(record)],
        "features": [[visible(cell) for cell in row] for row in _features(record)],
        "tables": [_table(info, summary) for info, summary in evaluations],
        "file": visible(file),
        "onnx": file.endswith(".onnx"),
    }
    return environment().get_template("card.md.j2").render(page)


def _evaluations(run: Path, best: KnownBest) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the evaluations of the best student, whole splits only, each with its summary."""
    for folder in sorted((run / "evaluations").glob("*")):
        info = read_evaluation(folder)
        if (info.get("checkpoint") or {}).get("sha256") == best.sha256 and not info.get("select"):
            yield info, summarise(info, folder / "scores.parquet", best.calibration)


def _front_matter(record: RunRecord, evaluations: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    results = []
    for info, summary in evaluations:
        whole = _whole(summary)
        metrics = [
            {"type": kind, "name": f"{title} (95 % interval {low:.4f} to {high:.4f})", "value": round(value, 4)}
            for cell, (kind, title) in _MEASURES.items()
            if whole[cell] is not None
            for value, low, high in [whole[cell]]
        ]
        dataset = {"type": info["dataset"], "name": info["dataset"], "split": info["split"]}
        task = {"type": "image-classification", "name": "generated image detection"}
        results.append({"task": task, "dataset": dataset, "metrics": metrics})
    trained = [one.dataset for one in record.trained_on if one.dataset]
    content: dict[str, Any] = {
        "library_name": "distil-cache",
        "pipeline_tag": "image-classification",
        "tags": ["generated-image-detection", "diffusion", record.method.name],
        "datasets": list(dict.fromkeys([*trained, *(info["dataset"] for info, _ in evaluations)])),
        "metrics": [kind for kind, _ in _MEASURES.values()],
    }
    if results:
        content["model-index"] = [{"name": record.run, "results": results}]
    return content


def _whole(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row of all images; with a single generator, its row is that."""
    rows: list[Mapping[str, Any]] = summary["rows"]
    return next((row for row in rows if row["generator"] == WHOLE), rows[-1])


def _training(record: RunRecord) -> Iterator[tuple[str, str]]:
    for one in record.trained_on:
        if one.dataset:
            yield "dataset", f"{one.dataset}, revision {one.revision}, build {one.build}"
    yield "images", ", ".join(f"{count:,} {name}" for name, count in record.samples.items())
    yield "validated on", record.validation
    yield "generators seen", ", ".join(record.seen_generators) or "not known"
    config = record.config
    of_pixels = f"{config.backbone}, input of {record.train_size} pixels, from {record.initial_weights or '?'}"
    yield "student", of_pixels if record.method.backbone else f"{record.title}: no backbone"
    learned = (
        f"at most {config.epochs} epochs, batches of {config.batch_size}, Adam at {config.lr:g}, "
        f"distillation weight {config.distillation:g}, seed {config.seed}"
    )
    yield "settings", learned if record.method.learns else "none: nothing is learned by steps"
    yield "software", ", ".join(f"{name} {version}" for name, version in record.versions.items())


def _features(record: RunRecord) -> Iterator[list[str]]:
    for name in record.method.inputs:
        adm = record.specs.get(name, {}).get("adm")
        weights = str(adm.get("weights", "")) if isinstance(adm, dict) else ""
        yield [name, record.fingerprints.get(name, "not known"), weights or "none"]


def _table(info: Mapping[str, Any], summary: Mapping[str, Any]) -> Table:
    rows = [
        [row["generator"] or "real", f"{row['real']:,}", f"{row['fake']:,}"]
        + [_cell(row[cell]) for cell in ("at_half", "at_threshold", "ap")]
        for row in summary["rows"]
    ]
    columns = ["generator", "real", "generated", "accuracy at 0.5", "accuracy at the validated threshold", "AP"]
    transform = info.get("transform") or info.get("applied_transform") or "not known"
    caption = f"{info['dataset']}, split {info['split']}, test transform {transform}, in percent"
    return Table(visible(caption), columns, [[visible(cell) for cell in row] for row in rows])


def _cell(values: list[float] | None) -> str:
    if values is None:
        return "n/a"
    value, low, high = values
    return f"{percent(value)} [{percent(low)}, {percent(high)}]"
