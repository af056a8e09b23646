"""The first half of a build, which writes nothing of value: sources, scan, specs, and the plan against the cache."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from ..cache.index import Index
from ..cache.lease import lease
from ..cache.spec import Spec
from ..cache.store import Cache, FeatureStore
from ..errors import ReadOnlyError, UserError
from ..models.backbones import load_teacher
from ..models.device import choose_device
from ..progress import Progress, counter
from .adm_weights import find_adm
from .config import BuildConfig
from .device import set_precision
from .plan import Plan, Samples, make_plan
from .scan import ScanResult, scan
from .schedule import Schedule, respace
from .sources import SourceFile, discover
from .spec_sheet import make_specs
from .wanted import parse_features, wanted_features


@dataclass(frozen=True)
class Prepared:
    """All that is known before anything is computed.

    cache is None only for the dry run of a build into a cache that does not exist yet; stores lacks the features whose
    folder a dry run did not find.
    """

    cache: Cache | None
    device: torch.device
    schedule: Schedule
    scanned: ScanResult
    wanted: Mapping[str, frozenset[str]]
    specs: Mapping[str, Spec]
    stores: Mapping[str, FeatureStore]
    plan: Plan


def prepare(config: BuildConfig, progress: Progress, held: ExitStack, *, dry_run: bool) -> Prepared:
    """Check the arguments against each other and the cache, scan the sources and make the plan.

    held : gets the lease on the features, taken before anybody looks what the cache has of them.
    Raises UserError or UsageError for whatever cannot be used. A dry run makes neither a cache nor a feature's folder.
    """
    device = choose_device(config.device)
    set_precision(config.precision, device)
    lists = parse_features(config.features)
    files = _discover(config)
    adm = find_adm(config.adm, config.adm_config, progress=counter(progress, f"download {config.adm}"))
    schedule = respace(config.steps, noise_schedule=adm.config.noise_schedule, steps=adm.config.diffusion_steps)
    cache = None if dry_run and not (config.cache / "cache.json").exists() else Cache.create(config.cache)
    scanned = _scan(config, cache, files, progress)
    if not scanned.rows:
        first = scanned.rejects[0]
        raise UserError(
            f"{config.dataset}: none of the {len(scanned.rejects):,} images can be used "
            f"(the first, {first.path}: {first.reason}, {first.detail})."
        )
    wanted = wanted_features(lists, (row.file.split for row in scanned.rows))
    digest = None
    if "teacher" in wanted:
        digest = load_teacher(
            config.teacher, config.teacher_weights, counter(progress, f"download {config.teacher}")
        ).digest
    specs = make_specs(config, adm, wanted, digest)
    may_write = True
    if cache is not None and not dry_run:
        folders = [spec.folder for spec in specs.values()]
        may_write = held.enter_context(lease(cache.root, "build", folders, config.dataset)).exists()
    stores = _stores(cache, specs, config.format, create=not dry_run)
    indexes = {feature: stores[feature].index() if feature in stores else Index.empty() for feature in wanted}
    samples = Samples.of([row.key for row in scanned.rows], [row.file.split for row in scanned.rows])
    plan = make_plan(samples, wanted, indexes, config.shard_size)
    if plan.tasks and not may_write:
        raise ReadOnlyError(
            f"{config.cache}: may only be read, and this build has something to add. "
            "Get the right to write there, or use another folder."
        )
    return Prepared(cache, device, schedule, scanned, wanted, specs, stores, plan)


def _discover(config: BuildConfig) -> list[SourceFile]:
    return [file for source in config.sources for file in discover(source, config.layout).files]


def _scan(config: BuildConfig, cache: Cache | None, files: list[SourceFile], progress: Progress) -> ScanResult:
    return scan(
        files,
        memory=cache.datasets().scan_file(config.dataset) if cache else None,
        workers=config.workers,
        min_side=config.min_side,
        max_pixels=config.max_pixels,
        rehash=config.rehash,
        progress=counter(progress, "scan"),
    )


def _stores(cache: Cache | None, specs: Mapping[str, Spec], form: str, *, create: bool) -> dict[str, FeatureStore]:
    if cache is None:
        return {}
    there = {folder.name for folder in cache.feature_folders()}
    return {feature: cache.feature(spec, form) for feature, spec in specs.items() if create or spec.folder in there}
