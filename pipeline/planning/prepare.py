"""The first half of a build, which writes nothing of value: sources, scan, specs, and the plan against the cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from ...cache.index.index import Index
from ...cache.lease import lease
from ...cache.records.builds import Derived
from ...cache.spec import Spec
from ...cache.store import Cache, FeatureStore
from ...errors import ReadOnlyError, UserError
from ...images.spec import ImageSpec
from ...models.backbones import load_teacher
from ...models.device import choose_device, keep_freed_memory, set_precision
from ...models.diffusion.noise_schedule import NoiseSchedule
from ...progress import Progress
from ...storage import path_exists
from ..config import BuildConfig
from ..scan.scan import FileScanner, ScanResult, scan
from ..sources.discover import discover
from ..sources.file import SourceFile
from .from_cache import cached_images, read_origin
from .make_specs import flags_and_digest, make_specs
from .plan import Plan, PlanPartition, Samples, make_plan, only_images, parse_features, wanted_features


@dataclass(frozen=True, kw_only=True)
class BuildResources:
    """What the tasks of a build share, in the process that plans them and in each that does them.

    schedule : the DDIM steps. specs, stores : by feature. images : the cached images that are perturbed, if any.
    """

    device: torch.device
    schedule: NoiseSchedule
    specs: Mapping[str, Spec]
    stores: Mapping[str, FeatureStore]
    originals: FeatureStore | None


@dataclass(frozen=True, kw_only=True)
class BuildPlan(BuildResources):
    """All that is known before anything is computed.

    derived : what a derived dataset comes from, else None. lease : the file's name of the lease that the build holds, empty for a
    dry run. cache is None only for the dry run of a build into a cache that does not exist yet; stores lacks the features
    whose folder a dry run did not find.
    """

    cache: Cache | None
    scanned: ScanResult
    wanted: Mapping[str, frozenset[str]]
    plan: Plan
    derived: Derived | None
    lease: str

    def files(self) -> dict[str, SourceFile]:
        """Return the first file of each key; none if there is nothing to do."""
        return {row.key: row.file for row in reversed(self.scanned.rows)} if self.plan.tasks else {}


def prepare(
    config: BuildConfig,
    progress: Progress,
    held: ExitStack,
    *,
    dry_run: bool,
    part: PlanPartition | None = None,
    scanner: FileScanner | None = None,
) -> BuildPlan:
    """Check the arguments against each other and the cache, scan the sources (or read the origin) and make the plan.

    held : gets the lease on the features, taken before anybody looks what the cache has of them.
    part : plan only these shards. scanner : reads the files of the sources, on the workers that will also compute; None if this
    process does both.
    Raises UserError or UsageError for whatever cannot be used. A dry run makes neither a cache nor a feature's folder.
    """
    device = choose_device("cpu" if scanner else config.device)
    keep_freed_memory(device)
    if scanner is None:
        set_precision(config.precision, device)
    lists = parse_features(config.features)
    files = _discover(config)
    origin = None if config.origin is None else read_origin(config)
    flags, adm_digest = flags_and_digest(config, images_only=only_images(lists), progress=progress)
    schedule = flags.schedule(config.steps)
    cache, scanned = origin[:2] if origin is not None else _scan(config, files, progress, scanner, dry_run=dry_run)
    if not scanned.rows:
        first = scanned.rejects[0]
        raise UserError(
            f"{config.dataset}: none of the {len(scanned.rejects):,} images can be used "
            f"(the first, {first.path}: {first.reason}, {first.detail})."
        )
    wanted = wanted_features(lists, (row.file.split for row in scanned.rows))
    digest = None
    if "teacher" in wanted:
        digest = load_teacher(config.teacher, config.teacher_weights, progress).digest
    specs = make_specs(config, flags, adm_digest, wanted, digest)
    image = specs["image"]
    assert isinstance(image, ImageSpec)
    may_write, held_lease = True, ""
    if cache is not None and not dry_run:
        folders = {image.unperturbed.folder, *(spec.folder for spec in specs.values())}
        taken = held.enter_context(lease(cache.root, "build", folders, config.dataset))
        may_write, held_lease = path_exists(taken), taken.name
    originals = None
    if origin is not None:
        originals = cached_images(origin.cache, config, image.unperturbed, [row.key for row in scanned.rows])
    stores = _stores(cache, specs, config.format, create=not dry_run)
    indexes = {feature: stores[feature].index() if feature in stores else Index.empty() for feature in wanted}
    samples = Samples.of([row.key for row in scanned.rows], [row.file.split for row in scanned.rows])
    plan = make_plan(samples, wanted, indexes, config.shard_size, part)
    if plan.tasks and not may_write:
        raise ReadOnlyError(
            f"{config.cache}: may only be read, and this build has something to add. "
            "Get the right to write there, or use another folder."
        )
    derived = origin.derived if origin is not None else None
    return BuildPlan(
        cache=cache,
        device=device,
        schedule=schedule,
        scanned=scanned,
        wanted=wanted,
        specs=specs,
        stores=stores,
        plan=plan,
        originals=originals if derived else None,
        derived=derived,
        lease=held_lease,
    )


def plan_again(config: BuildConfig, ready: BuildPlan, without: Collection[str]) -> Plan:
    """Plan all parts of a build anew, as the cache is now. without : keys that cannot be had, whatever the cache says."""
    rows = [row for row in ready.scanned.rows if row.key not in without]
    samples = Samples.of([row.key for row in rows], [row.file.split for row in rows])
    indexes = {feature: store.index(refresh=True) for feature, store in ready.stores.items()}
    return make_plan(samples, ready.wanted, indexes, config.shard_size)


def _discover(config: BuildConfig) -> list[SourceFile]:
    return [file for source in config.sources for file in discover(source, config.layout).files]


def _scan(
    config: BuildConfig, files: list[SourceFile], progress: Progress, scanner: FileScanner | None, *, dry_run: bool
) -> tuple[Cache | None, ScanResult]:
    cache = None if dry_run and not (config.cache / "cache.json").exists() else Cache.create(config.cache)
    scanned = scan(
        files,
        memory=cache.datasets().scan_file(config.dataset) if cache else None,
        workers=config.decode_threads,
        limits=config.limits,
        rehash=config.rehash,
        progress=progress,
        scanner=scanner,
    )
    return cache, scanned


def _stores(cache: Cache | None, specs: Mapping[str, Spec], form: str, *, create: bool) -> dict[str, FeatureStore]:
    if cache is None:
        return {}
    there = {folder.name for folder in cache.feature_folders()}
    return {feature: cache.feature(spec, form) for feature, spec in specs.items() if create or spec.folder in there}
