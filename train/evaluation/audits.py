"""The audits that evaluations carry, so that a report can show them when cache and sources are gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...cache.records.audit import HeaderAudit
from ...cache.records.builds import BuildRecord
from ...cache.records.image_audit import IMAGE_AUDIT, ImageAudit
from ...cache.store import Cache
from ...errors import DistilCacheError
from ...storage.atomic import replace_with
from ...storage.json_record import read_record
from ..runs.forms import RUN_FORM, own_file, read_evaluation, runs_of


def header_audit(cache: Cache, build: BuildRecord) -> HeaderAudit | None:
    """Return the header audit of a dataset's build; of a derived dataset, that of its origin."""
    source = build.origin or build
    return cache.datasets().audit(source.dataset, source.revision)


def image_audit(cache: Cache, build: BuildRecord) -> ImageAudit | None:
    """Return the audit of a build's cached images, or None if there is none."""
    built = build.features.get("image")
    return None if built is None else cache.datasets().image_audit(build.dataset, build.revision, built.fingerprint)


def renew_image_audits(folders: Sequence[Path]) -> None:
    """Copy the audits of cached images that were made since runs were evaluated into their evaluations.

    Parameters
    ----------
    folders
        Run folders, or folders of sweeps.
    """
    for run in (run for folder in folders for run in runs_of(folder)):
        try:
            record = read_record(own_file(run / "config.json"), RUN_FORM, "the record of a run", "")
            if not record.cache:
                continue
            cache = Cache.open(record.cache)
            builds = cache.builds()
            known = set(builds.ids())
            for folder in sorted(run.glob("evaluations/*")):
                build = read_evaluation(folder).get("build")
                inside = folder.resolve().is_relative_to(run.resolve())  # nothing is written where a link leads
                if inside and build in known:
                    _renew(folder / IMAGE_AUDIT, image_audit(cache, builds.read(build)))
        except (DistilCacheError, OSError):
            continue  # the report says what it does not know: a moved cache or a run that may only be read is no reason


def _renew(path: Path, audit: ImageAudit | None) -> None:
    if audit is None:
        return
    content = audit.as_json()
    if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
        replace_with(path, lambda file: file.write(content))
