"""The audit of a revision: whether the headers of its source files reveal the label.

It is stored as ``datasets/NAME/REVISION.audit.json``. The build writes it once. Evaluations copy it, so that a report
can show it when the cache and the sources are gone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import FailFast

from .parse import Area, Count, StoredRecord, parse_record

AUDIT = "audit.json"
"""Name of the copy in the folder of an evaluation."""
MOST_BYTES = 2**24
"""Largest audit file that is read."""


class Carrier(StoredRecord):
    """A feature that reveals the label.

    Attributes
    ----------
    feature
        Its name.
    auc
        The AUC that it reaches alone, 0 to 1.
    words
        A description of its values in each class.
    """

    feature: str
    auc: Area
    words: str


class Check(StoredRecord):
    """One comparison of real and generated images.

    Attributes
    ----------
    part
        ``all``, ``split NAME`` or ``generator NAME``.
    features
        The features that were judged, here ``headers``.
    real, fake
        Number of files of each class.
    auc, interval
        Cross-validated AUC and its confidence interval; None if there is no verdict.
    level
        Confidence level of the interval, 0 to 1.
    found
        Whether the label is revealed.
    reason
        Why there is no verdict, or empty.
    carried_by
        The features that reveal the label, the clearest first.
    """

    part: str
    features: str
    real: Count
    fake: Count
    auc: Area | None
    interval: tuple[Area, Area] | None
    level: Area
    found: bool
    reason: str
    carried_by: Annotated[tuple[Carrier, ...], FailFast()]


class ContentFeature(StoredRecord):
    """A feature that also depends on the content of the images, so it is reported and not judged.

    Attributes
    ----------
    feature
        Its name.
    auc, interval
        Its AUC, 0 to 1, and confidence interval.
    words
        A description of its values in each class.
    """

    feature: str
    auc: Area
    interval: tuple[Area, Area]
    words: str


class HeaderAudit(StoredRecord):
    """What a build found in the headers of a revision's files.

    Attributes
    ----------
    version
        Version of this form.
    real, fake
        Files of each class in the revision.
    sample
        Most files of each class that were judged.
    found
        Whether any check found that the label is revealed.
    sentence
        The clearest finding, or empty.
    checks
        All comparisons.
    told
        The features that are reported and not judged.
    """

    version: Literal[1] = 1
    real: Count
    fake: Count
    sample: Count
    found: bool
    sentence: str
    checks: Annotated[tuple[Check, ...], FailFast()]
    told: Annotated[tuple[ContentFeature, ...], FailFast()]

    def as_json(self) -> bytes:
        """Return the content of the file."""
        return self.model_dump_json(indent=2).encode() + b"\n"

    def within(self, most_bytes: int) -> HeaderAudit:
        """Return the audit with so few comparisons listed, the clearest first, that its JSON has at most so many bytes."""
        clearest = sorted(self.checks, key=lambda check: (not check.found, check.auc is None))
        listed, shorter = len(clearest), self
        while len(shorter.as_json()) > most_bytes and listed > 1:
            listed //= 2
            shorter = self.model_copy(update={"checks": (*clearest[:listed], _sum_of(clearest[listed:]))})
        return shorter


def _sum_of(checks: list[Check]) -> Check:
    """Return one comparison that stands for several that are too many to list."""
    return Check(
        part=f"{len(checks):,} other parts", features=checks[0].features, real=sum(check.real for check in checks),
        fake=sum(check.fake for check in checks), auc=None, interval=None, level=checks[0].level,
        found=any(check.found for check in checks), reason="these parts are too many to list", carried_by=(),
    )  # fmt: skip


def parse_audit(data: bytes, name: str) -> HeaderAudit:
    """Parse what :meth:`HeaderAudit.as_json` wrote.

    Parameters
    ----------
    data
        The content of the file.
    name
        The file's name, for the message.

    Raises
    ------
    IntegrityError
        If it is not a valid audit.
    """
    return parse_record(HeaderAudit, data, name, "audit")
