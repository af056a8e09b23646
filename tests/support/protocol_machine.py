"""The real cache under drawn schedules: builders, gc, compact, verify --repair and readers, step by step, with crashes.

A :class:`World` is a cache on a simulated disk or in a simulated store, with the processes that work on it, and what must
hold of it at every moment. :class:`ProtocolMachine` lets hypothesis drive it.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal
from unittest import mock

import numpy as np
from distil_cache.cache import lease, store
from distil_cache.cache.local_copy.reader import LocalCopy
from distil_cache.cache.maintenance import gc
from distil_cache.cache.maintenance.compact import compact
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.maintenance.repair import repair
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.records.builds import BuildRecord, BuildStore
from distil_cache.cache.records.datasets import DatasetStore
from distil_cache.cache.shards.data import Written
from distil_cache.cache.shards.format import checksum
from distil_cache.cache.shards.marker import read_marker
from distil_cache.cache.store import Cache
from distil_cache.errors import IntegrityError
from distil_cache.pipeline import record
from distil_cache.pipeline.scan.rows import ScannedRow
from distil_cache.pipeline.sources.file import SourceFile
from distil_cache.storage import AnyPath, RemotePath, atomic, list_matching, parallel, retry
from fault_checks import folder_in_memory
from fsspec.implementations.memory import MemoryFile
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from maintained_cache import SPECS, key_of, value_of
from simulated_disk import SimulatedDisk
from simulated_processes import Call, Process
from simulated_store import Fault, SimulatedStore

STAGE = st.sampled_from([None, "lease", "data", "marker", "dataset", "build record", "head", "removal"])
"""Where a process stops: before it changes something of a stage, or reads the leases. None: at its end."""
SPEC = SPECS["eps"]
HOUR = 3600.0
GRACE = 24
KEYS = range(6)
Kind = Literal["disk", "store"]
READS = ("stat", "list", "read")


class ViolationError(AssertionError):
    """Something that must hold does not."""


def build(root: AnyPath, dataset: str, numbers: Sequence[int]) -> BuildRecord:
    """Build one feature of one data set as ``pipeline/`` does it: lease, index, commit, record, head."""
    cache = Cache.create(root)
    keys = [key_of(number) for number in numbers]
    with lease.lease(root, "build", [SPEC.folder], dataset):
        store = cache.feature(SPEC, "webdataset")
        rows, _ = store.index(refresh=True).locate(keys)
        absent = sorted(key for key, row in zip(keys, rows.tolist(), strict=True) if row < 0)
        if absent:
            store.commit(absent, np.stack([value_of("eps", key) for key in absent]))
        scanned = [
            ScannedRow(SourceFile("s", f"{key}.png", 0, "train", "", "", "x"), key, 4, 4, "png", 1) for key in keys
        ]
        return record.write_record(
            cache, dataset, scanned, [], {"eps": frozenset({"train"})}, {"eps": store}, audit=lambda: None
        )


def read(root: AnyPath, copy: Path | None) -> None:
    """Read all rows that an index names, as a reader without a lease does."""
    feature = Cache.open(root, LocalCopy.at(copy, 1 << 20) if copy else None).open_feature(SPEC.folder)
    index = feature.index()
    keys = [key for key in map(key_of, KEYS) if index.locate([key])[0][0] >= 0]
    for key in keys:
        (shard,), (row,) = index.locate([key])
        if not np.array_equal(feature.read(index.shards[shard], row, row + 1)[0], value_of("eps", key)):
            raise ViolationError(f"a reader sees other values of {key}")


_numbers = itertools.count()


def _grown_cache(kind: Kind, folder: Path) -> AnyPath:
    """A cache in which images 0 and 1 were built, and 2 and 3 in place of them, longer ago than the grace period."""
    if kind == "store":
        SimulatedStore.clear()
    root = RemotePath("simulated://bucket/cache") if kind == "store" else folder / "cache"
    if kind not in _grown:
        build(root, "a", [0, 1])
        build(root, "a", [2, 3])
        _grown[kind] = dict(SimulatedStore.store) if kind == "store" else _content(folder)
    if kind == "store":
        for path, file in _grown[kind].items():
            SimulatedStore.store[path] = MemoryFile(SimulatedStore, path, file.getvalue())
        SimulatedStore.age(2 * GRACE * HOUR)
    else:
        for name, content in _grown[kind].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        for path in folder.rglob("*"):
            os.utime(path, (1e9, 1e9))
    return root


_grown: dict[Kind, dict[str, Any]] = {}


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class World:
    """A cache and the processes at work on it."""

    def __init__(self, kind: Kind) -> None:
        self.stack = ExitStack()
        folder = self.stack.enter_context(folder_in_memory())
        (folder / "disk").mkdir()
        (folder / "spare").mkdir()
        self.disk = SimulatedDisk(folder / "disk", folder / "spare")
        self.copy = folder / "disk" / "copy"
        self.root: AnyPath = _grown_cache(kind, folder / "disk")
        self.processes: list[Process] = []
        self.ended: list[tuple[str, str]] = []
        self.void: set[Process] = set()
        self.gc_was_cut = False
        atomic._flushed.clear()
        for patch in (
            mock.patch.object(retry, "FIRST_PAUSE", 0.0),
            mock.patch.object(parallel, "ThreadPoolExecutor", _InTurn),
            mock.patch.object(retry._log, "disabled", True),
            mock.patch.object(lease.platform, "node", _host),
        ):
            self.stack.enter_context(patch)
        self.stack.enter_context(self.disk.watched())

    def close(self) -> None:
        """End all processes and remove everything."""
        self.kill(*self.processes)
        self.stack.close()

    # What happens

    def start(self, name: str, work: Callable[[], Any]) -> Process:
        process = Process(f"{name} {next(_numbers)}", work)
        self.processes.append(process)
        return process

    def start_build(self, dataset: str, numbers: Sequence[int]) -> Process:
        return self.start(f"build {dataset}", lambda: build(self.root, dataset, numbers))

    def start_gc(self, grace: float = GRACE) -> Process:
        if grace == 0:
            self.void |= {process for process in self.processes if process.name.startswith("read")}
        return self.start(f"gc {grace}", lambda: collect(Cache.open(self.root), delete_them=True, grace_hours=grace))

    def start_compact(self) -> Process:
        return self.start("compact", lambda: compact(Cache.open(self.root), rows=8))

    def start_repair(self) -> Process:
        return self.start("repair", lambda: repair(Cache.open(self.root)))

    def start_reader(self, *, copies: bool = False) -> Process:
        process = self.start("read", lambda: read(self.root, self.copy if copies else None))
        if any(other.name.startswith("gc 0") for other in self.processes):
            self.void.add(process)
        return process

    def advance(self, process: Process, stage: str | None = None, most: int = 20_000) -> None:
        """Let a process go on until it is about to change something of a stage, or to read the leases."""

        def reached(call: Call) -> bool:
            return call.stage == stage and (call.operation not in READS or (stage, call.operation) == ("lease", "list"))

        process.advance(reached, most)
        self._reap(process)

    def advance_until(self, process: Process, reached: Callable[[], bool]) -> None:
        """Let a process go on until something is so."""
        process.advance(lambda call: reached())
        self._reap(process)

    def finish(self, *processes: Process) -> None:
        """Let processes end, one after the other; then check."""
        for process in processes:
            self.advance(process)
        self.check()

    def kill(self, *processes: Process) -> None:
        """End processes as SIGKILL does."""
        for process in processes:
            process.kill()
            self.gc_was_cut |= process.name.startswith(("gc", "repair"))
            if process in self.processes:
                self.processes.remove(process)

    def lose_power(self, loses: Callable[[int], bool]) -> None:
        """End all processes and lose what was not flushed."""
        self.kill(*self.processes)
        self.disk.fail(loses)
        atomic._flushed.clear()

    def pass_time(self, hours: float) -> None:
        """Let time pass; the leases of living processes are renewed."""
        seconds = hours * HOUR
        SimulatedStore.age(seconds)
        self.disk.age(seconds)
        self._renew()
        if hours >= GRACE:
            self.void |= {process for process in self.processes if process.name.startswith("read")}

    def _renew(self) -> None:
        """Do to the leases of living processes what their heartbeat does."""
        living = {process.name.replace(" ", ".") for process in self.processes}
        for path in list_matching(self.root / "builders", lease.LEASE_FILE):
            if path.name.rsplit("-", 2)[0] in living:
                path.write(path.read_bytes()) if isinstance(path, RemotePath) else os.utime(path)

    # What must hold

    def _reap(self, process: Process) -> None:
        if not process.ended:
            return
        self.processes.remove(process)
        process.join()
        if isinstance(process.error, Exception) and process not in self.void:
            raise ViolationError(f"{process.name} failed: {process.error!r}") from process.error
        if process.name.startswith("gc"):
            self.gc_was_cut = False
        if process.name.startswith("build"):
            self.ended.append((process.result.dataset, process.result.revision))

    def check(self) -> None:
        """Check what must hold at every moment."""
        cache = Cache.open(self.root)
        for dataset, revision in self.ended:
            if revision not in cache.datasets().history(dataset):
                raise ViolationError(f"the head of a build of {dataset} that ended is lost")
        store = cache.open_feature(SPEC.folder)
        held, in_trash = _rows_held(store.shards), _rows_held(store.removed, store.shards)
        quiet = not self.gc_was_cut and not any(not process.name.startswith("read") for process in self.processes)
        for dataset in cache.datasets().names():
            revision = cache.datasets().head(dataset)
            if not any(one.revision == revision for one in cache.builds().find(dataset)):
                raise ViolationError(f"the head of {dataset} names a revision without a build record")
            wanted = set(cache.datasets().read(dataset, revision).column("key").to_pylist())
            if wanted - held - in_trash:
                raise ViolationError(f"rows that the head of {dataset} needs are not there")
            if quiet and wanted - held:
                raise ViolationError(f"no reader finds the rows that the head of {dataset} needs")

    def check_end(self) -> None:
        """Check that after all this a next builder can finish, and that nothing is wrong then."""
        self.kill(*self.processes)
        SimulatedStore.deliver()
        for dataset in ("a", "b"):
            done = build(self.root, dataset, list(KEYS))
            self.ended.append((dataset, done.revision))
        collect(Cache.open(self.root), delete_them=True, grace_hours=GRACE)
        self.gc_was_cut = False
        self.check()
        read(self.root, None)
        if self.copy.exists():
            read(self.root, self.copy)
        problems = verify(Cache.open(self.root))
        if problems:
            raise ViolationError(f"verify finds {problems[0].what}")


def _rows_held(markers: AnyPath, shards: AnyPath | None = None) -> set[str]:
    """Return the keys of all shards whose marker is in a folder; a marker in its place whose data are not whole is a violation."""
    found: set[str] = set()
    paths = [path for path in markers.iterdir() if path.suffix == ".json"] if markers.exists() else []
    for path in paths:
        marker = read_marker(path)
        try:
            whole = checksum((shards or markers) / marker.data) == (marker.bytes, marker.sha256)
        except IntegrityError:
            whole = False
        if whole:
            found.update(marker.keys)
        elif shards is None:
            raise ViolationError(f"the marker of shard {marker.shard} names data that are not whole")
    return found


def _host() -> str:
    """Name the process in its lease."""
    return threading.current_thread().name.replace(" ", ".")


class _InTurn:
    """Stands for a pool of threads: what is handed in is done at once, by the process that hands it in."""

    def __init__(self, most: int) -> None:
        pass

    def __enter__(self) -> _InTurn:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


# Planted bugs


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Put one of the bugs of :class:`protocol_model.Protocol` into the code while the block runs."""
    with ExitStack() as stack:
        for place, attribute, patched in PLANTED[name]():
            stack.enter_context(mock.patch.object(place, attribute, patched))
        yield


Patches = list[tuple[Any, str, Callable[..., Any]]]


def _marker_before_data() -> Patches:
    waiting: dict[str, tuple[AnyPath, bytes]] = {}
    create_file = store.create_file

    def write_data(data: AnyPath, form: Any, rows: Any, keys: Any, feature: str, tail: Any) -> Written:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / data.name
            codec, offsets = form.write(local, rows, keys, feature, tail)
            waiting[threading.current_thread().name] = data, local.read_bytes()
            return Written(codec, offsets, *checksum(local))

    def marker_first(path: AnyPath, *content: bytes) -> bool:
        created = create_file(path, *content)
        data, text = waiting.pop(threading.current_thread().name, (None, b""))
        if isinstance(data, RemotePath):
            data.write(text)
        elif data is not None:
            atomic._write_new(data, [text])
        return created

    return [(store, "write_data", write_data), (store, "create_file", marker_first)]


def _no_second_look() -> Patches:
    restore = gc._restore_needed
    return [(gc, "_restore_needed", lambda cache, keep, moved: set() if moved else restore(cache, keep, moved))]


def _head_before_record() -> Patches:
    waiting: dict[str, BuildRecord] = {}
    write, move_head = BuildStore.write, DatasetStore.move_head

    def later(self: BuildStore, built: BuildRecord) -> None:
        waiting[threading.current_thread().name] = built

    def head_first(self: DatasetStore, name: str, revision: str) -> None:
        move_head(self, name, revision)
        write(BuildStore(self.folder.parent), waiting.pop(threading.current_thread().name))

    return [(BuildStore, "write", later), (DatasetStore, "move_head", head_first)]


def _late_lease() -> Patches:
    waiting: dict[str, Callable[[], object]] = {}
    take, write = lease.lease, BuildStore.write

    @contextmanager
    def late(*arguments: Any) -> Iterator[None]:
        with ExitStack() as held:
            waiting[threading.current_thread().name] = lambda: held.enter_context(take(*arguments))
            yield

    def lease_then_record(self: BuildStore, built: BuildRecord) -> None:
        waiting.pop(threading.current_thread().name)()
        write(self, built)

    return [(lease, "lease", late), (BuildStore, "write", lease_then_record)]


def _rename_for_link() -> Patches:
    def rename(temporary: Path, path: Path) -> bool:
        temporary.rename(path)
        atomic.fsync_folder(path.parent)
        return True

    def put(self: RemotePath, *data: bytes) -> bool:
        self.write(b"".join(data))
        return True

    return [(atomic, "link_new", rename), (RemotePath, "create", put)]


def _grace_ignored() -> Patches:
    find = gc.find_garbage
    return [(gc, "find_garbage", lambda cache: [replace(item, age=float("inf")) for item in find(cache)])]


PLANTED: dict[str, Callable[[], Patches]] = {
    "marker_before_data": _marker_before_data,
    "no_second_look": _no_second_look,
    "head_before_record": _head_before_record,
    "late_lease": _late_lease,
    "rename_for_link": _rename_for_link,
    "grace_ignored": _grace_ignored,
}


# Drawn schedules


class ProtocolMachine(RuleBasedStateMachine):
    """Draws who does what, and when it stops."""

    kind: ClassVar[Kind] = "disk"
    which = st.integers(0, 3)

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.kind)
        self.failed = False

    def process(self, which: int) -> Process:
        return self.world.processes[which % len(self.world.processes)]

    def has_room(self) -> bool:
        return len(self.world.processes) < 4

    def is_busy(self) -> bool:
        return bool(self.world.processes)

    @precondition(has_room)
    @rule(dataset=st.sampled_from("ab"), numbers=st.sampled_from([[0, 1], [4], [2, 3], [1, 4, 5]]), stage=STAGE)
    def build(self, dataset: str, numbers: list[int], stage: str | None) -> None:
        self.world.advance(self.world.start_build(dataset, numbers), stage)

    @precondition(has_room)
    @rule(grace=st.sampled_from([GRACE, 0]), stage=STAGE)
    def gc(self, grace: float, stage: str | None) -> None:
        self.world.advance(self.world.start_gc(grace), stage)

    @precondition(has_room)
    @rule(stage=STAGE)
    def compact(self, stage: str | None) -> None:
        self.world.advance(self.world.start_compact(), stage)

    @precondition(has_room)
    @rule(stage=STAGE)
    def repair(self, stage: str | None) -> None:
        self.world.advance(self.world.start_repair(), stage)

    @precondition(has_room)
    @rule(copies=st.booleans(), calls=st.integers(1, 30))
    def read(self, copies: bool, calls: int) -> None:
        self.world.advance(self.world.start_reader(copies=copies), most=calls)

    @precondition(is_busy)
    @rule(which=which, stage=STAGE)
    def advance(self, which: int, stage: str | None) -> None:
        self.world.advance(self.process(which), stage)

    @precondition(is_busy)
    @rule(which=which, calls=st.integers(1, 60))
    def steps(self, which: int, calls: int) -> None:
        self.world.advance(self.process(which), most=calls)

    @precondition(is_busy)
    @rule(which=which)
    def kill(self, which: int) -> None:
        self.world.kill(self.process(which))

    @precondition(is_busy)
    @rule(bits=st.integers(0, 2**12 - 1))
    def lose_power(self, bits: int) -> None:
        self.world.lose_power(lambda number: bool(bits >> number % 12 & 1))

    @rule(hours=st.sampled_from([1, GRACE + 1]))
    def pass_time(self, hours: int) -> None:
        self.world.pass_time(hours)

    @invariant()
    def holds(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        try:
            self.world.check_end()
        finally:
            self.world.close()


class StoreMachine(ProtocolMachine):
    """The same on an object store, whose requests get lost, doubled or late."""

    kind = "store"

    @rule(faults=st.lists(st.sampled_from(["answer lost", "request lost", "late"]), min_size=1, max_size=2))
    def disturb(self, faults: list[Fault]) -> None:
        SimulatedStore.faults[:] = faults

    @rule()
    def deliver(self) -> None:
        SimulatedStore.deliver()


MACHINES: dict[Kind, type[ProtocolMachine]] = {"disk": ProtocolMachine, "store": StoreMachine}
