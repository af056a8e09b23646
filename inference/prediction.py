"""What a detector says about one image or video, as an object and as plain values for JSON and CSV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

GENERATED, REAL = "generated", "real"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a video: its place in seconds (None if unknown), P(generated) and its logit, the picture that explains it."""

    seconds: float | None
    score: float
    logit: float
    explained: str | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    r"""One verdict, or why there is none.

    path : what was looked at, printable: bytes of a file's name that are no UTF-8 are written as ``\xNN``.
    kind : ``image`` or ``video``.
    score : P(generated), 0 to 1; of a video the mean over its frames. highest : of a video, the frame with the highest.
    logit : of an image, the student's output; the score is its sigmoid.
    generated : whether the score is above the threshold.
    reason, detail : why there is no score: a code of the scan's, and a few words.
    explained : file of the pictures that explain the verdict on an image.
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
        """``generated``, ``real``, or None where there is no score."""
        return None if self.generated is None else GENERATED if self.generated else REAL

    def as_json(self) -> dict[str, Any]:
        """The prediction as plain values; what does not apply is left out, but for the score and the verdict."""
        found: dict[str, Any] = {"path": self.path, "kind": self.kind, "score": self.score, "verdict": self.verdict}
        for name in ("logit", "highest", "explained", "reason", "detail"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.frames:
            found["frames"] = [_frame(frame) for frame in self.frames]
        return found

    def as_rows(self) -> list[dict[str, Any]]:
        """The prediction as rows of a table with the columns of :data:`COLUMNS`: one, and one more for each frame."""
        whole = {name: value for name, value in self.as_json().items() if name != "frames"}
        return [whole, *({"path": self.path, "kind": "frame", **_frame(frame)} for frame in self.frames)]


COLUMNS = ("path", "kind", "seconds", "score", "highest", "logit", "verdict", "reason", "detail", "explained")
"""Columns of the CSV."""


def _frame(frame: Frame) -> dict[str, Any]:
    found = {"seconds": frame.seconds, "score": frame.score, "logit": frame.logit}
    return found if frame.explained is None else {**found, "explained": frame.explained}
