"""What the audits found in the source files and in the cached images of the evaluated data.

Builds and ``distil-cache audit`` made these audits, and the evaluations copied them; the report only shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...cache.records.audit import Check
from ...cache.records.image_audit import ContentCheck
from ..audited import AuditedData, audited_data, shortcut_words
from ..inputs.runs import Run
from ..layout.page import Addition, Section
from ..layout.tables import Table
from ..wording import MISSING


def data_audits(runs: Sequence[Run], _clusters: Mapping[str, str] | None) -> Addition | None:
    """Show the audits of all evaluated datasets.

    Returns
    -------
    Addition or None
        A section with a table, and the audits as plain values; None if no evaluation has an audit.
    """
    data = audited_data(runs)
    if not data:
        return None
    table = Table(
        "AUC of a classifier that sees only the header of an image's file, the traces of its processing in the cached "
        "pixels, or its subject; 0.5 is chance.",
        ["dataset, images", "examined", "the label is", "real", "generated", "AUC"],
        [row for one in data for row in _rows(one)],
        "Cross-validated AUC, and below it the interval. The intervals of the checks of files hold jointly with 95 % "
        "confidence, and so do those of cached images. Subject matter is reported and not judged.",
        numeric_from=3,
    )
    content = [
        {
            "dataset": one.dataset,
            "revision": one.revision,
            "harmonize": one.harmonization,
            **({} if one.headers is None else one.headers.model_dump(mode="json")),
            "images": None if one.images is None else one.images.model_dump(mode="json"),
        }
        for one in data
    ]
    return Addition("audit", [Section("Does the file give the label away?", _text(data, runs), table)], content)


def _text(data: Sequence[AuditedData], runs: Sequence[Run]) -> str:
    answer, sentences = shortcut_words(runs)
    paragraphs = [f"{answer}.", *sentences]
    if any(one.given_away for one in data):
        paragraphs.append("Figures of a detector that uses such a shortcut say little about other images.")
    paragraphs += [
        f"What remains in the images of {one.dataset} is examined by: {one.audit_command}"
        for one in data
        if one.images is None
    ]
    for one in data:
        if one.images is not None:
            paragraphs.append(f"Not checked in {one.dataset}: {' '.join(one.images.not_checked)}")
    return "\n\n".join(paragraphs)


def _rows(one: AuditedData) -> list[list[str]]:
    title = one.dataset if not one.harmonization else f"{one.dataset} ({one.harmonization})"
    rows = [_row(title, "source files", check) for check in (one.headers.checks if one.headers else ())]
    if one.images is not None:
        rows += [_row(title, "source files", check) for check in one.images.sizes]
        rows += [_row(title, "cached images", check) for check in one.images.checks]
        rows += [_content_row(title, one.images.content)] if one.images.content else []
    return rows


def _row(title: str, examined: str, check: Check) -> list[str]:
    verdict = check.reason
    if check.auc is not None:
        verdict = (
            "\n".join(["given away", *(one.words for one in check.carried_by)]) if check.found else "not given away"
        )
    cells = _area(check.auc, check.interval)
    return [
        f"{title}, {check.part}",
        f"{examined}: {check.features}",
        verdict,
        f"{check.real:,}",
        f"{check.fake:,}",
        cells,
    ]


def _content_row(title: str, content: ContentCheck) -> list[str]:
    counts = (f"{content.real:,}", f"{content.fake:,}")
    return [
        f"{title}, all",
        "cached images: subject matter",
        content.reason or "not judged",
        *counts,
        _area(content.auc, content.interval),
    ]


def _area(area: float | None, interval: tuple[float, float] | None) -> str:
    if area is None or interval is None:
        return MISSING
    return f"{area:.2f}\n{interval[0]:.2f} to {interval[1]:.2f}"
