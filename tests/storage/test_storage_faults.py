"""Operations on an object store while the network and the store fail: retried, correct, and never half done."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from distil_cache.storage import RemotePath, read_many, to_path
from distil_cache.storage.retry import TRIES
from faulty_proxy import Chance, FaultyProxy, Kind
from s3_server import point_at

DATA = os.urandom(5000)
WAIT = 0.5
TRANSIENT: tuple[Kind, ...] = ("500", "503", "reset", "lost", "cut", "stall", "slow")
Act = Callable[[RemotePath, Path], object]


@pytest.fixture
def folder(s3_bucket: str, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> RemotePath:
    """An empty folder behind the proxy, with a client that times out after half a second and tries twice."""
    use(s3_proxy, monkeypatch, attempts=2)
    remote = to_path(f"{s3_bucket}/folder")
    assert isinstance(remote, RemotePath)
    return remote


SLOW = pytest.param("slow", marks=pytest.mark.slow)
"""Answers that come only after the time that a client waits."""


def use(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, attempts: int) -> None:
    patience = {"read_timeout": WAIT, "connect_timeout": WAIT, "retries": {"total_max_attempts": attempts}}
    point_at(proxy.address, monkeypatch, config_kwargs=patience)


def upload(remote: RemotePath, local: Path) -> object:
    for name in ("up/1", "up/deep/2"):
        (local / name).parent.mkdir(parents=True, exist_ok=True)
        (local / name).write_bytes(DATA)
    (remote / "new").upload(local / "up")
    return sorted(entry.size for entry in (remote / "new").below())


def download(remote: RemotePath, local: Path) -> object:
    remote.download(local / "down")
    return {path.name: path.read_bytes() for path in (local / "down").iterdir()}


def open_and_read(remote: RemotePath, _: Path) -> object:
    with (remote / "a").open() as file:
        file.seek(100)
        return file.read()


READING: Mapping[str, tuple[Act, object]] = {
    "read_bytes": (lambda remote, _: (remote / "a").read_bytes(), DATA),
    "read_range": (lambda remote, _: (remote / "a").read_range(10, 4000), DATA[10:4000]),
    "read_many": (lambda remote, _: read_many(remote.below()), [DATA, DATA]),
    "open": (open_and_read, DATA[100:]),
    "stat": (lambda remote, _: (remote / "a").stat().st_size, len(DATA)),
    "exists": (lambda remote, _: ((remote / "a").exists(), (remote / "none").exists()), (True, False)),
    "below": (lambda remote, _: [entry.path.name for entry in remote.below()], ["a", "b"]),
    "children": (lambda remote, _: [entry.path.name for entry in remote.children()], ["a", "b"]),
    "glob": (lambda remote, _: [found.name for found in remote.parent.glob("gl*/a")], ["a"]),
    "download": (download, {"a": DATA, "b": DATA}),
}
WRITING: Mapping[str, tuple[Act, object]] = {
    "create": (lambda remote, _: ((remote / "new").create(DATA), (remote / "new").read_bytes()), (True, DATA)),
    "create_taken": (lambda remote, _: ((remote / "a").create(b"other"), (remote / "a").read_bytes()), (False, DATA)),
    "write": (lambda remote, _: ((remote / "a").write(b"2"), (remote / "a").read_bytes())[1], b"2"),
    "upload": (upload, [len(DATA)] * 2),
    "copy_to": (lambda remote, _: ((remote / "a").copy_to(remote / "c"), (remote / "c").read_bytes())[1], DATA),
    "unlink": (lambda remote, _: ((remote / "a").unlink(), (remote / "a").exists())[1], False),
    "remove": (lambda remote, _: (remote.remove(), remote.below())[1], []),
}


def outcomes(acts: Mapping[str, tuple[Act, object]], folder: RemotePath, local: Path) -> dict[str, object]:
    """Run all of these concurrently, each in its own folder; name -> result or error."""

    def outcome(name: str) -> object:
        (local / name).mkdir()
        try:
            return acts[name][0](folder / name, local / name)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(acts)) as pool:
        return dict(zip(acts, pool.map(outcome, acts), strict=True))


def fill(acts: Mapping[str, object], folder: RemotePath) -> None:
    for name in acts:
        for file in ("a", "b"):
            (folder / name / file).write(DATA)


def most_alike(proxy: FaultyProxy) -> int:
    """How often the same was asked for, at most."""
    return max(Counter((request.method, request.target, request.range) for request in proxy.requests).values())


@pytest.mark.parametrize("kind", [*(kind for kind in TRANSIENT if kind != "slow"), SLOW])
def test_every_request_may_fail_once(folder: RemotePath, s3_proxy: FaultyProxy, tmp_path: Path, kind: Kind) -> None:
    acts = {**READING, **WRITING}
    fill(acts, folder)
    s3_proxy.calm()
    s3_proxy.chance = Chance(seed=0, share=1, kinds=(kind,), in_a_row=1)
    assert outcomes(acts, folder, tmp_path) == {name: expected for name, (_, expected) in acts.items()}
    assert s3_proxy.injected[kind] >= len(acts)
    assert set(s3_proxy.injected) == {kind}


@pytest.mark.parametrize("seed", range(3))
def test_faults_of_all_kinds_at_random(folder: RemotePath, s3_proxy: FaultyProxy, tmp_path: Path, seed: int) -> None:
    acts = {**READING, **WRITING}
    fill(acts, folder)
    s3_proxy.calm()
    s3_proxy.chance = Chance(seed, share=0.5, kinds=TRANSIENT, in_a_row=1)
    assert outcomes(acts, folder, tmp_path) == {name: expected for name, (_, expected) in acts.items()}
    assert len(s3_proxy.injected) > 3


@pytest.mark.parametrize("kind", ["500", "503", "reset", SLOW])
def test_a_store_that_never_answers_is_an_os_error_after_a_bounded_number_of_tries(
    folder: RemotePath, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Kind
) -> None:
    acts = {**READING, **WRITING}
    fill(acts, folder)
    use(s3_proxy, monkeypatch, attempts=1)
    s3_proxy.calm()
    s3_proxy.chance = Chance(seed=0, share=1, kinds=(kind,), in_a_row=10**6)
    found = outcomes(acts, folder, tmp_path)
    assert TRIES <= most_alike(s3_proxy) <= 2 * TRIES  # aiohttp itself repeats a request whose old connection breaks
    for name, error in found.items():
        assert isinstance(error, OSError), name
        assert not isinstance(error, (FileNotFoundError, FileExistsError, PermissionError)), name
        assert error.errno, name
        assert error.strerror, name
        assert str(error.filename).startswith(str(folder)), name


def test_bodies_that_are_always_cut_are_an_os_error_and_never_short_data(
    folder: RemotePath, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    acts = {name: READING[name] for name in ("read_bytes", "read_range", "open", "download")}
    fill(acts, folder)
    (folder / "many" / "a").write(DATA)
    entries = (folder / "many").below()
    s3_proxy.calm()
    s3_proxy.inject("cut", "GET", "*/[ab]", times=10**6)
    found = outcomes(acts, folder, tmp_path)
    assert {name: type(error) for name, error in found.items()} == dict.fromkeys(acts, OSError)
    (error,) = read_many(entries)
    assert isinstance(error, OSError)


def test_a_forbidden_object_is_a_permission_error_at_once(
    folder: RemotePath, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    acts = {**READING, **WRITING}
    del acts["read_many"]
    fill(acts, folder)
    s3_proxy.calm()
    s3_proxy.inject("403", times=10**6)
    found = outcomes(acts, folder, tmp_path)
    assert most_alike(s3_proxy) == 1
    for name, error in found.items():
        assert isinstance(error, PermissionError), name
        assert str(folder) in str(error), name


@pytest.mark.parametrize("kind", ["lost", "slow", "cut", "stall"])
def test_a_create_whose_answer_was_lost_has_won(folder: RemotePath, s3_proxy: FaultyProxy, kind: Kind) -> None:
    rule = s3_proxy.inject(kind, "PUT", conditional=True)
    assert (folder / "marker").create(b"mine")
    assert rule.seen >= 2
    assert (folder / "marker").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_create_where_another_object_exists_loses_whatever_happens(
    folder: RemotePath, s3_proxy: FaultyProxy, kind: Kind
) -> None:
    (folder / "marker").write(b"others")
    s3_proxy.calm()
    s3_proxy.inject(kind, "PUT", conditional=True)
    assert not (folder / "marker").create(b"mine")
    assert (folder / "marker").read_bytes() == b"others"
    assert s3_proxy.injected[kind] == 1


def test_a_create_beside_another_that_is_under_way_is_made_again(folder: RemotePath, s3_proxy: FaultyProxy) -> None:
    s3_proxy.inject("409", "PUT", conditional=True, times=2)
    assert (folder / "marker").create(b"mine")
    assert (folder / "marker").read_bytes() == b"mine"
    assert s3_proxy.injected["409"] == 2


def test_a_create_that_conflicts_with_one_that_succeeds_has_lost(folder: RemotePath, s3_proxy: FaultyProxy) -> None:
    s3_proxy.inject("409", "PUT", "*/marker", conditional=True)
    other = threading.Thread(target=lambda: (folder / "marker").write(b"others"))

    def meanwhile() -> None:
        while not s3_proxy.injected["409"]:
            time.sleep(0.005)
        other.start()

    watch = threading.Thread(target=meanwhile)
    watch.start()
    won = (folder / "marker").create(b"mine")
    watch.join()
    other.join()
    assert not won
    assert (folder / "marker").read_bytes() == b"others"


@pytest.mark.parametrize("seed", range(2))
def test_of_creates_that_race_through_a_bad_network_exactly_one_wins(
    folder: RemotePath, s3_proxy: FaultyProxy, seed: int
) -> None:
    kinds: tuple[Kind, ...] = ("lost", "reset", "500", "slow", "cut")
    s3_proxy.chance = Chance(seed, share=0.4, kinds=kinds, in_a_row=2)
    markers = [f"marker-{number}" for number in range(3)]
    writers = [f"writer {number}".encode() for number in range(4)]
    with ThreadPoolExecutor(12) as pool:
        won = {
            (marker, writer): pool.submit((folder / marker).create, writer) for marker in markers for writer in writers
        }
    s3_proxy.calm()
    for marker in markers:
        winners = [writer for writer in writers if won[marker, writer].result()]
        assert winners == [(folder / marker).read_bytes()]


def test_what_is_being_put_is_seen_whole_or_not_at_all(folder: RemotePath, s3_proxy: FaultyProxy) -> None:
    s3_proxy.chance = Chance(seed=1, share=0.5, kinds=("lost", "reset", "500", "cut"), in_a_row=1)
    remote, data = folder / "big", os.urandom(300_000)
    seen: list[int] = []
    writer = threading.Thread(target=lambda: remote.create(data))
    writer.start()
    while writer.is_alive() or not seen:
        seen += [entry.size for entry in folder.below()]
        if remote.exists():
            assert remote.read_bytes() == data
    writer.join()
    assert set(seen) == {len(data)}


def test_an_unreachable_server_is_an_os_error_that_names_the_url(
    folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_at("http://127.0.0.1:9", monkeypatch, config_kwargs={"retries": {"total_max_attempts": 1}})
    with pytest.raises(OSError, match="Could not connect") as caught:
        (folder / "a").read_bytes()
    assert caught.value.filename == str(folder / "a")
