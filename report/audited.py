"""What the audits that runs carry say of the data that they were evaluated on: of the source files and of the images.

A detector never sees a file: it sees what a build made of it. So after a common compression (``--harmonize``) a finding in
the files is told as what was taken away, and what counts is the audit of the cached images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..cache.records.audit import Check, HeaderAudit
from ..cache.records.image_audit import ImageAudit
from .inputs.runs import Run
from .wording import command_line, harmonization_sentence, listed


@dataclass(frozen=True)
class AuditedData:
    """Data that a run was evaluated on.

    Attributes
    ----------
    dataset, revision : str
        Of a derived dataset, those of its origin.
    harmonization : str or None
        The compression that all images got first; empty for none, None if not known.
    headers : HeaderAudit or None
        Of the source files, by the build.
    images : ImageAudit or None
        Of the cached images.
    run : Run
        One that was evaluated on them.
    """

    dataset: str
    revision: str
    harmonization: str | None
    headers: HeaderAudit | None
    images: ImageAudit | None
    run: Run

    @property
    def files_differ(self) -> bool:
        """Whether the headers of the source files give the label away."""
        return self.headers is not None and self.headers.found

    @property
    def given_away(self) -> bool:
        """Whether the label is known to be given away in what a detector sees."""
        in_images = self.images is not None and self.images.found
        return in_images or self.size_found is not None or (self.files_differ and not self.harmonization)

    @property
    def size_found(self) -> Check | None:
        """The first finding in what outlives a compression of all images, such as the sizes of the files."""
        return next((check for check in (self.images.sizes if self.images else ()) if check.found), None)

    @property
    def unexamined(self) -> bool:
        """Whether files differ, all images were compressed alike, and what remains was not examined."""
        return self.files_differ and bool(self.harmonization) and self.images is None

    @property
    def audit_command(self) -> str:
        """The command that audits the cached images."""
        return command_line("audit", "--cache", str(self.run.get("cache") or "CACHE"), "--dataset", self.dataset)


def audited_data(runs: Sequence[Run]) -> list[AuditedData]:
    """Return what runs were evaluated on, once for each dataset, revision and harmonization, sorted."""
    found: dict[tuple[str, str, str], AuditedData] = {}
    for run in runs:
        for evaluation in run.evaluations:
            source = evaluation.info.get("origin") or evaluation.info
            key = (str(source["dataset"]), str(source["revision"]), run.harmonization or "")
            images = None if evaluation.info.get("origin") else evaluation.image_audit
            known = found.get(key)
            if (evaluation.audit or images) and (known is None or (known.images is None and images is not None)):
                found[key] = AuditedData(*key[:2], run.harmonization, evaluation.audit, images, run)
    return [one for _, one in sorted(found.items())]


def shortcut_words(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """Say in a few words whether the label is given away, and in sentences what the audits found."""
    data = audited_data(runs)
    if not data:
        return "Not examined", []
    heads = [
        (
            [one.dataset for one in data if one.given_away and not one.harmonization],
            "The files of {} give the label away",
        ),
        (
            [one.dataset for one in data if one.images and one.images.found and one.harmonization],
            "The cached images of {} give the label away, although they were compressed alike",
        ),
        (
            [one.dataset for one in data if one.size_found and not (one.images and one.images.found)],
            "The sizes of the files of {} give the label away, although the images were compressed alike",
        ),
        (
            [one.dataset for one in data if one.unexamined],
            "The files of {} differ; all images were compressed alike, and what remains was not examined",
        ),
        (
            [one.dataset for one in data if one.files_differ and not (one.given_away or one.unexamined)],
            "The files of {} differ; in the images, compressed alike, the checks of pixels found no sign",
        ),
    ]
    said = [words.format(listed(list(dict.fromkeys(names)))) for names, words in heads if names]
    if not said:
        where = ["file headers"] if any(one.headers for one in data) else []
        where += ["cached pixels"] if all(one.images for one in data) else []
        said.append(f"None found in {listed(where)}")
    said += _subjects(data)
    answer = "; ".join([said[0], *(words[0].lower() + words[1:] for words in said[1:])])
    return answer, [sentence for one in data for sentence in _sentences(one)]


def _subjects(data: Sequence[AuditedData]) -> list[str]:
    """Say how far subject matter tells the classes where that is more than chance; nothing if it is not known."""
    checks = [one.images.content for one in data if one.images is not None and one.images.content is not None]
    areas = [check.auc for check in checks if check.auc is not None and check.interval and check.interval[0] > 0.5]
    if not areas:
        return []
    return [f"Subject matter alone reaches an AUC of {'up to ' if len(areas) > 1 else ''}{max(areas):.2f}"]


def _sentences(one: AuditedData) -> list[str]:
    if one.headers is None:
        found = [f"The file headers of {one.dataset} were not examined."]
    elif one.headers.found:
        found = [f"{one.dataset}: {one.headers.sentence}", *_consequence(one)]
    else:
        found = [f"None in the file headers of {one.dataset}."]
    if one.images is None:
        return [*found, "Traces in the pixels and the images' subjects were not examined."]
    judged = sum(check.auc is not None for check in one.images.checks)
    found.append(
        one.images.sentence
        or f"The cached images show no sign in {judged:,} {'check' if judged == 1 else 'checks'} of their pixels."
    )
    if one.size_found and one.size_found.auc is not None:
        by = "".join(f", by {carrier.words}" for carrier in one.size_found.carried_by[:1])
        found.append(
            f"The sizes of the source files tell the classes with an AUC of {one.size_found.auc:.2f}{by}; resizing may leave "
            "traces of them that these checks do not see."
        )
    return [*found, *([one.images.content.sentence] if one.images.content else [])]


def _consequence(one: AuditedData) -> list[str]:
    """Say what a finding in the files means for a detector."""
    if not one.harmonization or one.images is None:
        return [harmonization_sentence([one.run])]
    return [
        f"That is of the source files: the build compressed all images alike (--harmonize {one.harmonization}), which takes "
        "formats, compression settings and metadata out of what a detector sees."
    ]
