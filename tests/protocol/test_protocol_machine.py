"""The real cache on a simulated disk and in a simulated store: drawn schedules, planted bugs, and faults that were found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import pytest
from distil_cache.cache.shards.marker import MARKER_NAME
from distil_cache.storage import list_matching, list_names
from distil_cache.storage.atomic import fsync_folder
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from protocol_machine import MACHINES, PLANTED, SPEC, Kind, ViolationError, World, planted
from simulated_disk import SimulatedDisk

WorldOf = Callable[[Kind], World]


@pytest.fixture
def world_of() -> Iterator[WorldOf]:
    with ExitStack() as stack:

        def make(kind: Kind) -> World:
            world = World(kind)
            stack.callback(world.close)
            return world

        yield make


@pytest.fixture
def disk(world_of: WorldOf) -> World:
    return world_of("disk")


@pytest.mark.parametrize("kind", MACHINES)
def test_a_drawn_schedule_loses_nothing(kind: Kind) -> None:
    run_state_machine_as_test(
        MACHINES[kind],
        settings=settings(
            max_examples=8, stateful_step_count=12, deadline=None, database=None, derandomize=True,
            phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


# A schedule for each planted bug


def marker_before_data(world: World) -> None:
    """A builder is killed when it comes to write its data."""
    builder = world.start_build("a", [4])
    world.advance(builder, "data")
    world.check()


def no_second_look(world: World) -> None:
    """A whole build between the scan of gc and the removal."""
    gc = world.start_gc()
    world.advance(gc, "removal")
    world.finish(world.start_build("b", [0, 1]))
    world.finish(gc)


def head_before_record(world: World) -> None:
    """A builder is killed when it comes to write its record."""
    builder = world.start_build("a", [4])
    world.advance(builder, "build record")
    world.kill(builder)
    world.check()


def late_lease(world: World) -> None:
    """Gc without any grace runs when a builder has read the index."""
    builder = world.start_build("b", [0, 1])
    world.advance(builder, "dataset")
    world.finish(world.start_gc(0))
    world.finish(builder)


def rename_for_link(world: World) -> None:
    """Two builders move the head of one data set at once."""
    builders = [world.start_build("a", [4]), world.start_build("a", [5])]
    for builder in builders:
        world.advance(builder, "head")
    world.finish(*builders)


def grace_ignored(world: World) -> None:
    """Gc removes what a reader has found just before."""
    reader = world.start_reader()
    reader.advance(lambda call: call.stage == "data")
    world.finish(world.start_gc())
    world.finish(reader)


SCHEDULES = {
    schedule.__name__: schedule
    for schedule in (
        marker_before_data, no_second_look, head_before_record, late_lease, rename_for_link, grace_ignored,
    )
}  # fmt: skip


def test_every_planted_bug_has_a_schedule() -> None:
    assert SCHEDULES.keys() == PLANTED.keys()


@pytest.mark.parametrize("kind", get_args(Kind))
@pytest.mark.parametrize("bug", PLANTED)
def test_a_planted_bug_is_caught_and_the_code_as_it_is_stands_the_same_schedule(
    bug: str, kind: Kind, world_of: WorldOf
) -> None:
    sound = world_of(kind)
    SCHEDULES[bug](sound)
    sound.check_end()
    sound.close()
    with planted(bug), pytest.raises(ViolationError):
        SCHEDULES[bug](world_of(kind))


# What the model and drawn schedules found in the code


@pytest.mark.parametrize("what", ["marker", "table", "record", "head"])
def test_what_a_killed_builder_linked_and_did_not_flush_is_on_disk_once_the_next_one_relies_on_it(
    what: str, disk: World
) -> None:
    folder = {
        "marker": disk.root / "features" / SPEC.folder / "shards",
        "table": disk.root / "datasets" / "a",
        "record": disk.root / "builds",
        "head": disk.root / "datasets" / "a",
    }[what]
    suffix = {"table": ".parquet", "head": "3.json"}.get(what, ".json")

    def names() -> int:
        return sum(name.endswith(suffix) and not name.startswith(".") for name in list_names(folder))

    before = names()
    first = disk.start_build("a", [4])
    disk.advance_until(first, lambda: names() > before)
    disk.kill(first)
    disk.finish(disk.start_build("a", [4]))
    disk.lose_power(lambda change: True)
    disk.check()


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_shard_that_a_killed_gc_took_away_is_there_when_a_build_beside_it_has_ended(
    kind: Kind, world_of: WorldOf
) -> None:
    world = world_of(kind)
    shards = world.root / "features" / SPEC.folder / "shards"
    before = len(_markers(world))
    gc = world.start_gc()
    world.advance(gc, "removal")
    builder = world.start_build("b", [0, 1])
    world.advance(builder, "head")
    world.advance_until(gc, lambda: len(_markers(world)) < before)
    world.kill(gc)
    world.finish(world.start_gc())
    world.finish(builder)
    assert len(list_matching(shards, MARKER_NAME)) == before


@pytest.mark.parametrize("kind", get_args(Kind))
def test_data_whose_trashed_marker_was_replaced_by_a_newer_one_keep_their_grace_period(
    kind: Kind, world_of: WorldOf
) -> None:
    world = world_of(kind)
    reader = world.start_reader()
    reader.advance(lambda call: call.stage == "data")
    world.finish(world.start_gc())
    world.finish(world.start_build("b", [0, 1]))
    world.finish(world.start_build("b", [4]))
    world.finish(world.start_gc())
    world.finish(reader)


def test_a_local_copy_is_known_as_one_after_a_power_failure(disk: World) -> None:
    disk.finish(disk.start_reader(copies=True))
    mark = str(disk.copy / "local-copy.json")
    disk.lose_power({number for number, change in enumerate(disk.disk.changes) if mark in change.paths}.__contains__)
    disk.finish(disk.start_reader(copies=True))


def _markers(world: World) -> list[object]:
    return list(list_matching(world.root / "features" / SPEC.folder / "shards", MARKER_NAME))


@pytest.mark.parametrize("flushed", [False, True])
def test_a_power_failure_never_leaves_a_name_in_a_folder_that_is_removed(tmp_path: Path, flushed: bool) -> None:
    """A drawn schedule found this, in the simulated disk and not in the code."""
    root, spare = tmp_path / "disk", tmp_path / "spare"
    root.mkdir()
    spare.mkdir()
    disk = SimulatedDisk(root, spare)
    with disk.watched():
        (root / "from").mkdir()
        (root / "from" / "file").write_bytes(b"content")
        (root / "from" / "file").rename(root / "file")
        (root / "from").rmdir()
        if flushed:
            fsync_folder(root)
    of_the_move = [number for number, change in enumerate(disk.changes) if str(root / "file") in change.paths]
    disk.fail(lambda number: number in of_the_move)
    assert (root / "file").exists() is flushed
    assert (root / "from" / "file").exists() is not flushed
