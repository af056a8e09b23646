"""Stage one from end to end: prepare, run the tasks, write the dataset and the build record.

An interrupted build loses no finished shard: each is committed as soon as it is complete. The dataset's revision and
the build record, which a training reads, are written last.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING

from ..cache.gather import gather
from ..cache.records.audit import HeaderAudit
from ..errors import DistilCacheError
from ..features.contract import SingleFeature
from ..features.registry import FEATURES, warnings_of_specs
from ..models.device import HALF_TYPES
from ..models.download import no_downloads
from ..progress import Progress
from .accounting import account_for, warnings_of
from .audit.summary import audit_result, summarise, warning
from .cluster import Placement, open_worker_pool
from .config import BuildConfig
from .cost import CostRequest, estimate_cost
from .execution.deviation import SAMPLES
from .execution.tasks import InProcessExecutor
from .planning.estimate import predicted_calls
from .planning.prepare import BuildPlan, plan_again, prepare
from .results import BuildResult, BuildTotals, part_result, plan_result, record_result
from .scan.scan import drop_files

if TYPE_CHECKING:
    from .cluster.client import WorkerPool
    from .cluster.executor import ClusterExecutor

IN_PROCESS = Placement()
_MOST_WARNINGS = 10
FIRST_ROWS = 32
"""Rows of a feature that are looked at while the others are computed."""


def run_builds(
    configs: Sequence[BuildConfig],
    progress: Progress,
    *,
    dry_run: bool = False,
    placement: Placement = IN_PROCESS,
    cost_request: CostRequest | None = None,
) -> list[BuildResult]:
    """Run builds one after another, on the same workers if there are any; see :func:`run_build`."""
    if dry_run:
        return [
            _plan(
                config,
                progress,
                placement,
                cost_request or CostRequest(processes=placement.processes, on_one_machine=placement.workers),
            )
            for config in configs
        ]
    with open_worker_pool(placement, configs[0].device, progress) as pool:
        return [_build(config, progress, placement, pool) for config in configs]


def run_build(
    config: BuildConfig,
    progress: Progress,
    *,
    dry_run: bool = False,
    placement: Placement = IN_PROCESS,
    cost_request: CostRequest | None = None,
) -> BuildResult:
    """Compute the features of a dataset, reusing every row that the cache holds.

    Parameters
    ----------
    config
        What to compute, from what, and where to store it.
    progress
        Receives stages and messages.
    dry_run
        Plan only: compute and download nothing.
    placement
        Where to compute, and which part of the plan. A part writes neither revision nor build record unless all other
        parts are finished.
    cost_request
        Cost estimate that a dry run includes.

    Returns
    -------
    dict
        What ``build --json`` prints. For a dry run: ``missing`` in place of ``computed``, predicted ADM calls,
        uncompressed bytes.

    Raises
    ------
    UserError
        Before any work starts, for sources, models or settings that cannot be used; at the end, for shards that workers
        failed to make.
    """
    return run_builds([config], progress, dry_run=dry_run, placement=placement, cost_request=cost_request)[0]


def _plan(config: BuildConfig, progress: Progress, placement: Placement, cost_request: CostRequest) -> BuildResult:
    began = time.monotonic()
    with ExitStack() as stack:
        stack.enter_context(no_downloads())
        ready = prepare(config, progress, stack, dry_run=True, part=placement.part)
        audit = audit_result(summarise(ready.scanned.rows), config.harmonize)
        return {
            **plan_result(config, ready, began),
            "audit": audit,
            "estimate": estimate_cost(config, ready, cost_request),
        }


def _build(config: BuildConfig, progress: Progress, placement: Placement, pool: WorkerPool | None) -> BuildResult:
    began = time.monotonic()
    with ExitStack() as stack:
        ready = prepare(
            config, progress, stack, dry_run=False, part=placement.part, scanner=pool.scan_files if pool else None
        )
        _warn(ready, placement, progress)
        audit = _audit(config, ready, placement, progress)
        executor = _executor(config, ready, placement, progress, pool, stack)
        totals = _run(config, ready, progress, executor)
        _forget_changed(config, ready, totals)
        rest = plan_again(config, ready, totals.unusable) if placement.part else None
        if placement.part and rest and rest.tasks:
            result = part_result(config, ready, totals, placement.part, rest)
        else:
            result = record_result(config, ready, totals, audit, placement.part)
        result["seconds"] = round(time.monotonic() - began, 3)
        _log(config, ready, totals, result, executor)
        _keep_indexes(ready)
    return result


def _warn(ready: BuildPlan, placement: Placement, progress: Progress) -> None:
    """Name unused images and useless features before any computation; with several parts, only the first does."""
    if not ready.plan.tasks or (placement.part is not None and placement.part.number > 1):
        return
    accounts = account_for(ready.sources, len(ready.scanned.rows), ready.scanned.rejects, ready.scanned.leaks)
    for warning_text in warnings_of(accounts)[:_MOST_WARNINGS]:
        progress.say(f"Warning: {warning_text}")
    for note in warnings_of_specs(ready.specs):
        progress.say(f"Warning: {note}")


def _audit(config: BuildConfig, ready: BuildPlan, placement: Placement, progress: Progress) -> HeaderAudit | None:
    """Audit the headers and warn before any computation; with several parts, only the first does."""
    if not ready.plan.tasks or (placement.part is not None and placement.part.number > 1):
        return None
    audit = summarise(ready.scanned.rows)
    if audit is not None and audit.found:
        progress.say(f"Warning: {warning(audit, config.harmonize)}")
    return audit


def _executor(
    config: BuildConfig,
    ready: BuildPlan,
    placement: Placement,
    progress: Progress,
    pool: WorkerPool | None,
    stack: ExitStack,
) -> InProcessExecutor | ClusterExecutor:
    """Return the executor: this process, or the workers, which hold the build's plugin until ``stack`` closes."""
    if pool is None:
        return InProcessExecutor(config, ready, progress)
    from .cluster.executor import ClusterExecutor  # brings Dask with it

    executor = ClusterExecutor(pool, config, ready, placement, progress)
    if ready.plan.tasks:
        stack.enter_context(pool.plugin(executor.plugin))
    return executor


def _run(
    config: BuildConfig, ready: BuildPlan, progress: Progress, executor: InProcessExecutor | ClusterExecutor
) -> BuildTotals:
    """Run all tasks of the plan; each commits its own results."""
    progress.start("image", ready.plan.missing["image"])
    planned = predicted_calls(ready.plan, ready.producers)
    for producer in ready.producers:
        progress.start(producer.unit, planned[producer.unit])
    totals = BuildTotals()
    began = time.monotonic()
    looked_at: set[str] = set()
    for report in executor.reports():
        totals.add(report)
        for feature in [name for name, rows in totals.computed.items() if rows and name not in looked_at]:
            looked_at.add(feature)
            notes = _first_rows_notes(ready, feature)
            totals.notes += notes
            for note in notes:
                progress.say(f"Warning: {note}")
    totals.seconds = time.monotonic() - began
    return totals


def _first_rows_notes(ready: BuildPlan, name: str) -> list[str]:
    """Say early what is wrong with the first rows of a feature: nobody need wait for the rest."""
    feature, store = FEATURES[name], ready.stores[name]
    if not isinstance(feature, SingleFeature):
        return []
    index = store.index(refresh=True)
    first = list(islice((row.key for row in ready.scanned.rows if row.key in index), FIRST_ROWS))
    return feature.warnings_about(gather(store, first), ready.specs[name]) if first else []


def _forget_changed(config: BuildConfig, ready: BuildPlan, totals: BuildTotals) -> None:
    """Drop files from the scan memory that have changed since, so that the next scan opens them."""
    changed = {key for key, why in totals.unusable.items() if why.startswith("changed:")}
    if changed and ready.cache is not None:
        memory = ready.cache.datasets().scan_file(config.dataset)
        drop_files(memory, (row.file for row in ready.scanned.rows if row.key in changed))


def _keep_indexes(ready: BuildPlan) -> None:
    """Rewrite compacted indexes that lack many new shards. This only saves time, so errors are ignored."""
    for store in ready.stores.values():
        with suppress(DistilCacheError):
            store.compact_index(if_worth=True)


def _log(
    config: BuildConfig,
    ready: BuildPlan,
    totals: BuildTotals,
    result: BuildResult,
    executor: InProcessExecutor | ClusterExecutor,
) -> None:
    """Log in each feature's folder what this build added, where and how fast, and the error of reduced precision."""
    event: dict[str, object] = {
        "event": "build",
        "build": result["build"],
        "seconds": result["seconds"],
        "adm_calls": totals.adm_calls,
        "device": str(ready.device) if isinstance(executor, InProcessExecutor) else "workers",
        "host": platform.node(),
        "batch_size": totals.batch_size,
        "compile": config.compile,
        "normalisation": sorted(totals.normalisation),
        "speed": [
            {"device": name, "adm_calls": calls, "seconds": round(seconds, 3)}
            for name, (calls, seconds) in sorted(totals.speed.items())
        ],
    }
    if config.precision in HALF_TYPES and totals.adm_calls:
        index = ready.stores["image"].index()
        keys = list(islice((key for task in ready.plan.tasks for key in task.keys if key in index), SAMPLES))
        deviation = executor.deviation(keys)
        event["deviation_from_float32"] = asdict(deviation) if deviation else None
    for name, store in ready.stores.items():
        if totals.new(name):
            store.log({**event, "computed": totals.computed[name], "taken_over": totals.taken_over[name]})
