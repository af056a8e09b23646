"""What the builds found in the file headers of the evaluated images: whether a file alone gives its label away.

The builds made these audits and the evaluations copied them; the report only shows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...cache.records.audit import Check, HeaderAudit
from ..inputs.runs import Run
from ..layout.page import Addition, Section
from ..layout.tables import Table
from ..wording import MISSING, harmonization_sentence

_Audits = Mapping[tuple[str, str], HeaderAudit]


def header_audits(runs: Sequence[Run], _clusters: Mapping[str, str] | None) -> Addition | None:
    """Show the header audits of all evaluated datasets.

    Returns
    -------
    Addition or None
        A section with a table, and the audits as plain values; None if no evaluation has an audit.
    """
    audits = audits_of(runs)
    if not audits:
        return None
    table = Table(
        "AUC of a classifier that sees only the header of an image's file; 0.5 is chance.",
        ["dataset, images", "the label is", "real", "generated", "AUC"],
        [_row(dataset, check) for (dataset, _), audit in audits.items() for check in audit.checks],
        "Cross-validated AUC, and below it the interval; all intervals of an audit hold jointly with 95 % confidence.",
        numeric_from=2,
    )
    content = [
        {"dataset": dataset, "revision": revision, **audit.model_dump(mode="json")}
        for (dataset, revision), audit in audits.items()
    ]
    return Addition("audit", [Section("Does the file give the label away?", _text(audits, runs), table)], content)


def audits_of(runs: Sequence[Run]) -> _Audits:
    """Return the audits by dataset and revision; a derived dataset counts as the one that it was derived from."""
    found = {}
    for run in runs:
        for evaluation in run.evaluations:
            source = evaluation.info.get("origin") or evaluation.info
            if evaluation.audit is not None:
                found[str(source["dataset"]), str(source["revision"])] = evaluation.audit
    return dict(sorted(found.items()))


def _text(audits: _Audits, runs: Sequence[Run]) -> str:
    given_away = {key: audit for key, audit in audits.items() if audit.found}
    if not given_away:
        return (
            "No: in none of these datasets can format, compression, size or metadata of the files tell real from generated "
            "images. This check does not examine traces in the pixels; `distil-cache audit` does."
        )
    paragraphs = [
        f"{dataset} (revision {revision}): {audit.sentence}" for (dataset, revision), audit in given_away.items()
    ]
    consequence = (
        f"{harmonization_sentence(runs)} Figures of a detector that does so say little about other images. "
        "`distil-cache audit` searches for further shortcuts."
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
