"""The demo's sections of the report: DIRE and what blur explains of it, the baseline, how the images were made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..metrics.per_generator import GeneratorScores
from ..report import Section, Table
from ..report.inputs.measured import measure
from ..report.inputs.runs import read_runs
from ..report.layout.panels import Figure, Spread, spread_panel
from .controls import DireMean, DireStudy
from .dataset import BLURRED, DIRE, HELD_OUT, MAIN, SAMPLES, SEEN
from .recipe import ImageKind, Manifest

TITLES: dict[ImageKind, str] = {
    "real": "real crops",
    "blurred": "filtered real crops",
    "twin": "twins",
    "sample": "samples",
}
TEST_SETS = {
    (MAIN, SEEN): f"twins by {SEEN} (seen generator)",
    (MAIN, HELD_OUT): f"twins by {HELD_OUT} (held-out generator of the same family)",
    (MAIN, SAMPLES): f"samples of {SEEN}",
    (BLURRED, SEEN): f"twins by {SEEN}, against filtered reals",
}
"""Dataset and generator -> title of the test set."""

_Row = dict[str, Any]
_Baseline = Mapping[str, Mapping[str, GeneratorScores]]


def dire_section(path: str, study: DireStudy, caveat: str = "") -> Section:
    """Show the mean DIRE of every class, the differences within pairs, and a verdict.

    Parameters
    ----------
    path : str
        Description of the inverted steps.
    study : DireStudy
    caveat : str
        Sentence that follows the verdict.
    """
    rows = [_dire_row(TITLES[kind], mean) for kind, mean in study.classes.items()]
    for (one, other), difference in study.differences.items():
        rows.append(_dire_row(f"difference: {TITLES[one]} minus {TITLES[other]}", difference, signed=True))
    areas = "; ".join(f"{TITLES[a]} from {TITLES[b]}: {area:.2f}" for (a, b), area in study.auc.items())
    table = Table(
        f"Mean DIRE by the ADM {SEEN}, which made the twins and samples: {path}.",
        ["images", "count", "mean DIRE", "95 % interval"],
        rows,
        "Fraction of the 8-bit range (0 to 1). Intervals resample scenes (samples individually); differences are within "
        f"pairs of one crop. AUC of calling low DIRE generated: {areas}.",
    )
    spreads = [
        Spread(TITLES[kind], mean.values, mean.interval, 0 if kind in ("real", "blurred") else 1)
        for kind, mean in study.classes.items()
    ]
    alt = "; ".join(f"{TITLES[kind]} {mean.mean:.4f}" for kind, mean in study.classes.items())
    figure = Figure(
        f"Mean DIRE of each image by class: {path}. Line: 5th to 95th percentile; box: quartiles; dot and bar: mean and "
        "its 95 % interval.",
        (spread_panel("Mean DIRE", alt, spreads, "mean |x - reconstruction| (fraction of the 8-bit range)"),),
        ("real", "generated"),
    )
    return Section(
        f"Mean DIRE, and what blur explains of it: {path}",
        f"{dire_verdict(path, study)} {caveat}".strip(),
        table,
        (figure,),
    )


def dire_verdict(path: str, study: DireStudy) -> str:
    """Say whether generated images have lower DIRE, and whether smoothness explains it."""
    plain, blur, beyond = (
        study.differences[pair] for pair in (("twin", "real"), ("blurred", "real"), ("twin", "blurred"))
    )
    there = beyond.interval.high < 0
    return (
        "DIRE assumes that a diffusion model reconstructs generated images better than photographs. "
        f"The twins' mean DIRE is {_direction(plain)} that of the crops they were made from ({_difference(plain)}). "
        "A small denoiser smooths, and smooth images have low DIRE anyway: filtering the real crops to their twins' "
        f"spectra alone gives a mean that is {_direction(blur)} the crops' own ({_difference(blur)}). "
        f"Against these filtered crops the twins' mean is {_direction(beyond)} theirs ({_difference(beyond)}).\n\n"
        + (
            f"So with {path}, DIRE is lower for generated images beyond what their smoothness explains."
            if there
            else f"So with {path}, DIRE shows no effect beyond blur. The students do not use DIRE: "
            "whatever they detect is in the image and its one-step noise."
        )
    )


def baseline_section(rows: Sequence[_Row], runs: Sequence[str], metadata: float) -> Section:
    """Show the baseline beside the students, one row per test set, and the AUC of file metadata."""
    table = Table(
        "A logistic regression on Laplacian energy and saturation beside the students.",
        ["test set", "real + generated", "Laplacian and saturation", *runs],
        [
            [
                row["title"],
                f"{row['real']} + {row['fake']}",
                _scores(row["baseline"]),
                *(_scores(row["runs"][r]) for r in runs),
            ]
            for row in rows
        ],
        "Accuracy at 0.5 / AP, in percent; below it the 95 % interval of the AP, over scenes.",
        numeric_from=2,
    )
    text = (
        "The baseline uses three numbers per image: the energy of its Laplacian, its mean colour saturation, and the share "
        "of values clipped at 0 or 255. It is trained on the same images as the students. In the last row, the real images "
        "are filtered to the spectra of their twins, so that smoothness carries no information.\n\n"
        "A random forest that uses only a file's metadata (bytes, width, height, channels, entries, format), "
        f"cross-validated on all images of the dataset {MAIN}, has an AUC of {metadata:.2f}; 0.50 is chance."
    )
    return Section("Baseline and controls", text, table)


def images_section(manifest: Manifest) -> Section:
    """Describe how the images were made, and count them by kind."""
    recipe = manifest.recipe
    counts = Counter((i.dataset, i.split, i.generator, i.label, i.kind, i.strength) for i in manifest.images)
    rows = [
        [
            f"{dataset}, {split}",
            f"{generator}/{'1_fake' if label else '0_real'}",
            TITLES[kind],
            str(strength or "–"),
            str(n),
        ]
        for (dataset, split, generator, label, kind, strength), n in sorted(counts.items(), key=str)
    ]
    scenes = {
        split: sorted({str(i.scene) for i in manifest.images if i.split == split and i.scene})
        for split in ("train", "test")
    }
    text = (
        "Real images are square windows of colour photographs that scikit-image and scikit-learn install, shrunk to 32x32 "
        f"by averaging. Scenes of training: {', '.join(scenes['train'])}; of test: {', '.join(scenes['test'])}; the two "
        "motorcycle photographs are one scene. No scene is in both, and no diffusion model was trained on any of them.\n\n"
        f"A twin is such a crop noised to timestep {', '.join(map(str, recipe.strengths))} (in turn, recorded for each "
        f"image) and denoised with DDIM steps of {recipe.steps}; a sample is generated from pure noise. {SEEN} generates "
        f"the images of training; {HELD_OUT} differs from it in seed, width and noise schedule. All files are "
        "uncompressed PNG of one size without metadata.\n\n"
        f"DIRE is computed for the training images, and for those of the dataset {DIRE}: the first {recipe.dire_crops} "
        f"crops of each scene with their twins and filtered versions, and the first {recipe.dire_samples} samples."
    )
    table = Table(
        "Files by folder and kind.", ["dataset, split", "folder", "kind", "noised to", "files"], rows, numeric_from=3
    )
    return Section("How the images were made", text, table)


def test_rows(runs: Sequence[Path], clusters: Mapping[str, str], baseline: _Baseline) -> list[_Row]:
    """Return a row per test set: its title and counts, and the measures of the baseline and of each run.

    Parameters
    ----------
    runs : sequence of Path
        Evaluated run folders.
    clusters : Mapping
        Key -> scene.
    baseline : Mapping
        Dataset -> generator -> measures.
    """
    results = [result for group in measure(read_runs(runs), clusters).values() for result in group]
    rows = []
    for (dataset, generator), title in TEST_SETS.items():
        scores = baseline[dataset][generator]
        rows.append(
            {
                "title": title,
                "dataset": dataset,
                "generator": generator,
                "seen_in_training": (dataset, generator) == (MAIN, SEEN),
                "real": scores.real,
                "fake": scores.fake,
                "baseline": _measures(scores),
                "runs": {
                    result.run.name: _measures(result.scores[generator])
                    for result in results
                    if result.evaluation.setting[0] == dataset
                },
            }
        )
    return rows


def _measures(scores: GeneratorScores) -> _Row:
    return {
        "accuracy": scores.accuracy,
        "accuracy_interval": scores.accuracy_interval,
        "average_precision": scores.average_precision,
        "average_precision_interval": scores.average_precision_interval,
    }


def _dire_row(title: str, mean: DireMean, *, signed: bool = False) -> list[str]:
    form = "+.4f" if signed else ".4f"
    low, high = mean.interval
    return [title, str(len(mean.values)), _minus(format(mean.mean, form)), _minus(f"{low:{form}} to {high:{form}}")]


def _direction(difference: DireMean) -> str:
    if difference.interval.high < 0:
        return "lower than"
    return "higher than" if difference.interval.low > 0 else "not clearly different from"


def _difference(mean: DireMean) -> str:
    low, high = mean.interval
    return _minus(f"{mean.mean:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _scores(measures: Mapping[str, Any]) -> str:
    bounds = measures["average_precision_interval"]
    text = f"{100 * measures['accuracy']:.1f} / {100 * measures['average_precision']:.1f}"
    return text + (f"\n{100 * bounds[0]:.1f} to {100 * bounds[1]:.1f}" if bounds else "")
