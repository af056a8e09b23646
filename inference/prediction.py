"""What a detector says about one image or video, and how it is written: one JSON object, JSON lines or CSV."""

from __future__ import annotations

import csv
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from ..choices import FILE_FORMS, FileForm
from ..errors import UsageError, UserError
from ..storage.locks import try_lock
from ..storage.text import csv_cell, json_text

GENERATED, REAL = "generated", "real"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a video.

    Attributes
    ----------
    seconds : float or None
        Time in the video; None if unknown.
    score : float
        P(generated).
    logit : float
    explained : str or None
        File that explains the score.
    """

    seconds: float | None
    score: float
    logit: float
    explained: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    r"""The score of one image or video, or why there is none.

    Attributes
    ----------
    path : str
        Name of the input, printable: bytes that are not UTF-8 are written as ``\xNN``.
    kind : str
        ``image`` or ``video``.
    score : float or None
        P(generated), 0 to 1; for a video the mean over its frames.
    logit : float or None
        Output of the student for an image; the score is its sigmoid.
    generated : bool or None
        Whether the score is above the threshold; None without a score, or if verdicts are withheld.
    highest : float or None
        The highest score of a video's frames.
    frames : tuple of Frame
        Of a video.
    explained : str or None
        File that explains the verdict on an image.
    reason, detail : str or None
        Why there is no score: a reason of the scan, and details.
    """

    path: str
    kind: str
    score: float | None = None
    logit: float | None = None
    generated: bool | None = None
    highest: float | None = None
    frames: tuple[Frame, ...] = ()
    explained: str | None = None
    reason: str | None = None
    detail: str | None = None

    @property
    def verdict(self) -> str | None:
        """``generated``, ``real``, or None without a score and if verdicts are withheld."""
        return None if self.generated is None else GENERATED if self.generated else REAL

    def as_json(self) -> dict[str, Any]:
        """Return the prediction as plain values; except score and verdict, values that do not apply are left out."""
        found: dict[str, Any] = {"path": self.path, "kind": self.kind, "score": self.score, "verdict": self.verdict}
        for name in ("logit", "highest", "explained", "reason", "detail"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.frames:
            found["frames"] = [_frame(frame) for frame in self.frames]
        return found

    def as_rows(self) -> list[dict[str, Any]]:
        """Return the prediction as rows with the columns :data:`COLUMNS`: one, and another per frame."""
        whole = {name: value for name, value in self.as_json().items() if name != "frames"}
        return [whole, *({"path": self.path, "kind": "frame", **_frame(frame)} for frame in self.frames)]


COLUMNS = ("path", "kind", "seconds", "score", "highest", "logit", "verdict", "reason", "detail", "explained")
"""Columns of the CSV."""


def form_of(path: Path) -> FileForm:
    """Return the format of a file by its suffix. Raises UsageError for an unknown suffix."""
    for form in FILE_FORMS:
        if path.suffix.lower() == f".{form}":
            return form
    raise UsageError(f"--out {path}: its name must end with .json, .jsonl or .csv, which decides on the format.")


def line_writer(stream: TextIO, form: FileForm) -> Callable[[Prediction], None]:
    """Return a function that writes a prediction as a JSON line or as CSV rows. The CSV header is written at once."""
    if form == "jsonl":
        return lambda prediction: print(json_text(prediction.as_json()), file=stream, flush=True)
    table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    table.writeheader()

    def write(prediction: Prediction) -> None:
        table.writerows({name: csv_cell(value) for name, value in row.items()} for row in prediction.as_rows())
        stream.flush()

    return write


def write_object(stream: TextIO, result: dict[str, Any]) -> None:
    """Write the whole result as one JSON object."""
    print(json_text(result, indent=2), file=stream)


@contextmanager
def opened(path: Path, form: FileForm) -> Iterator[TextIO]:
    """Open a file for writing in UTF-8, before the work begins; an existing file is replaced.

    Lines are written to the file itself as they are made, so those of an interrupted run are kept. A JSON object is
    written to a temporary file, which replaces ``path`` when it is complete.

    Yields
    ------
    TextIO

    Raises
    ------
    UserError
        If the file cannot be written, or another command is writing lines to it.
    """
    target = path.with_name(f".tmp-{path.name}-{secrets.token_hex(8)}") if form == "json" else path
    try:
        with open(target, "w", encoding="utf-8", newline="", opener=_open_exclusively) as stream:
            yield stream
        target.replace(path)
    except OSError as error:
        if error.filename != str(target) and error.errno not in _FULL:
            raise
        raise UserError(f"--out {path}: cannot be written ({error.strerror}).") from error
    finally:
        if target != path:
            target.unlink(missing_ok=True)


def _frame(frame: Frame) -> dict[str, Any]:
    found = {"seconds": frame.seconds, "score": frame.score, "logit": frame.logit}
    return found if frame.explained is None else {**found, "explained": frame.explained}


def _open_exclusively(path: str, flags: int) -> int:
    """Open and lock a file, then truncate it, so that lines of another command that is writing it are kept."""
    handle = os.open(path, (flags & ~os.O_TRUNC) | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # file systems without locks
            if not try_lock(handle):
                raise UserError(
                    f"--out {path}: another command is writing it. Wait until it ends, or choose another file."
                )
        if stat.S_ISREG(os.fstat(handle).st_mode):
            os.ftruncate(handle, 0)
    except BaseException:
        os.close(handle)
        raise
    return handle
