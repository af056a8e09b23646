"""The report's wording: numbers and names as the tables show them, and the sentences above and below them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..metrics.clusters import Clusters
from ..metrics.intervals import RATES, fewest_reals
from ..metrics.measures import Interval
from ..metrics.per_generator import UNKNOWN_FAMILY
from ..train.config import NO_BACKBONE
from .inputs.measured import MeasuredEvaluation
from .inputs.paper import PaperCell
from .inputs.runs import Run

MISSING = "–"
CONFIRMED_IMAGES = 80
"""Images of each class from which on simulations confirm the intervals."""
FAMILIES = {"gan": "GANs", "diffusion": "diffusion models", UNKNOWN_FAMILY: "unknown family"}


def generator_title(name: str) -> str:
    """Return a generator's name as it is shown."""
    return name or "(no name)"


def family_title(name: str) -> str:
    """Return a family's name as it is shown."""
    return FAMILIES.get(name, name)


def method_title(run: Run) -> str:
    """Name a run's method with its distillation weight, and its preset unless that is the paper's.

    DNF is named with its network, since the noise is not that of the paper's.
    """
    preset = run.get("preset")
    method = f"{run.get('method')}{f' ({preset})' if preset not in (None, 'paper') else ''}"
    method = f"{method} on an ADM's noise" if run.get("method") == "dnf" else method
    return method if run.kd_weight is None else f"{method}, distillation weight {run.kd_weight:g}"


def training_title(run: Run) -> str:
    """Say what a run was trained on."""
    return "trained elsewhere" if run.get("imported") else f"trained on {run.datasets}"


def percent(value: float | None) -> str:
    """Format a fraction in percent without the sign: 0.9345 as ``93.5``, an undefined value as ``–``."""
    return MISSING if value is None else f"{100 * value:.1f}"


def decimal(value: float | None) -> str:
    """Format a value with three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Format a difference of fractions in percentage points, always with its sign."""
    return MISSING if value is None else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def bounds(interval: Interval | None, scale: float = 100.0, digits: int = 1) -> str:
    """Format the ends of an interval, multiplied by ``scale``, with ``digits`` decimals."""
    if interval is None:
        return MISSING
    return f"{interval.low * scale:.{digits}f} to {interval.high * scale:.{digits}f}"


def signed_bounds(interval: Interval) -> str:
    """Format the ends of a difference's interval, in percentage points."""
    return f"{signed(interval.low)} to {signed(interval.high)}"


def counts(real: int, fake: int) -> str:
    """Format the numbers of real and generated images."""
    return f"{real} + {fake}"


def paper_line(cell: PaperCell) -> str:
    """Format the paper's accuracy and AP, marked as the paper's."""
    return f"paper: {percent(cell.accuracy)} / {percent(cell.average_precision)}"


def setting_title(setting: tuple[str, ...], among: Mapping[tuple[str, ...], object]) -> str:
    """Describe an evaluation setting.

    Parameters
    ----------
    setting : tuple of str
        Dataset, revision, split, transform and selection.
    among : Mapping
        All settings of the report. The revision is named if one of them differs in nothing else.
    """
    dataset, revision, *protocol = setting
    same = [other for other in among if (other[0], *other[2:]) == (dataset, *protocol)]
    return f"{dataset}, {protocol_title(*protocol)}{f', revision {revision}' if len(same) > 1 else ''}"


def protocol_title(split: str, transform: str, select: str) -> str:
    """Describe how a dataset was tested: split, test transform and selection."""
    parts = [f"split {split}"]
    parts += [{"crop": "centre crop", "resize": "resized"}.get(transform, transform)] if transform else []
    return ", ".join([*parts, f"only {select}"] if select else parts)


def head_sentences(runs: Sequence[Run], measured: Mapping[tuple[str, ...], Sequence[MeasuredEvaluation]]) -> list[str]:
    """Describe the trainings, then the evaluation settings, one sentence each.

    Runs that differ only in the seed share a sentence.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.configuration(), []).append(run)
    return [_trained(group) for group in groups.values()] + [
        _evaluated(setting_title(setting, measured), setting[1], results) for setting, results in measured.items()
    ]


def notes(
    runs: Sequence[Run],
    measured: Mapping[str, Sequence[MeasuredEvaluation]],
    clusters: Mapping[tuple[str, ...], Clusters],
) -> list[str]:
    """Return the warnings of the report, a sentence each.

    Among them: runs without an evaluation, test sets with a single class, runs scored on different images, what is
    resampled as a cluster (``clusters``, by setting).
    """
    found = [
        f"Run {run.name} has no evaluation. Run: distil-cache evaluate {run.name} --cache DIR --dataset NAME"
        for run in runs
        if not run.evaluations
    ]
    for title, results in measured.items():
        lacking = {name for r in results for name, s in r.scores.items() if not s.real}
        for name in sorted(lacking):
            found.append(
                f"{title}: the test set of {generator_title(name)} has no real images (none has its name, and none is "
                "in its source group), so it has no AP and the mean leaves it out."
            )
        drawn = clusters.get(results[0].evaluation.setting)
        if drawn is not None and drawn.sentence:
            found.append(f"{title}: {drawn.sentence}.")
        found += [f"{title}: {one}." for one in _limits_of_intervals(results)]
        rejected = results[0].evaluation.info.get("set_aside")
        if isinstance(rejected, Mapping) and rejected:
            found.append(
                f"{title}: the build rejected files: "
                f"{', '.join(f'{count:,} {reason}' for reason, count in sorted(rejected.items()))}. label-conflict: "
                "the same bytes occur with both labels; leaked: the same bytes are also in the test split, which alone keeps them."
            )
        for note, names in _evaluation_notes(results).items():
            found.append(f"{title}: {listed(names)}: {note}.")
        if any(_uncropped(result) for result in results):
            found.append(
                f"{title}: the images are no larger than the student's input, so they were resized as in training "
                "instead of cropped."
            )
        if any(not result.scores for result in results):
            found.append(f"{title}: no generated images, so there is no generator to test.")
        if any(not np.array_equal(r.evaluation.keys, results[0].evaluation.keys) for r in results):
            found.append(f"{title}: the runs were scored on different images, so compare their numbers with care.")
    return found


def _limits_of_intervals(results: Sequence[MeasuredEvaluation]) -> list[str]:
    """Say which test sets have intervals outside of what simulations confirm (docs/measurements/coverage.md)."""
    sizes = {name: scores for result in results for name, scores in result.scores.items() if scores.complete}
    small = sorted(name for name, scores in sizes.items() if min(scores.real, scores.fake) < CONFIRMED_IMAGES)
    found = []
    if small:
        found.append(
            f"fewer than {CONFIRMED_IMAGES} images of a class in the test set of {listed(list(map(generator_title, small)))}, "
            "so its intervals hold less surely than 95 %"
        )
    for rate in RATES.values():
        least = fewest_reals(rate)
        blind = sorted(name for name in sizes if sizes[name].real < least)
        if blind:
            found.append(
                f"fewer than {least} real images in the test set of {listed(list(map(generator_title, blind)))}, so the "
                f"finds at {100 * rate:g} % false positives have an upper bound alone"
            )
    return found


def _evaluation_notes(results: Sequence[MeasuredEvaluation]) -> dict[str, list[str]]:
    """Return the notes that the evaluations hold, each with the names of its runs."""
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
    text = f"{listed([run.name for run in runs])}: {first.title}"
    text += f", which sees {listed(first.inputs)}" if first.inputs else ""
    if first.kd_weight is not None:
        text += f", distillation weight {first.kd_weight:g}" if first.kd_weight else ", without the distillation loss"
    text += f", preset {first.get('preset')}" if first.get("preset") not in (None, "paper") else ""
    text += f", backbone {first.get('backbone')}" if first.get("backbone") not in (None, NO_BACKBONE) else ""
    if first.get("imported"):
        return f"{text}; its weights were trained elsewhere."
    seeds = [str(run.get("seed")) for run in runs]
    text += f", {'seed' if len(seeds) == 1 else 'seeds'} {listed(seeds)}"
    text += f"; trained on dataset {first.datasets} (revision {str(first.get('revision'))[:8]})"
    samples = first.get("samples")
    if isinstance(samples, Mapping) and "train" in samples:
        text += f", {samples['train']:,} training images"
    if first.seen:
        text += f", whose generated images come from {listed([generator_title(name) for name in sorted(first.seen)])}"
    epochs = sorted({len(run.history) for run in runs})
    if epochs != [0] and first.get("epochs") != 0:
        text += f", for {' or '.join(map(str, epochs))} {'epoch' if epochs == [1] else 'epochs'}"
    return text + "."


def _evaluated(title: str, revision: str, results: Sequence[MeasuredEvaluation]) -> str:
    evaluation = results[0].evaluation
    real, fake = int(np.sum(evaluation.labels == 0)), int(np.sum(evaluation.labels == 1))
    names = []
    for name in results[0].scores:
        seen = {name in result.evaluation.seen for result in results}
        state = "seen in training" if seen == {True} else "held out" if seen == {False} else "seen by some of the runs"
        if all(result.run.get("imported") for result in results):
            state = "unknown whether seen in training"
        names.append(f"{generator_title(name)} ({state})")
    text = f"Evaluated on {title} (revision {revision[:8]}): {real:,} real and {fake:,} generated images"
    return f"{text}, generated by {listed(names)}." if names else f"{text}."


def harmonization_sentence(runs: Sequence[Run]) -> str:
    """Say whether a detector could use what the files give away, by what is known of the runs' builds."""
    known = {run.harmonization for run in runs}
    if known == {""}:
        return "A detector may use that in place of the content: the build did not compress all images alike (--harmonize)."
    if None in known or "" in known:
        return "A detector may use that in place of the content, unless the build compressed all images alike (--harmonize)."
    given = listed(sorted(f"--harmonize {one}" for one in known if one))
    return f"The build compressed all images alike ({given}), but their sizes and earlier compression may still show."


def listed(names: Sequence[str]) -> str:
    """Join one or more names as ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def slug(text: str) -> str:
    """Return the letters and digits of a text in lower case, with dashes for everything between them."""
    return re.sub("[^a-z0-9]+", "-", text.lower()).strip("-")


def command_line(*words: str) -> str:
    """Return the command with these words as one types it."""
    return shlex.join(["distil-cache", *words])


def with_command(sentence: str) -> tuple[str, str]:
    """Split a sentence before the command that ends it; without one, the command is empty."""
    text, _, command = sentence.partition(": distil-cache ")
    return (f"{text}:", f"distil-cache {command}") if command else (sentence, "")


def shown_path(folder: Path) -> str:
    """Return a path as one types it here: relative to the current folder if it is below it."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
