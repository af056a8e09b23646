"""Code that runs on a worker: the tasks of a build, with models that are loaded once, and the scan of source files.

A worker runs several tasks at a time, so that one reads its images and another writes its features while the device
computes a third. The device computes one task at a time.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from distributed import Worker, WorkerPlugin, get_worker
from distributed.threadpoolexecutor import ThreadPoolExecutor

from ... import __version__
from ...cache.lease import FOLDER as LEASES
from ...cache.store import Cache
from ...errors import UserError
from ...features.registry import FEATURES, about_of, needs_adm, with_image_algorithm
from ...models.device import check_precision, choose_device, device_name, keep_freed_memory, unusable_gpu
from ...progress import Silent
from ...storage import path_exists
from ..config import BuildConfig
from ..execution.context import TaskContext
from ..execution.deviation import deviation_on
from ..execution.load import TaskImages
from ..execution.tasks import TaskReport, run_task, still_missing
from ..planning.make_specs import flags_and_digest, network_fields, specs_of_build
from ..planning.plan import Task
from ..planning.predecessors import find_predecessors
from ..planning.prepare import BuildResources
from ..scan.memory import ScanEntry
from ..scan.scan import scan_files
from ..sources.file import SourceFile
from .messages import OpenBuild, read_files, read_task, write_entries, write_report


class UnknownBuildError(Exception):
    """A task reached a worker that does not have the build's plugin: the scheduler was replaced."""


class BuildPlugin(WorkerPlugin):
    """The state of a build on a worker: what its tasks share, opened with the first."""

    idempotent = True
    """A build that connects to the same scheduler again keeps what its workers have opened."""

    def __init__(self, name: str, request: str) -> None:
        self.name = name
        self.request = request

    def setup(self, worker: Worker) -> None:
        """Initialise the state; called once on every worker, including those that join later."""
        self._address = worker.address
        self._files: dict[str, SourceFile] = {}
        self._context: TaskContext | None = None
        self._opening = threading.Lock()

    def open_build(self, files: Mapping[str, SourceFile]) -> TaskContext:
        """Return what the build's tasks share, without loading a model."""
        return open_build(OpenBuild.model_validate_json(self.request), files)

    def make(self, message: str) -> str:
        """Run a task. Exceptions carry the worker's address as a note."""
        try:
            return write_report(self._make(message, self._opened()))
        except Exception as error:
            error.add_note(self._address)
            raise

    def deviation(self, keys: Sequence[str]) -> str:
        """Compare reduced precision with float32 on these images; return the deviation as JSON."""
        return json.dumps(asdict(computing_thread().submit(deviation_on, self._opened(), keys).result()))

    def _opened(self) -> TaskContext:
        """Return what the tasks share; the first task opens it."""
        with self._opening:
            self._context = self._context or self.open_build(self._files)
            return self._context

    def _make(self, message: str, context: TaskContext) -> TaskReport:
        planned, files = read_task(message)
        task, found = still_missing(planned, context.stores)
        if not task.missing:
            return TaskReport(found, self._address, device_name(context.models.device, of_machine=True))
        if found.shards:  # rows that this task reads were written after the index was opened
            for store in context.stores.values():
                store.index(refresh=True)
        self._files.update(files)
        try:
            images = context.images.load(task)
            _check_reach(task, images, context.images.files)
        finally:
            for key in files:
                self._files.pop(key, None)
        done = run_task(task, images, context, computing_thread())
        done.computed.update(found.computed)
        done.shards.update(found.shards)
        return TaskReport(done, self._address, device_name(context.models.device, of_machine=True))


@functools.cache
def computing_thread() -> ThreadPoolExecutor:
    """Return the executor with the one thread that computes in this process, for all builds that it works on.

    What PyTorch keeps for a thread is kept once, and the arithmetic of two builds never overlaps. It is Dask's executor,
    whose threads do not keep a process alive.
    """
    return ThreadPoolExecutor(1)


def make_shard(plugin: str, message: str) -> str:
    """Run a task of the build whose plugin has this name."""
    return _plugin(plugin).make(message)


def measure(plugin: str, keys: str) -> str:
    """Compare reduced precision with float32 on the images of these keys, a JSON list."""
    return _plugin(plugin).deviation(json.loads(keys))


def _plugin(name: str) -> BuildPlugin:
    found = get_worker().plugins.get(name)
    if not isinstance(found, BuildPlugin):
        raise UnknownBuildError(name)
    return found


def scan_block(message: str) -> str:
    """Scan source files. A file that cannot be read here is left to the calling process."""
    entries: list[ScanEntry | bool] = []
    requested = read_files(message)
    for (_, known), found in zip(requested, scan_files(requested), strict=True):
        entries.append(found is known if not isinstance(found, ScanEntry) or found is known else found)
    return write_entries(entries)


def open_build(request: OpenBuild, files: Mapping[str, SourceFile]) -> TaskContext:
    """Open cache, models and specs on the worker. Raises UserError if they are not those of the build."""
    if request.version != __version__:
        raise UserError(
            f"the worker runs distil-cache {__version__}, the build {request.version}: install the same version."
        )
    for feature in request.fingerprints:
        here = FEATURES.package(feature) if feature in FEATURES else None
        there = request.packages.get(feature)
        if (here and str(here)) != there:
            raise UserError(
                f"{feature}: is provided by {there or 'distil-cache'} where the build runs, and by {here or 'nothing'} on the "
                "worker. Install the same there."
            )
    config = BuildConfig.model_validate(request.config)
    device = choose_device(config.device)
    if config.device == "auto" and (fault := unusable_gpu()):
        raise UserError(
            f"this worker's machine has a GPU, and CUDA does not start there ({fault}), so the worker would compute on its "
            "CPU. Mend it or end this worker; for a build on CPUs give --device cpu."
        )
    check_precision(config.precision, device)
    keep_freed_memory(device)
    cache = Cache.open(config.cache)
    if not path_exists(cache.root / LEASES / request.lease):
        raise UserError(
            f"{cache.root}: is not the same folder on the worker and on the build's machine. Use a shared one."
        )
    flags, adm_digest = flags_and_digest(config, needed=needs_adm(request.fingerprints))
    networks, _ = network_fields(config, request.fingerprints)
    made = specs_of_build(config, flags, adm_digest, request.fingerprints, networks)
    specs = {feature: with_image_algorithm(spec, request.image_algorithm) for feature, spec in made.items()}
    for feature, fingerprint in request.fingerprints.items():
        if specs[feature].fingerprint() != fingerprint:
            raise UserError(f"{feature}: the worker's model files are not those of the build: share or copy them.")
    setup = BuildResources(
        device=device,
        specs=specs,
        stores={
            feature: cache.feature(spec, config.format, config.codec, about_of(spec)) for feature, spec in specs.items()
        },
        originals=None if request.pictures is None else cache.open_feature(request.pictures),
        predecessors=find_predecessors(cache, specs),
    )
    return TaskContext.of(config, setup, files, Silent())


def _check_reach(task: Task, images: TaskImages, files: Mapping[str, SourceFile]) -> None:
    """Raise UserError if no file of a task can be read: the worker does not have the folder."""
    absent = [key for key, why in images.gone.items() if not why.startswith("changed")]
    if absent and len(absent) == len(task.keys):
        first = files[absent[0]].location
        raise UserError(
            f"{first}: {images.gone[absent[0]]}; the worker has none of the {len(absent)} files of this shard."
        )
