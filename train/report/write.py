"""The report over finished runs: report.html (one self-contained file), report.md and report.json.

Only run folders are read. What is said stands in report.json as plain values (``SCHEMA_VERSION`` is raised when a field
changes its meaning or goes away); the page and the Markdown lay the same things out. Two reports over the same runs
differ in their date alone.
"""

from __future__ import annotations

import dataclasses
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from ... import __version__
from ...errors import UsageError, UserError
from ..metrics import REPLICATES, mean_over_generators
from .drawing import DASHES, SERIES, Figure, png_panel, with_prefix
from .figures import curve_figures, dire_figure, histogram_figure, training_figure
from .runs import Evaluation, GalleryItem, Run, read_runs
from .tables import (
    DireClass,
    Distillation,
    Result,
    SeedSummary,
    Table,
    dire_classes,
    dire_table,
    distillation,
    distillation_table,
    generator_title,
    measure,
    over_seeds,
    results_table,
    seeds_table,
)
from .text import head_sentences, notes, setting_title

SCHEMA_VERSION = 1
FILES = {"html": "report.html", "markdown": "report.md", "json": "report.json"}


@dataclass(frozen=True)
class Section:
    """A part of the page that a caller adds: paragraphs (separated by blank lines), a table, figures; each may lack."""

    title: str
    text: str = ""
    table: Table | None = None
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Gallery:
    """Triptychs of some evaluated images, and whose scores stand below them."""

    run: str
    items: tuple[GalleryItem, ...]


@dataclass(frozen=True)
class Comparison:
    """All that is said about one evaluation setting (dataset, split, transform, selection)."""

    title: str
    setting: Mapping[str, str]
    results: Sequence[Result]
    seeds: Sequence[SeedSummary]
    distillation: Sequence[Distillation]
    dire: Sequence[DireClass]
    gallery: Gallery | None
    tables: Sequence[Table] = field(default=())
    figures: Sequence[Figure] = field(default=())


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    extra: Sequence[Section] = (),
    clusters: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Write report.html, report.md and report.json over ``runs`` into the folder ``out``; return what the JSON holds.

    extra : sections that follow the comparisons.
    clusters : key -> name of what an image belongs to (its scene, say); intervals then resample whole clusters. A key
        that is not there is a cluster of its own.

    Raises ``UserError`` if a run cannot be read or no run has an evaluation.
    """
    read = read_runs(runs)
    if not any(run.evaluations for run in read):
        raise UserError(
            f"no evaluation in {', '.join(str(run) for run in runs)}: there is nothing to compare. "
            "Run: distil-cache evaluate RUN --cache DIR --dataset NAME"
        )
    measured = measure(read, clusters)
    titles = [setting_title(setting, measured) for setting in measured]
    comparisons = [
        _comparison(title, results, clusters) for title, results in zip(titles, measured.values(), strict=True)
    ]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    content: dict[str, Any] = _plain(_content(read, comparisons, extra, created, clusters is not None))
    page = {
        "content": content,
        "head": head_sentences(read, measured),
        "comparisons": comparisons,
        "training": training_figure(read),
        "extra": extra,
        "runs": read,
    }
    environment = _environment()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(
            f"{out}: cannot be the report's folder ({problem.strerror}). Name another with --out"
        ) from problem
    for kind in ("html", "markdown"):
        name = FILES[kind]
        text = environment.get_template(f"{name}.j2").render(page)
        (out / name).write_text(text, encoding="utf-8")
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    (out / FILES["json"]).write_text(text + "\n", encoding="utf-8")
    return content


def _comparison(title: str, results: Sequence[Result], clusters: Mapping[str, str] | None) -> Comparison:
    seeds, effects = over_seeds(results), distillation(results)
    with_dire = next((r.evaluation.dire for r in results if r.evaluation.dire is not None), None)
    classes = dire_classes(with_dire, clusters) if with_dire is not None else []
    tables = [results_table(title, results)]
    tables += [seeds_table(title, seeds)] if seeds else []
    tables += [distillation_table(title, effect) for effect in effects]
    tables += [dire_table(title, classes)] if classes else []
    figures = [*curve_figures(title, results), histogram_figure(title, results)]
    figures += [dire_figure(title, classes)] if classes else []
    shown = next((Gallery(r.run.name, r.evaluation.gallery) for r in results if r.evaluation.gallery), None)
    names = ("dataset", "revision", "split", "transform", "select")
    setting = dict(zip(names, results[0].evaluation.setting, strict=True))
    return Comparison(title, setting, results, seeds, effects, classes, shown, tables, figures)


def _content(
    runs: Sequence[Run], comparisons: Sequence[Comparison], extra: Sequence[Section], created: str, clustered: bool
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "created": created,
        "program": {"name": "distil-cache", "version": __version__},
        "files": FILES,
        "threshold": 0.5,
        "intervals": {"level": 0.95, "replicates": REPLICATES, "resampled": "cluster" if clustered else "image"},
        "notes": notes(runs, {comparison.title: comparison.results for comparison in comparisons}),
        "runs": [_run_content(run) for run in runs],
        "comparisons": [
            {
                "title": comparison.title,
                "setting": comparison.setting,
                "results": [_result_content(result) for result in comparison.results],
                "over_seeds": [_seeds_content(one) for one in comparison.seeds],
                "distillation": [_distillation_content(one) for one in comparison.distillation],
                "mean_dire": [
                    {
                        "label": one.label,
                        "generator": one.generator,
                        "images": len(one.values),
                        "mean": one.mean,
                        "interval": one.interval,
                    }
                    for one in comparison.dire
                ],
            }
            for comparison in comparisons
        ],
        "sections": [
            {
                "title": section.title,
                "text": section.text,
                "table": dataclasses.asdict(section.table) if section.table else None,
                "figures": [figure.caption for figure in section.figures],
            }
            for section in extra
        ],
    }


def _run_content(run: Run) -> dict[str, Any]:
    return {
        "name": run.name,
        "method": run.get("method"),
        "kd_weight": run.kd_weight,
        "seed": run.get("seed"),
        "dataset": run.get("dataset"),
        "revision": run.get("revision"),
        "build": run.get("build"),
        "seen_generators": sorted(run.seen),
        "evaluations": [evaluation.name for evaluation in run.evaluations],
        "config": run.config,
        "history": run.history,
    }


def _result_content(result: Result) -> dict[str, Any]:
    evaluation: Evaluation = result.evaluation
    return {
        "run": result.run.name,
        "evaluation": evaluation.name,
        "info": evaluation.info,
        "generators": [
            {
                "generator": name,
                "seen_in_training": name in evaluation.seen,
                "real": scores.real,
                "fake": scores.fake,
                "accuracy": scores.accuracy,
                "accuracy_interval": scores.accuracy_interval,
                "average_precision": scores.average_precision,
                "average_precision_interval": scores.average_precision_interval,
                "auc": scores.auc,
                "real_accuracy": scores.real_accuracy,
                "fake_accuracy": scores.fake_accuracy,
            }
            for name, scores in result.scores.items()
        ],
        "mean": {m: mean_over_generators(result.scores, m) for m in ("accuracy", "average_precision", "auc")},
    }


def _seeds_content(one: SeedSummary) -> dict[str, Any]:
    return {
        "runs": [run.name for run in one.runs],
        "seeds": [run.get("seed") for run in one.runs],
        "generators": {name: {m: v._asdict() for m, v in values.items()} for name, values in one.generators.items()},
        "mean": {m: v._asdict() for m, v in one.mean.items()},
    }


def _distillation_content(one: Distillation) -> dict[str, Any]:
    return {
        "kd_weight": one.kd_weight,
        "without": [run.name for run in one.without],
        "with": [run.name for run in one.with_loss],
        "generators": {
            name: {m: dataclasses.asdict(v) for m, v in found.items()} for name, found in one.generators.items()
        },
        "mean": {m: dataclasses.asdict(v) for m, v in one.mean.items()},
    }


def _plain(value: Any) -> Any:
    """The same value of JSON's types; numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        markdown=_markdown,
        prefixed=with_prefix,
        generator=generator_title,
        pretty=lambda value: json.dumps(_plain(value), indent=2, ensure_ascii=False, sort_keys=True),
        data_uri=lambda png: png_panel("", "", png).image,
        paragraphs=lambda text: [part.strip() for part in text.split("\n\n") if part.strip()],
    )
    environment.globals.update(series=SERIES, dashes=DASHES)
    return environment


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line (lines of a cell are separated by a break)."""
    shown = html.escape(text, quote=False)
    for sign in "\\`*_[]|":
        shown = shown.replace(sign, "\\" + sign)
    return shown.replace("\n", "<br>")
