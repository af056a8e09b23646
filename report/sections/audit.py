"""What the builds found in the headers of the evaluated images: whether a file alone gives its label away.

Nothing is judged here: the audits were made by builds and copied by evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...cache.records.audit import Check, HeaderAudit
from ..inputs.runs import Run
from ..layout.section import Addition, Section
from ..layout.tables import Table
from ..wording.labels import MISSING

Audits = Mapping[tuple[str, str], HeaderAudit]


def header_audits(runs: Sequence[Run], _clusters: Mapping[str, str] | None) -> Addition | None:
    """Return a table and the values of the audits of all evaluated datasets; None if no evaluation has one."""
    audits = _audits(runs)
    if not audits:
        return None
    table = Table(
        "AUC of a classifier that sees nothing of an image but its file's header; 0.5 is chance.",
        ["dataset, images", "the label is", "real", "generated", "AUC"],
        [_row(dataset, check) for (dataset, _), audit in audits.items() for check in audit.checks],
        "Cross-validated; below, the interval, in which all intervals of an audit hold together with 95 %.",
        numeric_from=2,
    )
    content = [
        {"dataset": dataset, "revision": revision, **audit.model_dump(mode="json")}
        for (dataset, revision), audit in audits.items()
    ]
    return Addition("audit", [Section("Does the file give the label away?", _text(audits), table)], content)


def _audits(runs: Sequence[Run]) -> Audits:
    """Return the audits by dataset and revision, those of a derived dataset under its origin's."""
    found = {}
    for run in runs:
        for evaluation in run.evaluations:
            source = evaluation.info.get("origin") or evaluation.info
            if evaluation.audit is not None:
                found[str(source["dataset"]), str(source["revision"])] = evaluation.audit
    return dict(sorted(found.items()))


def _text(audits: Audits) -> str:
    given_away = {key: audit for key, audit in audits.items() if audit.found}
    if not given_away:
        return (
            "No: in none of these datasets do format, compression, size or metadata of the files tell real from generated "
            "images. Traces in the pixels are not part of this check; `distil-cache audit` looks for them."
        )
    paragraphs = [
        f"{dataset} (revision {revision}): {audit.sentence}" for (dataset, revision), audit in given_away.items()
    ]
    consequence = (
        "A detector of these images can be right without looking at what they show, and its figures above say little about "
        "other images, unless the build put one compression over all pictures (--harmonize). "
        "`distil-cache audit` looks for what else tells them apart."
    )
    return "\n\n".join([*paragraphs, consequence])


def _row(dataset: str, check: Check) -> list[str]:
    area, verdict = MISSING, check.reason
    if check.auc is not None and check.interval is not None:
        area = f"{check.auc:.2f}\n{check.interval[0]:.2f} to {check.interval[1]:.2f}"
        verdict = (
            "\n".join(["given away", *(one.words for one in check.carried_by)]) if check.found else "not given away"
        )
    return [f"{dataset}, {check.part}", verdict, f"{check.real:,}", f"{check.fake:,}", area]
