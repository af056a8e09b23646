"""The swap test of a run: score its test images under the file histories of the other class.

A history is the codec that an image's file was saved with: JPEG of a quality, or a lossless format. A JPEG's quality can
be given to any image, as ``--harmonize`` and ``--perturb jpeg`` do; traces of an earlier JPEG cannot be taken away, so a
lossless history cannot be given. On request all images are also scored with one history, which is a test of a student
that was trained on the files as they are. :mod:`..metrics.swap` says what is measured.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..cache.spec import harmonization_of
from ..cache.store import Cache
from ..errors import UsageError, UserError
from ..images.file import ImageRejected, Limits
from ..images.perturb import recompress_jpeg
from ..images.spec import parse_harmonization
from ..images.upright import load_rgb
from ..metrics.measures import auc
from ..metrics.swap import SWAP, ClassHistory, Swap, carried_by_history, on_one_history
from ..pipeline.audit.checks import choose_evenly
from ..pipeline.audit.header_features import header_facts
from ..pipeline.sources.file import SourceFile, printable
from ..pipeline.sources.read import read_source
from ..pipeline.sources.recorded import with_members
from ..progress import Progress, Silent
from ..storage import AnyPath
from ..train.runs.checkpoint import replace_text
from ..train.runs.folder import RunFolder
from ..train.runs.forms import known_best
from .detector import DEFAULT_THRESHOLD, Detector

TEST = "test"
_LIMITS = Limits(min_side=1)


@dataclass(frozen=True, order=True)
class History:
    """The codec of a file.

    Attributes
    ----------
    format : str
        File format in lower case.
    quality : int
        Of a JPEG with the usual tables; else 0.
    """

    format: str
    quality: int = 0

    @property
    def given(self) -> bool:
        """Whether an image can be given this history."""
        return self.quality > 0

    def __str__(self) -> str:
        return f"{self.format} of quality {self.quality}" if self.quality else self.format


@dataclass(frozen=True)
class SwapImage:
    """One image of the test, with the key of its bytes and its history."""

    file: SourceFile
    key: str
    history: History


def run_swap(
    run: Path,
    *,
    cache: AnyPath | str | None = None,
    dataset: str | None = None,
    sample: int,
    harmonize: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure how much of a run's verdict follows from the files' history, and store it in the run as ``swap.json``.

    Parameters
    ----------
    run : Path
        Run folder.
    cache, dataset : optional
        Cache and dataset whose test images are scored; by default those of the training.
    sample : int
        Most images of each class.
    harmonize : str, optional
        ``jpeg:QUALITY``: score all images after this compression, too.
    progress : Progress, optional
    **options
        Fields of :class:`.detector.Options`.

    Returns
    -------
    dict
        The content of ``swap.json``, with ``run``, ``set_aside`` (images that could not be read, with the reason) and
        ``seconds``.

    Raises
    ------
    UserError
        If the run, its cache or its ADM cannot be read, or a class has no test image that can.
    UsageError
        If ``harmonize`` cannot be parsed, or the run was trained on images that were compressed alike.
    """
    began = time.monotonic()
    progress = progress or Silent()
    one_history = parse_harmonization(harmonize)
    record = RunFolder(run).read()
    already = max(map(harmonization_of, record.specs.values()), default="")
    if one_history is not None and already:
        raise UsageError(
            f"--harmonize {harmonize}: {run} was trained on images that were all compressed as {already} first, so its "
            "evaluations are on one history already. Leave it out."
        )
    detector = Detector.from_run(run, **options)
    best = known_best(run)
    assert best is not None  # the detector has it
    name = dataset or record.dataset
    store = Cache.open(cache or record.cache).datasets()
    revision = next((one.revision for one in record.trained_on if one.dataset == name), None)
    rows = [row for row in store.read(name, revision).to_pylist() if row["split"] == TEST]
    headers, rejects = _images(rows, sample, progress)
    _check_classes(headers, rejects, name)
    lent = {"again": lend(headers, of_other=False), "swapped": lend(headers, of_other=True)}
    if one_history is not None:
        lent["alike"] = [History(one_history.codec, one_history.quality)] * len(headers)
    scored, undecodable = _score(detector, headers, lent, progress)
    rejects += undecodable
    images = [headers[index] for index in scored]
    labels = _check_classes(images, rejects, name)
    logits = {which: np.array([found[which] for found in scored.values()]) for which in ("own", *lent)}
    moved = np.array([lent["swapped"][index].given for index in scored])
    keys = [image.key for image in images]
    alike = logits.pop("alike", None)
    share, within = carried_by_history(labels, **logits, moved=moved, clusters=keys)
    threshold = DEFAULT_THRESHOLD if best.calibration is None else best.calibration.threshold
    result = Swap(
        dataset=name,
        revision=store.head(name) if revision is None else revision,
        split=TEST,
        checkpoint_sha256=best.sha256,
        real=int(np.sum(labels == 0)),
        fake=int(np.sum(labels == 1)),
        moved_real=int(np.sum(moved & (labels == 0))),
        moved_fake=int(np.sum(moved & (labels == 1))),
        histories=_counted(images),
        carried=share,
        interval=within,
        reason=_reason(share, moved),
        **{f"auc_{which}": auc(labels, values) or 0.0 for which, values in logits.items()},
        one_history=None
        if alike is None
        else on_one_history(str(harmonize), labels, logits["own"], alike, threshold=threshold, clusters=keys),
    )
    replace_text(run / SWAP, result.model_dump_json(indent=2) + "\n")
    return {
        **result.model_dump(mode="json"),
        "run": str(run),
        "set_aside": rejects,
        "seconds": time.monotonic() - began,
    }


def lend(images: Sequence[SwapImage], *, of_other: bool) -> list[History]:
    """Return a history for each image: one that an image of the other class has, or another image of its own class.

    The histories of a class are lent in equal shares, in the order of the images' keys.
    """
    by_label = {
        label: sorted((i for i, image in enumerate(images) if image.file.label == label), key=lambda i: images[i].key)
        for label in (0, 1)
    }
    found: dict[int, History] = {}
    for label, indices in by_label.items():
        lenders = by_label[1 - label] if of_other else [*indices[1:], indices[0]]
        for place, index in enumerate(indices):
            found[index] = images[lenders[place * len(lenders) // len(indices)]].history
    return [found[index] for index in range(len(images))]


def _images(
    rows: Sequence[dict[str, Any]], sample: int, progress: Progress
) -> tuple[list[SwapImage], list[dict[str, str]]]:
    """Read the histories of a sample of rows; return also the files that cannot be read, with the reason."""
    fields = ("source", "path", "label", "split", "generator", "family", "group")
    files = with_members([SourceFile(*(row[field] for field in fields)) for row in rows])
    keys = [row["key"] for row in rows]
    chosen = choose_evenly(files, keys, sample)
    progress.start("headers", len(chosen))
    images, rejects = [], []
    for index in chosen:
        file, key = files[index], keys[index]
        try:
            facts = header_facts(read_source(file, key), file.path)
            images.append(SwapImage(file, key, History(facts.format, facts.jpeg_quality or 0)))
        except ImageRejected as error:
            rejects.append(_reject(file, error))
        progress.advance("headers", 1)
    return images, rejects


def _score(
    detector: Detector,
    images: Sequence[SwapImage],
    lent: Mapping[str, Sequence[History]],
    progress: Progress,
) -> tuple[dict[int, dict[str, float]], list[dict[str, str]]]:
    """Score the images as they are and with each history, and decode each of them once.

    Parameters
    ----------
    detector : Detector
    images : sequence of SwapImage
    lent : Mapping
        Name of a pass -> the history of each image in it.
    progress : Progress

    Returns
    -------
    dict
        Index of an image that could be decoded -> its logit ``own``, and that of each pass; where a history cannot be
        given, that of the image as it is.
    list of dict
        The images that cannot be decoded, with the reason.
    """
    asked: list[tuple[int, str]] = []
    rejects: list[dict[str, str]] = []

    def variants() -> Iterator[NDArray[np.uint8]]:
        for index, image in enumerate(images):
            try:
                pixels = load_rgb(read_source(image.file, image.key), _LIMITS)
            except ImageRejected as error:
                rejects.append(_reject(image.file, error))
                continue
            asked.append((index, "own"))
            yield pixels
            for which, histories in lent.items():
                if histories[index].given:
                    asked.append((index, which))
                    yield recompress_jpeg(pixels, histories[index].quality)

    progress.start("scores", len(images))
    found: dict[int, dict[str, float]] = {}
    for number, prediction in enumerate(detector.stream(variants())):
        index, which = asked[number]
        if prediction.logit is None:
            raise UserError(f"{printable(images[index].file.location)}: {prediction.reason} ({prediction.detail}).")
        if which == "own":
            found[index] = dict.fromkeys(("own", *lent), prediction.logit)
            progress.advance("scores", 1)
        found[index][which] = prediction.logit
    if rejects:
        progress.advance("scores", len(rejects))
    return found, rejects


def _check_classes(images: Sequence[SwapImage], rejects: Sequence[dict[str, str]], dataset: str) -> NDArray[np.int64]:
    """Return the labels of the images. Raises UserError, with the first reject, unless both classes are there."""
    labels = np.array([image.file.label for image in images], dtype=np.int64)
    if len(set(labels.tolist())) < 2:
        first = (
            f" The first of {len(rejects):,} that cannot be used: {'; '.join(rejects[0].values())}." if rejects else ""
        )
        raise UserError(f"--swap: dataset {dataset} needs usable {TEST} images of both classes.{first}")
    return labels


def _reject(file: SourceFile, error: ImageRejected) -> dict[str, str]:
    return {"path": printable(file.location), "reason": error.reason, "detail": error.detail}


def _counted(images: Sequence[SwapImage]) -> tuple[ClassHistory, ...]:
    counts = Counter((image.file.label, image.history) for image in images)
    ordered = sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1]))
    return tuple(
        ClassHistory(label=label, history=str(history), images=number, given=history.given)
        for (label, history), number in ordered
    )


def _reason(share: float | None, moved: NDArray[np.bool_]) -> str:
    if share is not None:
        return ""
    if not moved.any():
        return "no file of either class is a JPEG with the usual tables, so there is no history to give to the other"
    return "the detector does not demonstrably tell these images apart"
