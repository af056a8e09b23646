"""The audit of a revision: whether the headers of its source files gave the label away, ``datasets/NAME/REVISION.audit.json``.

The build judges and writes it once; evaluations copy it, so that a report can repeat it when cache and sources are gone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ...errors import IntegrityError

AUDIT = "audit.json"
"""Name of the copy in an evaluation's folder."""
MOST_BYTES = 2**24
"""Longest file that is read as an audit."""

Area = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Carrier(_Record):
    """One feature that tells the label, the AUC that it reaches alone, and what it is in each class, in words."""

    feature: str
    auc: Area
    words: str


class Check(_Record):
    """One comparison of real and generated images.

    part : ``all``, ``split NAME`` or ``generator NAME``. features : what is judged, here ``headers``.
    auc, interval : cross-validated, and its interval at ``level``; None where ``reason`` says why there is no verdict.
    found : the label is given away. carried_by : by what, if so, the clearest first.
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
    carried_by: tuple[Carrier, ...]


class ContentFeature(_Record):
    """A feature that depends on the content too, and so is told and not judged."""

    feature: str
    auc: Area
    interval: tuple[Area, Area]
    words: str


class HeaderAudit(_Record):
    """What a build found in the headers of a revision's files.

    real, fake : files of the revision. sample : most files of each class that were judged.
    sentence : the clearest finding; empty if there is none.
    """

    version: Literal[1] = 1
    real: Count
    fake: Count
    sample: Count
    found: bool
    sentence: str
    checks: tuple[Check, ...]
    told: tuple[ContentFeature, ...]

    def as_json(self) -> bytes:
        """Return the bytes of the file."""
        return self.model_dump_json(indent=2).encode() + b"\n"


def parse_audit(data: bytes, name: str) -> HeaderAudit:
    """Read what :meth:`HeaderAudit.as_json` wrote; ``name`` of the file, for the IntegrityError about anything else."""
    try:
        return HeaderAudit.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise IntegrityError(
            f"{name}: is no audit ({where}: {first['msg'].lower()}), so the file is damaged."
        ) from error
