"""The content of report.json: every number of the report as plain values (docs/reference/report.md describes the fields)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...metrics.bootstrap import REPLICATES
from ...metrics.clusters import Clusters
from ...metrics.measures import CALIBRATION_BINS, MEASURES, THRESHOLD
from ...metrics.per_generator import GeneratorScores, by_family, mean_interval, mean_over_generators
from ..audited import audited_data
from ..differences import Contrast, Difference, DireClass, Distillation, MeanSpread, SeedSummary
from ..inputs.measured import MeasuredEvaluation, Setting
from ..inputs.paper import PaperCell, paper, paper_cell, paper_mean
from ..inputs.runs import SETTING, Run
from ..layout.page import Addition
from ..verdict import Place, Standing, Verdict
from ..verdict_words import answers, further_sentences, missing

_Content = dict[str, Any]


def frame(clustered: bool, drawn: Mapping[Setting, Clusters]) -> _Content:
    """Return what applies to all numbers: threshold, intervals, bins, and the paper."""
    return {
        "threshold": THRESHOLD,
        "intervals": {
            "level": 0.95,
            "replicates": REPLICATES,
            "resampled": "cluster" if clustered else "image",
            "clusters": [
                {"setting": dict(zip(SETTING, setting, strict=True)), "column": one.column, "number": one.number}
                for setting, one in drawn.items()
            ],
        },
        "calibration_error": {"bins": CALIBRATION_BINS, "width": "equal"},
        "paper": paper()["source"],
    }


def run_content(run: Run) -> _Content:
    """Return a run's configuration and history."""
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
        "calibration": run.calibration.model_dump(mode="json") if run.calibration else None,
        "swap": run.swap.model_dump(mode="json") if run.swap else None,
        "config": run.config,
        "history": run.history,
    }


def result_content(result: MeasuredEvaluation) -> _Content:
    """Return each generator's measures with their intervals, and their means."""
    return {
        "run": result.run.name,
        "evaluation": result.evaluation.name,
        "info": result.evaluation.info,
        "calibrated_threshold": result.run.threshold(result.evaluation),
        "generators": [_generator(result, name, scores) for name, scores in result.scores.items()],
        "paper_mean": _paper(paper_mean(result)),
        **_mean(result.scores),
        "families": {
            family: {"generators": list(scores), **_mean(scores)} for family, scores in by_family(result.scores).items()
        },
    }


def seeds_content(one: SeedSummary) -> _Content:
    """Return mean and spread over the seeds of a configuration."""
    return {
        "runs": [run.name for run in one.runs],
        "seeds": [run.get("seed") for run in one.runs],
        "generators": {name: _spreads(values) for name, values in one.generators.items()},
        "mean": _spreads(one.mean),
        "families": {name: _spreads(values) for name, values in one.families.items()},
    }


def distillation_content(one: Distillation) -> _Content:
    """Return the effect of the distillation loss."""
    sides = ("without", "with_loss")
    return {
        "kd_weight": one.kd_weight,
        "without": [run.name for run in one.contrast.first],
        "with": [run.name for run in one.contrast.second],
        **_contrast(one.contrast, sides),
    }


def methods_content(one: Contrast) -> _Content:
    """Return the difference between two methods."""
    return {
        "first": [run.name for run in one.first],
        "second": [run.name for run in one.second],
        **_contrast(one, ("first", "second")),
    }


def dire_content(one: DireClass) -> _Content:
    """Return the mean DIRE of one class."""
    return {
        "label": one.label,
        "generator": one.generator,
        "images": len(one.values),
        "mean": one.mean,
        "interval": one.interval,
    }


def verdict_content(verdict: Verdict) -> _Content:
    """Return the answers of the first screen in words, and the numbers that they rest on."""
    return {
        "answers": [dataclasses.asdict(answer) for answer in answers(verdict)],
        "missing": missing(verdict),
        "further": further_sentences(verdict),
        "standings": [_standing(one) for one in (*verdict.standings, *verdict.further)],
        "distillation": [
            {
                "kd_weight": effect.kd_weight,
                "group": effect.standing.group,
                "generators": effect.standing.generators,
                "average_precision": _difference(effect.difference, ("without", "with_loss")),
            }
            for effect in verdict.effects
        ],
        "given_away": list(dict.fromkeys(one.dataset for one in audited_data(verdict.runs) if one.given_away)),
        "unaudited": verdict.unaudited,
    }


def additions_content(added: Sequence[Addition]) -> _Content:
    """Return the added sections as shown, and their values by name."""
    return {
        "sections": [
            {
                "title": section.title,
                "text": section.text,
                "table": dataclasses.asdict(section.table) if section.table else None,
                "figures": [figure.caption for figure in section.figures],
            }
            for addition in added
            for section in addition.sections
        ],
        "extra": {addition.name: addition.content for addition in added if addition.content is not None},
    }


def plain(value: Any) -> Any:
    """Convert a value to JSON's types; numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _generator(result: MeasuredEvaluation, name: str, scores: GeneratorScores) -> _Content:
    return {
        "generator": name,
        "family": scores.family,
        "seen_in_training": name in result.evaluation.seen,
        "real": scores.real,
        "fake": scores.fake,
        **{m: scores.values[m] for m in MEASURES},
        **{f"{m}_interval": scores.interval(m) for m in MEASURES},
        "paper": _paper(paper_cell(result, name)),
    }


def _mean(scores: Mapping[str, GeneratorScores]) -> _Content:
    return {
        "mean": {m: mean_over_generators(scores, m) for m in MEASURES},
        "mean_interval": {m: mean_interval(scores, m) for m in MEASURES},
    }


def _paper(cell: PaperCell | None) -> _Content | None:
    return cell._asdict() if cell else None


def _spreads(values: Mapping[str, MeanSpread]) -> _Content:
    return {m: value._asdict() for m, value in values.items()}


def _contrast(one: Contrast, sides: tuple[str, str]) -> _Content:
    return {
        "generators": {name: _differences(found, sides) for name, found in one.generators.items()},
        "mean": _differences(one.mean, sides),
        "families": {name: _differences(found, sides) for name, found in one.families.items()},
    }


def _differences(found: Mapping[str, Difference], sides: tuple[str, str]) -> _Content:
    return {m: _difference(one, sides) for m, one in found.items()}


def _difference(one: Difference, sides: tuple[str, str]) -> _Content:
    return {
        sides[0]: one.first,
        sides[1]: one.second,
        "difference": one.difference,
        "interval": one.interval,
        "spread": one.spread,
        "seeds": one.seeds,
        "seed_interval": one.seed_interval,
        "total_interval": one.total_interval,
        "left_out": one.left_out,
    }


def _standing(one: Standing) -> _Content:
    tied = {id(place) for place in one.tied}
    return {
        "setting": dict(zip(SETTING, one.setting, strict=True)),
        "group": one.group,
        "generators": one.generators,
        "fewest_images": one.fewest,
        "places": [{**_place(place), "tied": id(place) in tied} for place in one.places],
    }


def _place(place: Place) -> _Content:
    return {
        "name": place.name,
        "runs": [run.name for run in place.runs],
        "seeds": [run.get("seed") for run in place.runs],
        "average_precision": place.ap.mean,
        "spread": place.ap.spread,
        "interval": place.interval,
        "auc_interval": place.auc_interval,
        "lead_of_best": _difference(place.behind, ("this", "best")) if place.behind else None,
    }
