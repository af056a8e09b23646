"""A lease marks a running process; that of a killed process expires."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import pytest
from distil_cache.cache.lease import STALE_SECONDS, file_time, lease, read_leases
from distil_cache.cache.maintenance.gc import collect
from distil_cache.cache.store import Cache
from distil_cache.errors import IntegrityError
from maintained_cache import SPECS, build, keys_of
from patience import PATIENCE, until


def test_a_lease_names_who_uses_what_and_is_gone_with_the_work(tmp_path: Path) -> None:
    with lease(tmp_path, "build", ["eps-1", "dire-2", "eps-1"], "photos") as path:
        assert path.name.rsplit("-", 2)[1] == str(os.getpid())
        leases = read_leases(tmp_path)
        assert leases.features == {"dire-2", "eps-1"}
        assert leases.datasets == {"photos"}
    assert read_leases(tmp_path).live == ()
    assert list(path.parent.iterdir()) == []


def test_a_thread_gives_signs_of_life_and_writes_the_lease_again_if_it_was_taken_away(tmp_path: Path) -> None:
    with lease(tmp_path, "compact", ["eps-1"], beat=0.02) as path:
        os.utime(path, (0, 0))
        until(lambda: path.stat().st_mtime > 0)
        path.unlink()
        until(path.exists)
        assert read_leases(tmp_path).features == {"eps-1"}


def test_ages_are_those_of_the_file_system_whatever_the_local_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with lease(tmp_path, "build", ["eps-1"]) as path:
        assert len(read_leases(tmp_path).live) == 1
        now = file_time(tmp_path)
        os.utime(path, (now - STALE_SECONDS - 1, now - STALE_SECONDS - 1))
        assert read_leases(tmp_path).stale == (path,)


def test_a_fresh_lease_that_cannot_be_parsed_is_an_error_for_every_reader(tmp_path: Path) -> None:
    (tmp_path / "builders").mkdir()
    (tmp_path / "builders" / "x-1-y.json").write_text("{}")
    with pytest.raises(IntegrityError, match="not a valid lease"):
        read_leases(tmp_path)


def build_and_stay(root: Path) -> None:
    with lease(root, "build", [spec.folder for spec in SPECS.values()], "pictures"):
        time.sleep(PATIENCE)


def test_the_lease_of_a_killed_builder_protects_for_a_while_and_then_goes(tmp_path: Path) -> None:
    root = tmp_path / "c"
    build(root, dict.fromkeys(keys_of(range(6)), "train"))
    build(root, dict.fromkeys(keys_of(range(6, 9)), "train"))
    builder = multiprocessing.get_context("fork").Process(target=build_and_stay, args=(root,))
    builder.start()
    until(lambda: list((root / "builders").glob("*.json")))
    builder.kill()
    builder.join()

    def removable() -> set[str]:
        return {item["kind"] for item in collect(Cache.open(root), delete_them=True, grace_hours=0)["items"]}

    assert removable() == set()
    (path,) = (root / "builders").glob("*.json")
    os.utime(path, (0, 0))
    assert removable() == {"build", "revision", "shard", "data"}
    assert not path.exists()
