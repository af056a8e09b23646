"""The local copy of shards: fetched once and checked, bounded, shared by processes, and never believed for ever."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from counting_store import CountingStore, change, operations
from distil_cache.cache.local_copy import reader as module
from distil_cache.cache.local_copy.reader import LocalCopy
from distil_cache.cache.shards.format import checksum
from distil_cache.cache.shards.marker import Marker
from distil_cache.cache.spec import Spec
from distil_cache.cache.store import FORMATS, Cache, FeatureStore
from distil_cache.errors import IntegrityError, UserError
from distil_cache.storage import AnyPath, RemotePath
from patience import PATIENCE

ROWS, SHARDS = 8, 4
PLENTY = 1 << 30


class Toy(Spec):
    """A feature with nothing to set."""

    feature: Literal["toy"] = "toy"
    algorithm: Literal[1] = 1


class Scene:
    """A local cache with a few shards of about the same size, and the same cache in the counting store."""

    def __init__(self, folder: Path, target: RemotePath, form: str = "webdataset") -> None:
        self.here = Cache.create(folder / "cache").feature(Toy(), form)
        rng = np.random.default_rng(1)
        self.rows = {}
        for number in range(SHARDS):
            keys = [f"{number * ROWS + place:032x}" for place in range(ROWS)]
            rows = rng.integers(0, 200, (ROWS, 3, 16, 16), dtype=np.uint8)
            self.rows[self.here.commit(keys, rows).shard] = rows
        self.target = target
        target.upload(folder / "cache")
        self.shards = list(self.rows)
        self.size = max(self.marker(shard).bytes for shard in self.shards)
        self.folder = folder / "copy"

    def marker(self, shard: str) -> Marker:
        return self.here.marker(shard)

    def store(self, most: int = PLENTY, root: AnyPath | None = None) -> FeatureStore:
        """The feature, as a command opens it that begins now."""
        found = Cache.open(root or self.target, LocalCopy.at(self.folder, most)).open_feature(self.here.folder.name)
        operations()
        return found

    def copy_of(self, shard: str) -> Path:
        return self.folder / self.here.folder.name / self.marker(shard).data

    def copied(self) -> list[str]:
        return [shard for shard in self.shards if self.copy_of(shard).exists()]

    def held(self) -> int:
        found = 0
        for folder in self.folder.glob("*"):
            with contextlib.suppress(FileNotFoundError):  # deleted just now
                for path in folder.glob("*-*.tar"):
                    found += path.stat().st_size
        return found

    def assert_reads(self, store: FeatureStore, shard: str) -> None:
        np.testing.assert_array_equal(store.read(shard, 2, 7), self.rows[shard][2:7])

    def age(self, shard: str, seconds: float) -> None:
        """As if a shard had been used last so long ago."""
        record = self.copy_of(shard).with_name(f"{shard}.json")
        os.utime(record, (record.stat().st_atime, time.time() - seconds))


@pytest.fixture
def scene(tmp_path: Path, counted: RemotePath) -> Scene:
    return Scene(tmp_path, counted)


@pytest.mark.parametrize("form", FORMATS)
def test_a_shard_is_fetched_once_and_then_read_without_asking_the_store(
    tmp_path: Path, counted: RemotePath, form: str
) -> None:
    scene = Scene(tmp_path, counted, form)
    store = scene.store()
    for shard in scene.shards:
        scene.assert_reads(store, shard)
    assert scene.copied() == scene.shards
    assert all(checksum(scene.copy_of(shard))[1] == scene.marker(shard).sha256 for shard in scene.shards)
    for again in (store, scene.store()):  # the second is a later training's
        for shard in scene.shards:
            scene.assert_reads(again, shard)
    assert operations() == []
    assert [path.name for path in scene.folder.iterdir() if path.name.startswith(".tmp")] == []


def test_a_cache_on_a_slow_disk_is_copied_too(scene: Scene) -> None:
    root = scene.here.folder.parent.parent
    scene.assert_reads(scene.store(root=root), scene.shards[0])
    assert scene.copied() == scene.shards[:1]
    scene.here.folder.joinpath("shards", scene.marker(scene.shards[0]).data).unlink()
    scene.assert_reads(scene.store(root=root), scene.shards[0])


def test_what_was_not_used_for_the_longest_time_makes_room(scene: Scene) -> None:
    a, b, c, d = scene.shards
    for shard in (a, b):
        scene.assert_reads(scene.store(2 * scene.size), shard)
    scene.age(a, 20)
    scene.age(b, 30)
    scene.assert_reads(scene.store(2 * scene.size), a)  # used again: b has been idle for longer
    scene.age(a, 10)
    store = scene.store(2 * scene.size)
    scene.assert_reads(store, c)
    assert scene.copied() == [a, c]
    scene.assert_reads(store, d)
    assert scene.copied() == [c, d]
    assert scene.held() <= 2 * scene.size


def test_what_this_command_used_stays_and_the_rest_is_read_from_the_store(scene: Scene) -> None:
    store = scene.store(2 * scene.size)
    for _ in range(2):
        for shard in scene.shards:
            scene.assert_reads(store, shard)
            store._opened._shards.clear()
    assert scene.copied() == scene.shards[:2]
    scene.age(scene.shards[0], 7200)  # for more than an hour, however long the command has been running
    scene.assert_reads(pickle_of(store, since=time.time() - 10_000), scene.shards[2])
    assert scene.copied() == scene.shards[1:3]


def pickle_of(store: FeatureStore, since: float) -> FeatureStore:
    """The store as a worker process of a command that began earlier has it."""
    copy = store.local_copy
    assert copy is not None
    earlier = pickle.loads(pickle.dumps(LocalCopy(copy.folder, copy.max_bytes, since)))
    return FeatureStore(store.folder, local_copy=earlier)


def test_a_shard_that_is_larger_than_the_copy_may_be_is_read_from_the_store(scene: Scene) -> None:
    store = scene.store(scene.size - 1)
    for shard in scene.shards:
        scene.assert_reads(store, shard)
    assert scene.copied() == []


def test_data_that_arrive_damaged_are_fetched_once_more(scene: Scene) -> None:
    left = [1]

    def damage(path: str, data: bytes) -> bytes:
        if path.endswith(".tar") and left:
            left.pop()
            return data[:-1] + b"x"
        return data

    CountingStore.answer = staticmethod(damage)
    scene.assert_reads(scene.store(), scene.shards[0])
    assert left == []
    assert checksum(scene.copy_of(scene.shards[0]))[1] == scene.marker(scene.shards[0]).sha256


def test_damage_in_the_cache_is_reported_and_leaves_nothing_in_the_copy(scene: Scene) -> None:
    shard = scene.shards[0]
    change(scene.target / "features" / scene.here.folder.name / "shards" / scene.marker(shard).data, lambda x: x[::-1])
    with pytest.raises(IntegrityError, match=f"shard {shard} have a wrong checksum, read twice"):
        scene.store().read(shard)
    assert scene.held() == 0
    assert list(scene.folder.glob(".tmp*")) == []


@pytest.mark.parametrize("harm", ["short", "gone", "header", "old"])
def test_damage_in_the_copy_is_noticed_and_repaired(scene: Scene, harm: str) -> None:
    shard = scene.shards[0]
    store = scene.store()
    scene.assert_reads(store, shard)
    path = scene.copy_of(shard)
    whole = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "short":
        path.write_bytes(whole[:-600])
    elif harm == "header":  # of a row, and found where it is read, also in what is open
        path.write_bytes(whole.replace(b"NUMPY", b"numpy"))
        scene.assert_reads(store, shard)
        assert path.read_bytes() == whole
        path.write_bytes(whole.replace(b"NUMPY", b"numpy"))
    else:  # a bit of a row, which no reader sees: found by the checksum when the last check is a week ago
        flipped = bytearray(whole)
        flipped[1200] ^= 1
        path.write_bytes(flipped)
        os.utime(path, (time.time(), time.time() - module.CHECK_SECONDS - 1))
    scene.assert_reads(scene.store(), shard)
    assert path.read_bytes() == whole
    assert time.time() - path.stat().st_mtime < 600


def test_what_is_deleted_while_it_is_open_is_read_on(scene: Scene) -> None:
    shard = scene.shards[0]
    store = scene.store()
    scene.assert_reads(store, shard)
    for path in (scene.copy_of(shard), scene.copy_of(shard).with_name(f"{shard}.json")):
        path.unlink()
    operations()
    scene.assert_reads(store, shard)
    assert operations() == []


def test_a_copy_deleted_between_check_and_open_is_fetched_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = scene.shards[0]
    store = scene.store()
    fetch, times = LocalCopy.path, []

    def then_delete(self: LocalCopy, feature: str, data: AnyPath, marker: Marker) -> Path | None:
        found = fetch(self, feature, data, marker)
        times.append(found)
        if len(times) == 1 and found is not None:
            found.unlink()  # as another process that makes room does
        return found

    monkeypatch.setattr(LocalCopy, "path", then_delete)
    scene.assert_reads(store, shard)
    assert len(times) == 2
    assert scene.copied() == [shard]


def test_a_shard_rebuilt_in_the_cache_is_found_though_its_copy_is_damaged(scene: Scene) -> None:
    shard = scene.shards[0]
    scene.assert_reads(scene.store(), shard)
    old = scene.marker(shard)
    shards = scene.here.shards
    assert isinstance(shards, Path)
    (shards / f"{shard}.json").unlink()
    (shards / old.data).unlink()
    scene.here.commit(old.keys, scene.rows[shard])
    (scene.target / "features").remove()
    (scene.target / "features").upload(shards.parent.parent)
    assert scene.marker(shard).data != old.data
    scene.copy_of(shard).with_name(old.data).write_bytes(b"")
    scene.assert_reads(scene.store(), shard)
    assert scene.copied() == [shard]


def test_many_threads_fetch_each_shard_once(scene: Scene) -> None:
    store = scene.store()

    def read() -> None:
        for shard in scene.shards:
            scene.assert_reads(FeatureStore(store.folder, local_copy=store.local_copy), shard)

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fetched = [path for operation, path, *_ in CountingStore.asked if operation == "read" and path.endswith(".tar")]
    assert len(fetched) == SHARDS
    assert scene.copied() == scene.shards


READER = """
import sys
from pathlib import Path
from distil_cache.cache.local_copy.reader import LocalCopy
from distil_cache.cache.store import Cache
root, folder, most, name = sys.argv[1:5]
store = Cache.open(root, LocalCopy.at(Path(folder), int(most))).open_feature(name)
"""
READ_ALL = "print(*[store.read(shard).tobytes().hex() for shard in sys.argv[5:]])"


def start(scene: Scene, program: str, most: int = PLENTY, before: str = "") -> subprocess.Popen[str]:
    cache, name = scene.here.folder.parent.parent, scene.here.folder.name
    command = [sys.executable, "-c", before + READER + program, str(cache), str(scene.folder), str(most), name]
    return subprocess.Popen([*command, *scene.shards], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_processes_share_a_copy_that_stays_within_its_bound(scene: Scene) -> None:
    readers = [start(scene, READ_ALL, 2 * scene.size) for _ in range(2)]
    most = 0
    while any(reader.poll() is None for reader in readers):
        most = max(most, scene.held())
        time.sleep(0.002)
    most = max(most, scene.held())  # they may have been faster than these looks
    expected = " ".join(rows.tobytes().hex() for rows in scene.rows.values())
    assert [(one.communicate()[0].strip(), one.returncode) for one in readers] == [(expected, 0)] * 2
    assert 0 < most <= 2 * scene.size
    assert len(scene.copied()) == 2


def test_room_that_a_process_keeps_counts_and_what_it_leaves_when_killed_is_deleted(scene: Scene) -> None:
    half = scene.marker(scene.shards[2]).data
    keep = f"""
with store.local_copy._budget.reserve({scene.size}) as room:
    (room / "{half}").write_bytes(b"x" * 100)
    print(room, flush=True)
    sys.stdin.read()
"""
    cache, name = scene.here.folder.parent.parent, scene.here.folder.name
    command = [sys.executable, "-c", READER + keep, str(cache), str(scene.folder), str(2 * scene.size), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        room = Path(process.stdout.readline().strip())
        store = scene.store(2 * scene.size)
        for shard in scene.shards[:2]:
            scene.assert_reads(store, shard)
        assert scene.copied() == scene.shards[:1]
        assert (room / half).exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    store._opened._shards.clear()
    scene.assert_reads(store, scene.shards[1])
    assert scene.copied() == scene.shards[:2]
    assert not room.exists()


def test_a_full_disk_is_reported_once_and_the_store_is_read(scene: Scene) -> None:
    LocalCopy.at(scene.folder)
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({scene.size // 2},) * 2)\n"
    reader = start(scene, READ_ALL, before=limit)
    found, told = reader.communicate(timeout=PATIENCE)
    assert found.strip() == " ".join(rows.tobytes().hex() for rows in scene.rows.values())
    assert told.count("cannot be written") == 1
    assert "read from the cache itself" in told
    assert scene.held() == 0
    assert list(scene.folder.glob(".tmp*")) == []


def test_files_that_a_strange_store_names_outside_of_a_shard_are_not_written(scene: Scene, tmp_path: Path) -> None:
    shard = scene.shards[0]
    store = scene.store()
    data = store.shards / scene.marker(shard).data
    whole = data.read_bytes()
    data.unlink()
    CountingStore().pipe_file(f"{data}/../../../stolen", whole)
    with pytest.raises(IntegrityError):
        store.read(shard)
    assert not any("stolen" in path.name for path in tmp_path.rglob("*"))


def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"a")
    with pytest.raises(UserError, match="neither empty nor a local copy"):
        LocalCopy.at(tmp_path / "photos")
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"]


def test_by_default_a_copy_may_hold_half_of_what_is_free_or_held_already(scene: Scene) -> None:
    for shard in scene.shards:
        scene.assert_reads(scene.store(), shard)
    disk = os.statvfs(scene.folder)
    found = LocalCopy.at(scene.folder).max_bytes
    assert found == pytest.approx((disk.f_bavail * disk.f_frsize + scene.held()) / 2, rel=0.02)
