"""Prepare a build: list the sources, scan them, make the specs, and plan against the cache."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from ...cache.index.index import Index
from ...cache.lease import lease
from ...cache.records.builds import Derived
from ...cache.set_aside import read_set_aside
from ...cache.spec import Spec
from ...cache.store import Cache, FeatureStore
from ...choices import IMAGE_ALGORITHMS
from ...errors import ReadOnlyError, UserError
from ...features.contract import Producer
from ...features.registry import about_of, producers_of, with_image_algorithm
from ...images.spec import ImageSpec
from ...models.device import check_precision, choose_device, keep_freed_memory
from ...models.diffusion.checkpoints import OFFICIAL, read_config
from ...models.diffusion.kinds import DiffusionConfig
from ...models.download import AbsentWeightsError
from ...models.weights import split_choice
from ...progress import Progress
from ...storage import path_exists
from ..config import BuildConfig
from ..scan.conflicts import Reject
from ..scan.rows import FilesByKey, RowTable
from ..scan.scan import FileScanner, ScanResult, scan
from ..sources.discover import discover, discover_declared
from ..sources.file import DiscoveredSource, SourceFile, printable
from ..sources.file_table import FileTable
from ..split_by import assign_splits
from .from_cache import cached_images, read_origin
from .host_memory import check_memory
from .make_specs import UNKNOWN_WEIGHTS, flags_and_digest, network_fields, specs_of_build
from .own_settings import parse_set
from .plan import Plan, PlanPartition, Samples, make_plan
from .predecessors import find_predecessors
from .wanted import lists_need_adm, parse_features, wanted_features

_FOLDERS_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class BuildResources:
    """What the tasks of a build share, in the process that plans them and in every worker.

    Attributes
    ----------
    device
        Device of the process.
    specs, stores
        By feature.
    originals
        Store of the cached images to perturb, if any.
    predecessors
        Feature -> store of the same feature of images of an earlier algorithm, see :mod:`.predecessors`.
    """

    device: torch.device
    specs: Mapping[str, Spec]
    stores: Mapping[str, FeatureStore]
    originals: FeatureStore | None
    predecessors: Mapping[str, FeatureStore]

    @cached_property
    def producers(self) -> list[Producer]:
        """What makes the features, in the order of computation."""
        return producers_of(self.specs)


@dataclass(frozen=True, kw_only=True)
class BuildPlan(BuildResources):
    """Everything that is known before anything is computed.

    Attributes
    ----------
    cache
        None only for a dry run into a cache that does not exist yet. In a dry run, ``stores`` lacks features without a
        folder.
    sources
        What was found in each source; empty for a build from cached images.
    scanned
        Rows and rejects.
    wanted
        Feature -> splits.
    plan
        Tasks.
    derived
        Origin of a derived dataset, or None.
    lease
        File name of the build's lease; empty for a dry run.
    set_aside
        Key -> ``reason: detail`` of images that may not be used, though the cache holds them.
    absent
        Of a dry run: a sentence for each weights file that is not here. Rows of features that depend on it count as
        missing, since its digest, and with it their fingerprints, are not known.
    """

    cache: Cache | None
    sources: Sequence[DiscoveredSource]
    scanned: ScanResult
    wanted: Mapping[str, frozenset[str]]
    plan: Plan
    derived: Derived | None
    lease: str
    set_aside: Mapping[str, str]
    absent: tuple[str, ...] = ()

    def files(self) -> Mapping[str, SourceFile]:
        """Return the first file of each key; empty if there are no tasks."""
        return FilesByKey(self.scanned.rows) if self.plan.tasks else {}


def prepare(
    config: BuildConfig,
    progress: Progress,
    stack: ExitStack,
    *,
    dry_run: bool,
    part: PlanPartition | None = None,
    scanner: FileScanner | None = None,
) -> BuildPlan:
    """Validate the arguments, scan the sources (or read the origin) and make the plan.

    Parameters
    ----------
    config
        Configuration of the build.
    progress
        Receives the stages.
    stack
        Receives the lease on the features, which is taken before their indexes are read.
    dry_run
        Create neither a cache nor a feature's folder.
    part
        Plan only this part of the shards.
    scanner
        Reads the source files on the workers that will also compute; None if this process does both.

    Raises
    ------
    UserError, UsageError
        For sources, models or settings that cannot be used.
    """
    device = choose_device("cpu" if scanner else config.device)
    keep_freed_memory(device)
    if scanner is None:
        check_precision(config.precision, device)
    lists = parse_features(config.features, config.cache)
    parse_set(config.set, config.cache)
    sources = _discover(config)
    origin = None if config.origin is None else read_origin(config)
    absent: list[str] = []
    try:
        flags, adm_digest = flags_and_digest(config, needed=lists_need_adm(lists), progress=progress)
    except AbsentWeightsError as error:  # only in a dry run
        absent.append(str(error))
        flags, adm_digest = _flags_without_weights(config, error), UNKNOWN_WEIGHTS
    if origin is None:
        files = FileTable.joined([source.files for source in sources])
        cache, scanned = _scan(config, files, progress, scanner, dry_run=dry_run)
    else:
        cache, scanned = origin.cache, origin.rows
    if not scanned.rows:
        first = scanned.rejects[0]
        raise UserError(
            f"{config.dataset}: none of the {len(scanned.rejects):,} images can be used "
            f"(the first, {first.path}: {first.reason}, {first.detail})."
        )
    if origin is None:
        refuse_one_class(config, scanned.rows, scanned.rejects, sources)
    wanted = wanted_features(lists, {kind.split for kind in scanned.rows.counts()})
    networks, lacking = network_fields(config, wanted, progress)
    absent += lacking
    specs = specs_of_build(config, flags, adm_digest, wanted, networks)
    image = specs["image"]
    assert isinstance(image, ImageSpec)
    may_write, held_lease = True, ""
    if cache is not None and not dry_run:
        used = [
            with_image_algorithm(spec, n) for spec in (image.unperturbed, *specs.values()) for n in IMAGE_ALGORITHMS
        ]
        folders = {spec.folder for spec in used}
        taken = stack.enter_context(lease(cache.root, "build", folders, config.dataset))
        may_write, held_lease = path_exists(taken), taken.name
    originals = None
    samples = Samples.of_rows(scanned.rows)
    if origin is not None:
        originals, algorithm = cached_images(origin.cache, config, image.unperturbed, samples)
        specs = {feature: with_image_algorithm(spec, algorithm) for feature, spec in specs.items()}
    stores = _stores(cache, specs, config, create=not dry_run)
    indexes = {feature: stores[feature].index() if feature in stores else Index.empty() for feature in wanted}
    set_aside = read_set_aside(stores["image"]) if "image" in stores else {}
    plan = make_plan(samples, wanted, indexes, config.shard_size, part, set_aside)
    if plan.tasks and not may_write:
        raise ReadOnlyError(
            f"{config.cache}: may only be read, and this build has rows to add. "
            "Get write permission, or use another folder."
        )
    if plan.tasks:
        check_memory(config, device, specs)
    derived = origin.derived if origin is not None else None
    return BuildPlan(
        cache=cache,
        device=device,
        sources=sources,
        scanned=scanned,
        wanted=wanted,
        specs=specs,
        stores=stores,
        plan=plan,
        originals=originals if derived else None,
        predecessors=find_predecessors(cache, specs),
        derived=derived,
        lease=held_lease,
        set_aside=set_aside,
        absent=tuple(absent),
    )


def plan_again(config: BuildConfig, ready: BuildPlan, without: Collection[str]) -> Plan:
    """Plan all parts of a build again, against the current state of the cache, leaving out the keys in ``without``."""
    samples = Samples.of_rows(ready.scanned.rows, without)
    indexes = {feature: store.index(refresh=True) for feature, store in ready.stores.items()}
    return make_plan(samples, ready.wanted, indexes, config.shard_size, unusable=ready.set_aside)


def _flags_without_weights(config: BuildConfig, absent: AbsentWeightsError) -> DiffusionConfig:
    """Return the flags of an ADM whose weights are not here. Raises UserError if only the weights could tell them."""
    location, _ = split_choice(config.adm)
    if location in OFFICIAL:
        return OFFICIAL[location].config
    if config.adm_config is not None:
        return read_config(config.adm_config)
    raise UserError(
        f"--dry-run: downloads nothing, and without the weights or --adm-config nothing is known of {config.adm}. {absent}"
    ) from absent


def refuse_one_class(
    config: BuildConfig,
    rows: RowTable,
    rejects: Sequence[Reject],
    sources: Sequence[DiscoveredSource],
) -> None:
    """Raise UserError if all images are real or all generated, unless none is for training or the user says that it is meant.

    Folders of the sources that no class was known of are named, with the options that declare them.
    """
    kinds = rows.counts()
    labels = {kind.label for kind in kinds}
    if config.one_class or len(labels) != 1 or all(kind.split != "train" for kind in kinds):
        return
    label = labels.pop()
    of_other = sum(reject.file is not None and reject.file.label != label for reject in rejects)
    lost = f" The {of_other:,} images of the other class were all rejected." if of_other else ""
    raise UserError(
        f"{config.dataset}: has only one class: all of its {len(rows):,} images are {('real', 'generated')[label]} (such as "
        f"{printable(rows[0].file.location)}), and no detector can be trained with them.{lost}"
        f"{_unclassed(sources)} Add a source with the other class, such as {('--fake NAME=DIR', '--real DIR')[label]}, or say "
        "--one-class if this is meant."
    )


def _unclassed(sources: Sequence[DiscoveredSource]) -> str:
    """Name the folders with images that belong to no class, and how to declare them; empty if there are none."""
    left = [
        (printable(entry.folder), entry.images) for one in sources for entry in one.account.uncovered if entry.folder
    ]
    if not left:
        return ""
    folders = ", ".join(f"{folder}/ ({images:,})" for folder, images in left[:_FOLDERS_NAMED])
    more = f" and {len(left) - _FOLDERS_NAMED:,} more" if len(left) > _FOLDERS_NAMED else ""
    return (
        f" Images in these folders were not used, since nothing says what they are: {folders}{more}. If each is a "
        "generator, declare all folders in place of the source: --real DIR --fake NAME=DIR --fake NAME=DIR."
    )


def _discover(config: BuildConfig) -> list[DiscoveredSource]:
    """List the sources, then the folders that are declared real or generated."""
    found = [discover(source, config.layout, config.reading) for source in config.sources]
    found += [discover_declared(folder, 0, "real", config.reading) for folder in config.real]
    return found + [discover_declared(folder, 1, name, config.reading) for name, folder in config.generators]


def _scan(
    config: BuildConfig, files: FileTable, progress: Progress, scanner: FileScanner | None, *, dry_run: bool
) -> tuple[Cache | None, ScanResult]:
    absent = dry_run and not (config.cache / "cache.json").exists()
    if absent:
        Cache.refuse_other_content(config.cache)
    cache = None if absent else Cache.create(config.cache)
    shares = config.shares
    assign = None
    if shares is not None:
        assign = partial(assign_splits, wanted=shares, workers=config.decode_threads, progress=progress)
    scanned = scan(
        files,
        memory=cache.datasets().scan_file(config.dataset) if cache else None,
        workers=config.decode_threads,
        limits=config.limits,
        rehash=config.rehash,
        progress=progress,
        scanner=scanner,
        assign=assign,
    )
    return cache, scanned


def _stores(
    cache: Cache | None, specs: Mapping[str, Spec], config: BuildConfig, *, create: bool
) -> dict[str, FeatureStore]:
    if cache is None:
        return {}
    there = {folder.name for folder in cache.feature_folders()}
    wanted = {feature: spec for feature, spec in specs.items() if create or spec.folder in there}
    return {
        feature: cache.feature(spec, config.format, config.codec, about_of(spec)) for feature, spec in wanted.items()
    }
