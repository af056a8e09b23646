"""The command ``predict`` as a function: expand the arguments, score the files, write the predictions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from ..choices import LineForm
from ..models.device import keep_freed_memory
from ..pipeline.sources.file import printable
from ..progress import Progress
from .arguments import expand_arguments
from .detector import Detector
from .prediction import GENERATED, REAL, Prediction, form_of, line_writer, opened, write_object

KIND, VERSION = "distil-cache-predictions", 1


def run_predict(
    arguments: Sequence[str],
    load: Callable[[], Detector],
    progress: Progress,
    *,
    listed: BinaryIO | None = None,
    out: Path | None = None,
    lines: tuple[TextIO, LineForm] | None = None,
) -> dict[str, Any]:
    """Score the files that the arguments name, in their order.

    Parameters
    ----------
    arguments : sequence of str
        Files, folders, patterns, URLs, and ``-`` for the list in ``listed``.
    load : callable
        Loads the detector; called once the arguments have been expanded.
    progress : Progress
    listed : BinaryIO, optional
        List of names that ``-`` stands for.
    out : Path, optional
        File to write; its suffix decides on the format.
    lines : tuple of TextIO and str, optional
        Stream and format for predictions as they are made.

    Returns
    -------
    dict
        The result as plain values.

    Raises
    ------
    UsageError, UserError
        As :func:`.arguments.expand_arguments`, ``load`` and :meth:`.detector.Detector.stream`, and if a file cannot be
        written.
    """
    began = time.monotonic()
    form = form_of(out) if out else None
    files = expand_arguments(arguments, listed)
    detector = load()
    keep_freed_memory(detector.device)
    predictions: list[Prediction] = []
    with ExitStack() as held:
        writers = [line_writer(*lines)] if lines else []
        file = held.enter_context(opened(out, form)) if out and form else None
        if file and form and form != "json":
            writers.append(line_writer(file, form))
        progress.start("predict", len(files))
        for prediction in detector.stream(files):
            for write in writers:
                write(prediction)
            predictions.append(prediction)
            progress.advance("predict", 1)
        result = _result(detector, predictions, time.monotonic() - began)
        if file and form == "json":
            write_object(file, result)
    return result


def _result(detector: Detector, predictions: Sequence[Prediction], seconds: float) -> dict[str, Any]:
    record, maker = detector.record, detector.maker
    verdicts = Counter(prediction.verdict for prediction in predictions)
    withheld = sum(prediction.score is not None and prediction.verdict is None for prediction in predictions)
    return {
        "kind": KIND,
        "version": VERSION,
        "run": record.run,
        "method": record.method.name,
        "preset": record.method.preset,
        "trained_on": [one.dataset for one in record.trained_on if one.dataset],
        "imported": record.imported and {name: printable(text) for name, text in record.imported.items()},
        "threshold": detector.threshold.value,
        "threshold_from": detector.threshold.origin,
        "transform": detector.options.transform,
        "device": str(detector.device),
        "adm": maker.adm_file and {"name": printable(maker.adm_file.name), "digest": maker.adm_file.identity.weights},
        "features": {name: spec.fingerprint() for name, spec in maker.specs.items()},
        "adm_calls_per_image": maker.calls,
        "notes": list(detector.notes),
        "counts": {
            "files": len(predictions),
            GENERATED: verdicts[GENERATED],
            REAL: verdicts[REAL],
            **({"withheld": withheld} if withheld else {}),
            "set_aside": verdicts[None] - withheld,
        },
        "seconds": round(seconds, 3),
        "predictions": [prediction.as_json() for prediction in predictions],
    }
