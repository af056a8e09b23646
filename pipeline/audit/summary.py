"""The header audit of a build: a sample of headers, from what the scan has read.

It opens no file. The result is stored with the dataset's revision, so a build that changes nothing audits nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ...cache.records.audit import Carrier, Check, ContentFeature, HeaderAudit
from ..scan.rows import RowTable, ScannedRow
from .checks import AuditRow, choose_evenly_of_table, header_checks, judge_content_features
from .header_features import row_facts

SUMMARY_SAMPLE = 500
"""Largest number of files of each label whose headers a build judges."""


def summarise(rows: Iterable[ScannedRow]) -> HeaderAudit | None:
    """Audit the headers of scanned files by split and by generator; return None for rows that were not scanned."""
    rows = RowTable.of(rows)
    if not rows.all_have_traits():
        return None
    chosen = choose_evenly_of_table(rows, SUMMARY_SAMPLE)
    first = rows.first_of_keys([row.key for row in chosen])
    judged = [
        AuditRow(row.file, row.key, facts, first[row.key]) for row in chosen if (facts := row_facts(row)) is not None
    ]
    checks = tuple(Check.model_validate(check) for check in header_checks(judged))
    fake = sum(count for kind, count in rows.counts().items() if kind.label)
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
    """Return the warning of a build: the finding, and what to do about it. Empty without a finding.

    Parameters
    ----------
    audit
        Header audit of the dataset.
    harmonize
        The build's ``--harmonize`` option.
    """
    if not audit.found:
        return ""
    if harmonize is not None:
        advice = (
            f"--harmonize {harmonize} compresses all images alike, but their sizes and earlier compression "
            "may still show. `distil-cache audit --cache CACHE --dataset NAME` says what remains in the cached images."
        )
    else:
        advice = (
            "Compress all images alike with --harmonize jpeg:95, and run `distil-cache audit` to see what "
            "else tells them apart."
        )
    return f"{audit.sentence} {advice}"


def _sentence(checks: Sequence[Check]) -> str:
    """Return a sentence for the first finding; the check of all images comes first."""
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
