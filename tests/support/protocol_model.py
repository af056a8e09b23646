"""A model of the commit protocol, small enough to visit every state: two builders, one gc, readers, one crash at any step.

One shard is enough: both builders need it, it may be there already, and gc may remove it. Each program is a list of
steps, and any process may take its next one at any time. A step is one operation on the disk. What was changed and not
flushed may be lost in a power failure, each cell for itself.

    builder  lease; look for the marker; if it is absent write data, flush, link the marker, flush; make sure that the
             shard exists, flush; record, flush; head, flush; make sure again; release
    gc       read records and heads, restore what they need, flush; read leases, records, heads; move the marker to the
             trash, flush; read leases, records, heads again, restore, flush; list garbage; read leases; delete the
             trashed marker, then the data
    readers  found the marker within the grace period: they may be reading its data, or copying them to a local disk

:func:`explore` visits all states breadth-first, checks each, and checks at the end that from each of them both builders
can still finish. A :class:`Protocol` has a switch for each planted bug.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any, NamedTuple

OLD = "old"
"""The data that lie there at the beginning; those of a builder are named by builder and attempt, such as ``a0``."""
Names = tuple[str | None, str | None]


class Cell(NamedTuple):
    """Something on a disk: what processes see, and what a power failure may leave."""

    now: Any
    after: frozenset[Any]


class Builder(NamedTuple):
    """``told``: the data that the commit returned. ``number``: of heads that it has seen."""

    at: str
    revision: str
    attempt: int = 0
    told: str | None = None
    number: int = 0
    lease: bool = False


class Collector(NamedTuple):
    """``records``: those that it has read. ``interrupted``: a gc was killed, and none has ended since."""

    at: str = "idle"
    records: frozenset[str] = frozenset()
    leases: bool = False
    garbage: tuple[str, ...] = ()
    interrupted: bool = False


class State(NamedTuple):
    """The whole system.

    ``data``: by name, absent, half or whole. ``names``: the data that the marker names, and those that the marker in the
    trash names; a move changes both in one step of the journal. ``records``, ``heads``: of revisions. ``readable``: what
    readers may have found within the grace period. ``trash_is_old``: for longer than that. ``ghost``: a killed
    builder's lease, which counts until it expires. ``crashed``: there is one crash.
    """

    builders: tuple[Builder, ...]
    data: tuple[tuple[str, Cell], ...] = ()
    names: Cell = Cell((None, None), frozenset({(None, None)}))
    records: Cell = Cell(frozenset(), frozenset({frozenset()}))
    heads: Cell = Cell((), frozenset({()}))
    gc: Collector = Collector()
    readable: frozenset[str] = frozenset()
    trash_is_old: bool = False
    ghost: bool = False
    crashed: bool = False


class Scope(NamedTuple):
    """What takes part: all, or less, so that there are fewer states."""

    builders: int = 2
    gc: bool = True
    crash: bool = True


QUICK = (Scope(gc=False), Scope(builders=1))
"""What needs seconds. Each planted bug shows itself in one of these already."""


@dataclass(frozen=True)
class Protocol:
    """The protocol, or one with a planted bug: six that were chosen, and four that this model found in the code.

    ``unflushed_marker``, ``unflushed_record``: a builder relies on a marker, or on a record or head, that another has
    not flushed yet. ``no_last_check``: it does not make sure again after the head. ``replaced_in_trash``: data whose
    marker in the trash was replaced by a newer one have no grace period.
    """

    marker_before_data: bool = False
    no_second_look: bool = False
    head_before_record: bool = False
    late_lease: bool = False
    rename_for_link: bool = False
    grace_ignored: bool = False
    unflushed_marker: bool = False
    unflushed_record: bool = False
    no_last_check: bool = False
    replaced_in_trash: bool = False

    @cached_property
    def next_of(self) -> dict[str, str]:
        """For each step of a builder the next one, when it makes the shard."""
        lease, look, write, link = ["lease"], ["look"], ["write"], ["link", "link flush"]
        ensure, record, head = ["ensure", "ensure flush"], ["record", "record flush"], ["head", "head flush"]
        make = link + write if self.marker_before_data else write + link
        begin = look + make + ensure + lease if self.late_lease else lease + look + make + ensure
        commit = head + record if self.head_before_record else record + head
        end = ["release"] if self.no_last_check else ["ensure again", "ensure again flush", "release"]
        steps = [*begin, *commit, *end, "done"]
        return {"start": steps[0], **dict(pairwise(steps))}


def initial_states(scope: Scope) -> Iterator[State]:
    """The shard is there or not; the builders make the same revision, or different ones of one data set."""
    for revisions in {1: ("R",), 2: ("RR", "RQ")}[scope.builders]:
        absent = State(tuple(Builder("start", revision) for revision in revisions), crashed=not scope.crash)
        yield absent
        yield absent._replace(data=((OLD, flushed("whole")),), names=flushed((OLD, None)), readable=frozenset({OLD}))


# The disk


def flushed(value: object) -> Cell:
    return Cell(value, frozenset({value}))


def changed(cell: Cell, value: object) -> Cell:
    return cell if value == cell.now else Cell(value, cell.after | {value})


def content(state: State, name: str | None) -> str | None:
    for own, cell in state.data:
        if own == name:
            return cell.now  # type: ignore[no-any-return]
    return None


def with_data(state: State, name: str, cell: Cell | None) -> tuple[tuple[str, Cell], ...]:
    others = [item for item in state.data if item[0] != name]
    return tuple(others if cell is None else sorted([*others, (name, cell)]))


def leased(state: State) -> bool:
    return state.ghost or any(builder.lease for builder in state.builders)


# The programs


def successors(state: State, protocol: Protocol, scope: Scope) -> Iterator[tuple[str, State]]:
    """Every step that a process can take, or that time or a crash takes, with its name."""
    for number, builder in enumerate(state.builders):
        if builder.at not in ("done", "failed"):
            at = protocol.next_of["start"] if builder.at == "start" else builder.at
            yield f"builder {number}: {at}", build_step(state, number, at, protocol)
    if scope.gc:
        yield f"gc: {state.gc.at}", collect_step(state, protocol)
    yield "the grace period passes", pass_time(state)
    if not state.crashed:
        yield from crashes(state)


def build_step(state: State, number: int, at: str, protocol: Protocol) -> State:
    """The next step of a builder."""
    builder = state.builders[number]
    marker, trashed = state.names.now
    mine = f"{'ab'[number]}{builder.attempt}"
    to = protocol.next_of[at]
    changes: dict[str, Any] = {}
    match at:
        case "lease":
            builder = builder._replace(lease=True)
        case "look" if marker is not None:
            builder, to = builder._replace(told=marker), "ensure"
        case "write":  # and flush: as nobody knows the name yet, one step
            changes["data"] = with_data(state, mine, flushed("whole"))
        case "link" if marker is None or protocol.rename_for_link:
            builder = builder._replace(told=mine)
            changes["names"] = changed(state.names, (mine, trashed))
        case "link":  # its own data are garbage now
            builder, to = builder._replace(told=marker), "ensure"
        case "ensure" | "ensure again" if marker is None:
            if content(state, trashed) == "whole":
                changes["names"] = changed(state.names, (trashed, trashed))
            else:
                to = "failed"
        case "link flush" | "ensure again flush":
            changes["names"] = flushed(state.names.now)
        case "ensure flush" if not protocol.unflushed_marker:
            changes["names"] = flushed(state.names.now)
        case "record" if protocol.unflushed_record and builder.revision in state.records.now:
            to = protocol.next_of[to]
        case "record":
            changes["records"] = changed(state.records, state.records.now | {builder.revision})
        case "record flush":
            changes["records"] = flushed(state.records.now)
        case "head":
            seen = state.heads.now[: builder.number]
            if seen[-1:] == (builder.revision,):
                to = protocol.next_of[to] if protocol.unflushed_record else to
                builder = builder._replace(number=0)
            elif len(seen) < len(state.heads.now) and not protocol.rename_for_link:
                to, builder = at, builder._replace(number=len(state.heads.now))  # taken: it looks again
            else:
                changes["heads"] = changed(state.heads, (*seen, builder.revision))
                builder = builder._replace(number=0)
        case "head flush":
            changes["heads"] = flushed(state.heads.now)
        case "release":
            builder = builder._replace(lease=False, told=None)
    if to.endswith("flush") and _is_clean(state._replace(**changes), to):
        to = protocol.next_of[to]
    if to == "head" and at != "head":  # the step before it ends with a look at the heads
        builder = builder._replace(number=len(state.heads.now))
    builders = list(state.builders)
    builders[number] = builder._replace(at=to)
    changes["builders"] = tuple(builders)
    return state._replace(**changes)


def _is_clean(state: State, flush: str) -> bool:
    """Whether a flush would change nothing: then it is no step of its own, and what follows is not flushed by it."""
    cell = {"record flush": state.records, "head flush": state.heads}.get(flush, state.names)
    return len(cell.after) == 1


def collect_step(state: State, protocol: Protocol) -> State:
    """The next step of gc. Reading records before heads, each at a moment of its own, is how the code does it."""
    gc = state.gc
    marker, trashed = state.names.now
    needed = state.heads.now[-1:] != () and state.heads.now[-1] in gc.records
    changes: dict[str, Any] = {}
    to = GC[gc.at]
    match gc.at:
        case "idle" | "records" | "second records":
            gc = gc._replace(records=state.records.now)
        case "first heads" | "second heads":
            if (needed or gc.leases) and marker is None and content(state, trashed) == "whole":
                changes["names"] = changed(state.names, (trashed, trashed))
            gc = gc._replace(records=frozenset(), leases=False)
        case "leases":
            to = ("second records" if not protocol.no_second_look else "garbage") if leased(state) else to
        case "heads":
            to = ("second records" if not protocol.no_second_look else "garbage") if needed or marker is None else to
            gc = gc._replace(records=frozenset())
        case "move" if marker is not None:
            changes |= {"names": changed(state.names, (None, marker)), "trash_is_old": False}
        case "first flush" | "move flush" | "second flush":
            changes["names"] = flushed(state.names.now)
            if gc.at == "move flush" and protocol.no_second_look:
                to = "garbage"
        case "second leases":
            gc = gc._replace(leases=leased(state))
        case "garbage":
            waits = trashed is not None and not state.trash_is_old and not protocol.grace_ignored
            unnamed = [name for name, _ in state.data if name != marker]
            forgets = protocol.replaced_in_trash
            gc = gc._replace(garbage=tuple(name for name in unnamed if not waits or (forgets and name != trashed)))
            to = to if gc.garbage else "idle"
        case "last leases" if leased(state):
            gc, to = gc._replace(garbage=()), "idle"
        case "delete marker" if trashed == gc.garbage[0]:
            changes["names"] = changed(state.names, (marker, None))
        case "delete data":
            first, *rest = gc.garbage
            if marker != first:
                changes["data"] = with_data(state, first, None)
            gc = gc._replace(garbage=tuple(rest))
            to = "delete marker" if rest else "idle"
    if to.endswith("flush") and len(changes.get("names", state.names).after) == 1:
        to = GC[to]
    if to == "garbage" and not state.data:
        to = "idle"
    if to == "idle":
        gc = gc._replace(interrupted=False)
    changes["gc"] = gc._replace(at=to)
    return state._replace(**changes)


_COLLECT = (
    "idle", "first heads", "first flush", "leases", "records", "heads", "move", "move flush", "second leases",
    "second records", "second heads", "second flush", "garbage", "last leases", "delete marker", "delete data", "idle",
)  # fmt: skip
GC = dict(pairwise(_COLLECT))
"""For each step of gc the next one, when it removes the shard."""


def pass_time(state: State) -> State:
    """What is there grows older than the grace period, and leases of the dead expire. A living process renews its own."""
    marker, trashed = state.names.now
    readable = frozenset() if marker is None else frozenset({marker})
    return state._replace(trash_is_old=trashed is not None, ghost=False, readable=readable)


def crashes(state: State) -> Iterator[tuple[str, State]]:
    """Any process is killed, or the power fails and all are, with all that was not flushed at stake."""
    state = state._replace(crashed=True)
    everyone = range(len(state.builders))
    for number in everyone:
        if state.builders[number].at not in ("start", "done"):
            yield f"builder {number} is killed", _killed(state, (number,))
    if state.gc.at != "idle":
        yield "gc is killed", state._replace(gc=Collector(interrupted=True))
    dead = _killed(state, everyone)._replace(
        gc=Collector(interrupted=state.gc.interrupted or state.gc.at != "idle"), readable=frozenset()
    )
    for values in product(*(cell.after for _, cell in state.data)):
        data = tuple((name, flushed(value)) for (name, _), value in zip(state.data, values, strict=True) if value)
        for names, records, heads in product(state.names.after, state.records.after, state.heads.after):
            yield (
                "the power fails",
                dead._replace(data=data, names=flushed(names), records=flushed(records), heads=flushed(heads)),
            )


def _killed(state: State, numbers: Sequence[int]) -> State:
    """Builders that were killed begin again, with a new name for their data."""
    builders = list(state.builders)
    for number in numbers:
        if builders[number].at not in ("start", "done"):
            builders[number] = Builder("start", builders[number].revision, builders[number].attempt + 1)
    ghost = state.ghost or any(state.builders[number].lease for number in numbers)
    return state._replace(builders=tuple(builders), ghost=ghost)


def forgotten(state: State) -> State:
    """Forget data that nothing names or will name, such as those of a dead writer: gc deletes them sooner or later."""
    used: set[str | None] = {*state.readable, *state.gc.garbage}
    for names in state.names.after:
        used.update(names)
    for letter, builder in zip("ab", state.builders, strict=False):
        used.add(builder.told)
        if builder.at in ("write", "link"):
            used.add(f"{letter}{builder.attempt}")
    data = tuple(item for item in state.data if item[0] in used)
    return state if len(data) == len(state.data) else state._replace(data=data)


# What must hold


def faults(state: State) -> Iterator[str]:
    """What is wrong in a state."""
    marker, trashed = state.names.now
    heads = state.heads.now
    if marker is not None and content(state, marker) != "whole":
        yield "a marker names data that are not whole"
    if heads:
        if heads[-1] not in state.records.now:
            yield "a head names a revision without a record"
        if content(state, marker or trashed) != "whole":
            yield "data that a head needs are not there"
        if marker is None and state.gc.at == "idle" and not state.gc.interrupted and not leased(state):
            yield "no reader finds a shard that a head needs"
    for builder in state.builders:
        if builder.at == "failed":
            yield "a shard was removed while a build relied on it"
        if builder.at == "done" and builder.revision not in heads:
            yield "the head of a build that ended is lost"
        if builder.lease and builder.told not in (None, marker, trashed):
            yield "the same keys give other data than those that a build was told"
    if any(content(state, name) != "whole" for name in state.readable):
        yield "a reader's data were taken away within the grace period"


class Result(NamedTuple):
    """``fault``: the first that was found, with the ``trace`` of steps to it. ``stuck``: states without a way to the end."""

    states: int
    steps: int
    fault: str | None = None
    trace: tuple[str, ...] = ()
    stuck: int = 0


SOUND = Protocol()


def explore(protocol: Protocol = SOUND, scope: Scope = QUICK[0], beginning: Iterable[State] | None = None) -> Result:
    """Visit all states breadth-first, up to the first fault.

    beginning : the states to begin with, by default all of the scope; the visits from one do not need those from another.
    """
    numbers: dict[State, int] = {}
    came_from: list[tuple[int, str]] = []
    before: list[list[int]] = []
    pending: deque[State] = deque()
    steps = 0

    def visit(state: State, source: int, step: str) -> str | None:
        state = _seen_by_readers(forgotten(state))
        number = numbers.setdefault(state, len(numbers))
        if number < len(came_from):
            before[number].append(source)
            return None
        came_from.append((source, step))
        before.append([source] if source >= 0 else [])
        pending.append(state)
        return next(faults(state), None)

    for state in initial_states(scope) if beginning is None else beginning:
        visit(state, -1, "")
    while pending:
        state = pending.popleft()
        source = numbers[state]
        for step, after in successors(state, protocol, scope):
            steps += 1
            if fault := visit(after, source, step):
                return Result(len(numbers), steps, fault, tuple(_trace(came_from, len(came_from) - 1)))
    ended = [number for state, number in numbers.items() if all(builder.at == "done" for builder in state.builders)]
    return Result(len(numbers), steps, stuck=len(numbers) - len(_reaching(ended, before)))


def _seen_by_readers(state: State) -> State:
    marker = state.names.now[0]
    if marker is None or marker in state.readable:
        return state
    return state._replace(readable=state.readable | {marker})


def _trace(came_from: list[tuple[int, str]], number: int) -> list[str]:
    steps: list[str] = []
    while number >= 0:
        number, step = came_from[number]
        steps.append(step)
    return steps[-2::-1]


def _reaching(ended: Iterable[int], before: list[list[int]]) -> set[int]:
    """The states from which one of ``ended`` can be reached."""
    found = set(ended)
    pending = list(found)
    while pending:
        new = [number for number in before[pending.pop()] if number not in found]
        found.update(new)
        pending += new
    return found
