"""Everything the report says about one evaluation setting: its numbers, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..differences import (
    Contrast,
    DireClass,
    Distillation,
    SeedSummary,
    between_methods,
    dire_classes,
    distillation,
    over_seeds,
)
from ..inputs.measured import MeasuredEvaluation
from ..inputs.runs import SETTING, GalleryItem
from ..layout.figures import comparison_figures
from ..layout.panels import Figure
from ..layout.tables import (
    Table,
    dire_table,
    distillation_table,
    measures_table,
    methods_table,
    results_table,
    seeds_table,
)
from .report_json import dire_content, distillation_content, methods_content, result_content, seeds_content


@dataclass(frozen=True)
class Gallery:
    """Image, eps and DIRE of some evaluated images, and the run whose scores are shown below them."""

    run: str
    items: tuple[GalleryItem, ...]


@dataclass(frozen=True)
class Comparison:
    """One evaluation setting with all its numbers, tables and figures."""

    title: str
    setting: Mapping[str, str]
    results: Sequence[MeasuredEvaluation]
    seeds: Sequence[SeedSummary]
    distillation: Sequence[Distillation]
    methods: Sequence[Contrast]
    mean_dire: Sequence[DireClass]
    gallery: Gallery | None
    tables: Sequence[Table]
    figures: Sequence[Figure]

    @property
    def content(self) -> dict[str, object]:
        """The numbers as in report.json."""
        return {
            "title": self.title,
            "setting": self.setting,
            "results": [result_content(result) for result in self.results],
            "over_seeds": [seeds_content(one) for one in self.seeds],
            "distillation": [distillation_content(one) for one in self.distillation],
            "methods": [methods_content(one) for one in self.methods],
            "mean_dire": [dire_content(one) for one in self.mean_dire],
        }


def compare(title: str, results: Sequence[MeasuredEvaluation], clusters: Mapping[str, str] | None) -> Comparison:
    """Compare the results of one setting.

    Parameters
    ----------
    title : str
        Title of the setting.
    results : sequence of MeasuredEvaluation
        At least one.
    clusters : Mapping or None
        Key of an image -> its cluster, as in ``write_report``.
    """
    seeds, effects, pairs = over_seeds(results), distillation(results), between_methods(results)
    with_dire = next((r.evaluation.mean_dire for r in results if r.evaluation.mean_dire is not None), None)
    classes = dire_classes(with_dire, clusters) if with_dire is not None else []
    tables = [results_table(title, results)]
    tables += [seeds_table(title, seeds)] if seeds else []
    tables += [distillation_table(title, effect, results) for effect in effects]
    tables += [methods_table(title, pairs)] if pairs else []
    tables += [measures_table(title, results)] if any(result.scores for result in results) else []
    tables += [dire_table(title, classes)] if classes else []
    shown = next((Gallery(r.run.name, r.evaluation.gallery) for r in results if r.evaluation.gallery), None)
    return Comparison(
        title=title,
        setting=dict(zip(SETTING, results[0].evaluation.setting, strict=True)),
        results=results,
        seeds=seeds,
        distillation=effects,
        methods=pairs,
        mean_dire=classes,
        gallery=shown,
        tables=tables,
        figures=comparison_figures(title, results, classes),
    )
