"""The audit of a dataset's cached images: whether their pixels reveal the label, and how far their subjects do.

``distil-cache audit --cache CACHE --dataset NAME`` stores it as ``datasets/NAME/image-….audit.json``, one file for each
feature of images. It is replaced by the next audit and is safe to delete. Evaluations copy it for the report.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from .audit import Check
from .parse import Area, Count, StoredRecord, parse_record

IMAGE_AUDIT = "image_audit.json"
"""Name of the copy in the folder of an evaluation."""


class ContentFold(StoredRecord):
    """One part of a content check that was held out: what it is, its images of each class, and the AUC on them."""

    held_out: str
    real: Count
    fake: Count
    auc: Area


class ContentCheck(StoredRecord):
    """How well the classes are told apart by what the images show. It is reported and not judged.

    Attributes
    ----------
    embedding
        What the linear classifier sees of an image.
    real, fake
        Images of each class that were drawn.
    across
        What is held out in turn: ``generators``, ``groups`` or ``images``.
    auc, interval
        Mean AUC over what was held out, and its 95 % interval; None if there is no verdict.
    folds
        What was held out.
    reason
        Why there is no verdict, or empty.
    sentence
        The result in words.
    """

    embedding: str
    real: Count
    fake: Count
    across: str
    auc: Area | None
    interval: tuple[Area, Area] | None
    folds: tuple[ContentFold, ...]
    reason: str
    sentence: str


class ImageAudit(StoredRecord):
    """What an audit found in the cached images of a revision.

    Attributes
    ----------
    version
        Version of this form.
    dataset, revision
        The images.
    fingerprint
        Of the feature ``image`` that was examined, 64 hex digits.
    size
        Side of the images in pixels.
    harmonize
        The compression that all of them got first, such as ``jpeg:95``; empty for none.
    real, fake
        Images of each class that were drawn.
    found
        Whether any check of the pixels found that the label is revealed.
    sentence
        The clearest finding, or empty.
    checks
        All comparisons.
    sizes
        Comparisons of the source files by what outlives ``harmonize``, such as their size; empty without files or without
        ``harmonize``.
    content
        How far the subjects of the images tell the classes; None if that was not asked for.
    not_checked
        What the audit did not look at, a sentence each.
    """

    version: Literal[1] = 1
    dataset: str
    revision: Annotated[str, Field(pattern=r"\A[0-9a-f]{16}\z")]
    fingerprint: Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
    size: Count
    harmonize: str
    real: Count
    fake: Count
    found: bool
    sentence: str
    checks: tuple[Check, ...]
    sizes: tuple[Check, ...] = ()
    content: ContentCheck | None
    not_checked: tuple[str, ...]

    def as_json(self) -> bytes:
        """Return the content of the file."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def parse_image_audit(data: bytes, name: str) -> ImageAudit:
    """Parse what :meth:`ImageAudit.as_json` wrote. Raises IntegrityError, naming the file, if it is not valid."""
    return parse_record(ImageAudit, data, name, "audit of images")
