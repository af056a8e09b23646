"""The cheap part of an audit, as a build does it: headers alone, of a sample, from what the scan gathered.

No file is opened for it. Its verdict is kept with the dataset's revision, so a build that changes nothing judges nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...cache.records.audit import Carrier, Check, ContentFeature, HeaderAudit
from ..scan.conflicts import ScannedRow
from .checks import AuditRow, choose_evenly, header_checks, judge_content_features
from .header_features import row_facts

SUMMARY_SAMPLE = 500
"""Most files of each label whose headers a build judges."""


def summarise(rows: Sequence[ScannedRow]) -> HeaderAudit | None:
    """Judge the headers of scanned files by split and by generator; None for rows that were not scanned."""
    if not all(row.traits for row in rows):
        return None
    numbers = {key: number for number, key in enumerate(dict.fromkeys(row.key for row in rows))}
    places = choose_evenly([row.file for row in rows], [row.key for row in rows], SUMMARY_SAMPLE)
    judged = [
        AuditRow(rows[place].file, rows[place].key, facts, numbers[rows[place].key])
        for place in places
        if (facts := row_facts(rows[place])) is not None
    ]
    checks = tuple(Check.model_validate(check) for check in header_checks(judged))
    fake = sum(row.file.label for row in rows)
    return HeaderAudit(
        real=len(rows) - fake,
        fake=fake,
        sample=SUMMARY_SAMPLE,
        found=any(check.found for check in checks),
        sentence=_sentence(checks),
        checks=checks,
        told=tuple(ContentFeature.model_validate(entry) for entry in judge_content_features(judged)),
    )


def audit_result(audit: HeaderAudit | None, harmonize: str | None) -> dict[str, Any] | None:
    """Return an audit as plain values for the result of a build, with its ``warning``."""
    return None if audit is None else {**audit.model_dump(mode="json"), "warning": warning(audit, harmonize)}


def warning(audit: HeaderAudit, harmonize: str | None) -> str:
    """Return what a build warns of: what is found, and what to do. Empty if nothing is found.

    harmonize : what the build does about it, as ``--harmonize`` says it.
    """
    if not audit.found:
        return ""
    if harmonize is not None:
        todo = (
            f"--harmonize {harmonize} puts one compression over all images, but their sizes and earlier compression "
            "may still show; `distil-cache audit` says what else tells them apart."
        )
    else:
        todo = (
            "Put one compression over all images with --harmonize jpeg:95, and see with `distil-cache audit` what "
            "else tells them apart."
        )
    return f"{audit.sentence} {todo}"


def _sentence(checks: Sequence[Check]) -> str:
    """Say what the first finding over the most images is; the check of all images comes first."""
    for check in checks:
        if check.found and check.interval is not None:
            carriers: Sequence[Carrier] = check.carried_by[:1]
            by = "".join(f", by {carrier.words}" for carrier in carriers)
            where = "" if check.part == "all" else f" ({check.part})"
            low, high = check.interval
            return (
                f"Real and generated images{where} can be told apart by their files' headers alone, with an AUC of "
                f"{check.auc:.2f} ({low:.2f} to {high:.2f}){by}."
            )
    return ""
