"""The report's sentences: what was trained on what, what it was evaluated on, and what a reader must beware of."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..inputs.measured import MeasuredEvaluation
from ..inputs.runs import Run
from .labels import generator_title

_METHODS = {
    "distildire": "DistilDIRE (image and one-step noise)",
    "dire": "DIRE (reconstruction error)",
    "dnf": "DNF (noise features)",
    "eps": "one-step noise alone",
    "cnndet": "CNNDet (image alone)",
}


def setting_title(setting: tuple[str, ...], among: Mapping[tuple[str, ...], object]) -> str:
    """An evaluation setting in words; the revision is named where another setting differs in nothing else."""
    dataset, revision, *way = setting
    same = [other for other in among if (other[0], *other[2:]) == (dataset, *way)]
    return f"{dataset}, {protocol_title(*way)}{f', revision {revision}' if len(same) > 1 else ''}"


def protocol_title(split: str, transform: str, select: str) -> str:
    """How a dataset was tested, in words."""
    words = [f"split {split}"]
    words += [{"crop": "centre crop", "resize": "resized"}.get(transform, transform)] if transform else []
    return ", ".join([*words, f"only {select}"] if select else words)


def head_sentences(runs: Sequence[Run], measured: Mapping[tuple[str, ...], Sequence[MeasuredEvaluation]]) -> list[str]:
    """What was trained on what (a sentence for runs that differ in the seed alone), then each evaluation setting."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.configuration(), []).append(run)
    return [_trained(group) for group in groups.values()] + [
        _evaluated(setting_title(setting, measured), setting[1], results) for setting, results in measured.items()
    ]


def notes(runs: Sequence[Run], measured: Mapping[str, Sequence[MeasuredEvaluation]]) -> list[str]:
    """What is missing or needs care: runs without an evaluation, test sets of one class only, uneven comparisons."""
    found = [
        f"Run {run.name} has no evaluation. Run: distil-cache evaluate {run.name} --cache DIR --dataset NAME"
        for run in runs
        if not run.evaluations
    ]
    for title, results in measured.items():
        lacking = {name for r in results for name, s in r.scores.items() if not s.real}
        for name in sorted(lacking):
            found.append(
                f"{title}: the test set of {generator_title(name)} has no real images (none carries its name, none is "
                "of its source group), so it has no AP and is left out of the mean."
            )
        aside = results[0].evaluation.info.get("set_aside")
        if isinstance(aside, Mapping) and aside:
            found.append(
                f"{title}: when the dataset was built, files were set aside: "
                f"{', '.join(f'{count:,} {reason}' for reason, count in sorted(aside.items()))}. The same bytes under "
                "both labels count as label-conflict; bytes that are also in the test split, and kept there alone, as leaked."
            )
        for note, names in _told(results).items():
            found.append(f"{title}: {listed(names)}: {note}.")
        if any(_uncropped(result) for result in results):
            found.append(
                f"{title}: the images are no larger than the student's input, so there was nothing to crop; they were "
                "resized as in training."
            )
        if any(not result.scores for result in results):
            found.append(f"{title}: there are no generated images, so there is no generator to test on.")
        if any(not np.array_equal(r.evaluation.keys, results[0].evaluation.keys) for r in results):
            found.append(f"{title}: the runs were not scored on the same images, so their numbers compare loosely.")
    return found


def _told(results: Sequence[MeasuredEvaluation]) -> dict[str, list[str]]:
    """What the evaluations themselves say a reader must know, and the runs that it holds for."""
    found: dict[str, list[str]] = {}
    for result in results:
        for note in result.evaluation.info.get("notes") or ():
            found.setdefault(str(note), []).append(result.run.name)
    return found


def _uncropped(result: MeasuredEvaluation) -> bool:
    info = result.evaluation.info
    return info.get("transform") == "crop" and info.get("applied_transform") == "resize"


def _trained(runs: Sequence[Run]) -> str:
    first = runs[0]
    method = str(first.get("method"))
    words = f"{listed([run.name for run in runs])}: {_METHODS.get(method, method)}"
    if first.kd_weight is not None:
        words += f", distillation weight {first.kd_weight:g}" if first.kd_weight else ", without the distillation loss"
    words += f", as the preset {first.get('preset')} has it" if first.get("preset") not in (None, "paper") else ""
    words += f", backbone {first.get('backbone')}" if first.get("backbone") else ""
    if first.get("imported"):
        return f"{words}; its weights were trained elsewhere."
    seeds = [str(run.get("seed")) for run in runs]
    words += f", {'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}"
    words += f"; trained on dataset {first.datasets} (revision {str(first.get('revision'))[:8]})"
    samples = first.get("samples")
    if isinstance(samples, Mapping) and "train" in samples:
        words += f", {samples['train']:,} training images"
    if first.seen:
        words += f", whose generated images come from {listed([generator_title(name) for name in sorted(first.seen)])}"
    epochs = sorted({len(run.history) for run in runs})
    if epochs != [0]:
        words += f", for {' or '.join(map(str, epochs))} {'epoch' if epochs == [1] else 'epochs'}"
    return words + "."


def _evaluated(title: str, revision: str, results: Sequence[MeasuredEvaluation]) -> str:
    evaluation = results[0].evaluation
    real, fake = int(np.sum(evaluation.labels == 0)), int(np.sum(evaluation.labels == 1))
    names = []
    for name in results[0].scores:
        seen = {name in result.evaluation.seen for result in results}
        state = "seen in training" if seen == {True} else "held out" if seen == {False} else "seen by some of the runs"
        if all(result.run.get("imported") for result in results):
            state = "not known whether seen in training"
        names.append(f"{generator_title(name)} ({state})")
    words = f"Evaluated on {title} (revision {revision[:8]}): {real:,} real and {fake:,} generated images"
    return f"{words}, generated by {listed(names)}." if names else f"{words}."


def listed(names: Sequence[str]) -> str:
    """Names, at least one, as ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def slug(text: str) -> str:
    """The letters and digits of a text, in lower case, with a dash for whatever stands between them."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")
