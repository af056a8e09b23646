"""What paths of object stores do, in memory and over the real S3 protocol."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from distil_cache.storage import RemotePath, read_many, to_path
from patience import PATIENCE
from s3_server import SETTINGS, make_bucket

AWKWARD = (
    "a b", " a", "ünï€.png", "日本.png", "a#b", "a?b", "a%b", "a%20b", "a+b", "a&b=c", "a;b", "a*b", "[a]b", "a\\b",
    "it's", 'a"b', "~a", "a:b", ".hidden", "a,b", "a|b", "<a>", "{a}", "é",
)  # fmt: skip


@pytest.fixture(params=["memory", "s3"])
def store(request: pytest.FixtureRequest) -> RemotePath:
    """An empty folder in memory, or on the S3 server."""
    if request.param == "s3":
        url = request.getfixturevalue("s3_bucket")
    else:
        pytest.importorskip("fsspec")
        url = f"memory://{request.node.name.replace('/', '-')}"
    remote = to_path(f"{url}/folder")
    assert isinstance(remote, RemotePath)
    return remote


def test_what_was_put_is_there(store: RemotePath) -> None:
    remote = store / "a.bin"
    assert not remote.exists()
    before = time.time()
    remote.write(b"some bytes")
    assert remote.exists()
    assert remote.is_file()
    assert not remote.is_dir()
    assert remote.read_bytes() == b"some bytes"
    assert remote.stat().st_size == 10
    assert before - 2 <= remote.stat().st_mtime <= time.time() + 2
    assert store.is_dir()
    assert not store.is_file()


def test_a_write_replaces(store: RemotePath) -> None:
    (store / "a").write(b"the first, which is longer")
    (store / "a").write(b"second")
    assert (store / "a").read_bytes() == b"second"


def test_an_empty_object_is_an_object(store: RemotePath) -> None:
    assert (store / "empty").create()
    (store / "also").write(b"")
    assert (store / "empty").is_file()
    assert (store / "empty").read_bytes() == b""
    assert (store / "also").read_range(0, 0) == b""
    assert [entry.size for entry in store.below()] == [0, 0]
    with (store / "empty").open() as file:
        assert file.read() == b""


def test_only_the_first_create_wins(store: RemotePath) -> None:
    assert (store / "a").create(b"in ", b"two pieces")
    assert not (store / "a").create(b"another")
    assert (store / "a").read_bytes() == b"in two pieces"


def test_creating_what_is_there_already_with_the_same_bytes_says_that_it_is_there(store: RemotePath) -> None:
    assert (store / "a").create(b"same")
    assert (store / "a").create(b"sa", memoryview(b"me"))


def test_of_many_racing_creates_one_wins(store: RemotePath) -> None:
    won: list[int] = []

    def race(number: int) -> None:
        if (store / "marker").create(f"writer {number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert (store / "marker").read_bytes() == f"writer {won[0]}".encode()


def test_a_range_is_read_alone(store: RemotePath) -> None:
    data = os.urandom(5000)
    (store / "a").write(data)
    assert (store / "a").read_range(100, 4000) == data[100:4000]
    assert (store / "a").read_range(4999, 5000) == data[4999:]
    assert (store / "a").read_range(70, 70) == b""


@pytest.mark.parametrize(("start", "stop"), [(10, 21), (30, 31)])
def test_a_range_past_the_end_is_an_error(store: RemotePath, start: int, stop: int) -> None:
    (store / "a").write(b"x" * 20)
    with pytest.raises(OSError, match="a"):
        (store / "a").read_range(start, stop)


def test_an_open_object_reads_and_seeks_like_a_file(store: RemotePath, tmp_path: Path) -> None:
    data = os.urandom(3000)
    (store / "a").write(data)
    (tmp_path / "a").write_bytes(data)
    with (store / "a").open("rb") as there, (tmp_path / "a").open("rb") as here:
        for act in (
            lambda file: file.read(10), lambda file: file.seek(-100, os.SEEK_END), lambda file: file.read(),
            lambda file: file.read(5), lambda file: file.seek(7), lambda file: file.seek(20, os.SEEK_CUR),
            lambda file: file.tell(), lambda file: file.read(2000), lambda file: file.seek(5000),
            lambda file: file.read(1), lambda file: file.seek(0), lambda file: file.read(),
        ):  # fmt: skip
            assert act(there) == act(here)


def test_listings_show_what_is_below_and_directly_below(store: RemotePath) -> None:
    for name in ("b/x", "b/y", "b/deep/er/z", "a", "c", "b.txt"):
        (store / name).write(name.encode())
    below = store.below()
    names = [entry.path.relative_to(store).as_posix() for entry in below]
    assert names == ["a", "b/deep/er/z", "b/x", "b/y", "b.txt", "c"]
    assert [entry.size for entry in below] == [len(name) for name in names]
    assert all(abs(entry.mtime - time.time()) < PATIENCE for entry in below)
    assert [(entry.path.name, entry.is_folder) for entry in store.children()] == [
        ("a", False), ("b", True), ("b.txt", False), ("c", False),
    ]  # fmt: skip
    assert sorted(remote.name for remote in store.iterdir()) == ["a", "b", "b.txt", "c"]
    assert [entry.path for entry in (store / "b" / "x").below()] == [store / "b" / "x"]


def test_a_listing_leaves_out_neighbours_whose_names_begin_alike(store: RemotePath) -> None:
    for name in ("eps/1", "eps-2/1", "epsilon", "eps2/1"):
        (store / name).write(b"x")
    assert [entry.path for entry in (store / "eps").below()] == [store / "eps" / "1"]
    assert [entry.path for entry in (store / "eps").children()] == [store / "eps" / "1"]
    (store / "eps").remove()
    assert [entry.path.relative_to(store).as_posix() for entry in store.below()] == ["eps-2/1", "eps2/1", "epsilon"]


def test_listings_are_never_remembered(store: RemotePath) -> None:
    assert store.below() == []
    (store / "a").write(b"1")
    assert [entry.path.name for entry in store.children()] == ["a"]
    _put_elsewhere(str(store / "b"))
    assert [entry.path.name for entry in store.children()] == ["a", "b"]
    assert (store / "b").is_file()
    (store / "a").unlink()
    assert [entry.path.name for entry in store.below()] == ["b"]
    assert not (store / "a").exists()


def test_patterns_find_what_pathlib_finds(store: RemotePath, tmp_path: Path) -> None:
    for name in ("a1/x.json", "a1/y.txt", "a2/x.json", "b1/x.json", "top.json", "a1/deep/z.json", "[ab]1.json"):
        (store / name).write(b"{}")
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    for pattern in ("*", "*.json", "a*/*.json", "*/x.json", "a1", "?1/*", "[ab]1/x.json", "a1/deep/*", "no/*"):
        found = [remote.relative_to(store).as_posix() for remote in store.glob(pattern)]
        assert found == sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob(pattern)), pattern


def test_awkward_names_come_back_as_they_were(store: RemotePath, tmp_path: Path) -> None:
    for name in AWKWARD:
        remote = store / name
        assert remote.create(name.encode())
        assert not remote.create(b"another")
        assert remote.is_file()
        assert remote.read_bytes() == name.encode()
        assert to_path(str(remote)) == remote
        remote.download(tmp_path / name)
        assert (tmp_path / name).read_bytes() == name.encode()
    assert [entry.path.name for entry in store.below()] == sorted(AWKWARD)
    assert [entry.path.name for entry in store.children()] == sorted(AWKWARD)
    for name in AWKWARD:
        (store / name).unlink()
    assert store.below() == []


def test_awkward_names_are_names_of_folders_too(store: RemotePath) -> None:
    for name in AWKWARD:
        (store / name / "a").write(b"1")
    assert [(entry.path.name, entry.is_folder) for entry in store.children()] == [
        (name, True) for name in sorted(AWKWARD)
    ]
    for name in AWKWARD:
        assert (store / name).is_dir()
        assert [entry.path for entry in (store / name).below()] == [store / name / "a"]
    (store / AWKWARD[0]).remove()
    assert len(store.below()) == len(AWKWARD) - 1


def test_what_is_removed_is_gone_and_may_be_gone_already(store: RemotePath) -> None:
    for name in ("a", "t/1", "t/2/3", "t2"):
        (store / name).write(b"x")
    (store / "a").unlink(missing_ok=True)
    (store / "a").unlink(missing_ok=True)
    (store / "t").remove()
    (store / "t").remove()
    (store / "t2").remove()
    assert store.below() == []
    assert not store.exists()


def test_a_tree_goes_up_and_comes_back_the_same(store: RemotePath, tmp_path: Path) -> None:
    made = {"zarr.json": b"{}", "c/0/0": os.urandom(3000), "c/0/1": b"", "ü b/#1": b"x"}
    for name, data in made.items():
        (tmp_path / "up" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "up" / name).write_bytes(data)
    (store / "tree").upload(tmp_path / "up")
    assert {entry.path.relative_to(store / "tree").as_posix(): entry.size for entry in (store / "tree").below()} == {
        name: len(data) for name, data in made.items()
    }
    (store / "tree").download(tmp_path / "down")
    there = {path.relative_to(tmp_path / "down").as_posix(): path.read_bytes() for path in _files(tmp_path / "down")}
    assert there == made


def test_a_file_goes_up_and_comes_back_the_same(store: RemotePath, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(os.urandom(1000))
    (store / "a").upload(tmp_path / "a")
    (store / "a").download(tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_copy_is_another_object(store: RemotePath) -> None:
    (store / "a").write(b"copied")
    (store / "a").copy_to(store / "x" / "b")
    (store / "a").unlink()
    assert (store / "x" / "b").read_bytes() == b"copied"


def test_many_objects_are_read_at_once_with_an_error_instead_of_a_lost_one(store: RemotePath) -> None:
    for number in range(20):
        (store / str(number)).write(str(number).encode() * number)
    entries = store.below()
    (store / "7").unlink()
    found = read_many(entries)
    for entry, data in zip(entries, found, strict=True):
        if entry.path.name == "7":
            assert isinstance(data, FileNotFoundError)
        else:
            assert data == entry.path.name.encode() * int(entry.path.name)
    assert read_many([]) == []


@pytest.mark.parametrize(
    "act",
    [
        lambda remote, folder: remote.read_bytes(),
        lambda remote, folder: remote.read_range(0, 3),
        lambda remote, folder: remote.stat(),
        lambda remote, folder: remote.open(),
        lambda remote, folder: remote.download(folder / "x"),
        lambda remote, folder: remote.copy_to(remote.parent / "y"),
    ],
    ids=["read_bytes", "read_range", "stat", "open", "download", "copy_to"],
)
def test_what_is_not_there_is_a_file_not_found(
    store: RemotePath, tmp_path: Path, act: Callable[[RemotePath, Path], object]
) -> None:
    with pytest.raises(FileNotFoundError):
        act(store / "nothing", tmp_path)


def test_an_object_whose_name_leads_out_of_its_folder_is_not_listed_and_not_downloaded(
    s3_bucket: str, tmp_path: Path
) -> None:
    store = to_path(f"{s3_bucket}/tree")
    assert isinstance(store, RemotePath)
    (store / "a").write(b"x")
    (store / "../../stolen").write(b"x")
    assert [entry.path for entry in store.below()] == [store / "a"]
    store.download(tmp_path / "deep" / "down")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a"]


def test_a_folder_is_no_file(store: RemotePath) -> None:
    (store / "folder" / "a").write(b"x")
    with pytest.raises(OSError, match="folder"):
        (store / "folder").stat()
    with pytest.raises(OSError, match="folder"):
        (store / "folder").read_bytes()


def test_a_reader_sees_an_old_or_a_new_object_and_never_a_mixture(store: RemotePath) -> None:
    remote, stop = store / "replaced", threading.Event()
    versions = {b"short", b"a much longer version" * 50}

    def rewrite() -> None:
        while not stop.is_set():
            for version in versions:
                remote.write(version)
                time.sleep(0.001)

    remote.write(b"short")
    thread = threading.Thread(target=rewrite)
    thread.start()
    seen: set[bytes] = set()
    try:
        for number in range(2000):
            seen.add(remote.read_bytes())
            if number > 30 and seen >= versions:
                break
    finally:
        stop.set()
        thread.join()
    assert seen == versions


# Over processes


def test_a_forked_process_uses_the_store_beside_its_parent(s3_bucket: str) -> None:
    remote = to_path(f"{s3_bucket}/a")
    assert isinstance(remote, RemotePath)
    remote.write(b"before the fork")
    assert remote.read_bytes() == b"before the fork"
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def child(number: int) -> None:
        remote.with_name(f"child-{number}").create(b"x")
        answers.put(remote.read_bytes())

    children = [context.Process(target=child, args=(number,)) for number in range(3)]
    for process in children:
        process.start()
    for process in children:
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert [answers.get() for _ in children] == [b"before the fork"] * 3
    assert len(remote.parent.children()) == 4


def test_a_path_travels_to_another_process(s3_bucket: str) -> None:
    remote = to_path(f"{s3_bucket}/a b/ü")
    assert isinstance(remote, RemotePath)
    remote.write(b"seen")
    code = "import pickle, sys; sys.stdout.buffer.write(pickle.loads(sys.stdin.buffer.read()).read_bytes())"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(remote), capture_output=True, check=True)
    assert done.stdout == b"seen"


# Errors


def test_a_missing_bucket_is_named(s3_bucket: str) -> None:
    for act in (
        lambda remote: remote.create(b"x"),
        lambda remote: remote.write(b"x"),
        lambda remote: remote.read_bytes(),
    ):
        with pytest.raises(OSError, match="s3://no-such-bucket-anywhere/x"):
            act(to_path("s3://no-such-bucket-anywhere/x"))


def test_missing_credentials_are_an_os_error_that_says_so_at_once(
    s3_server: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # Another set of options, so that no client with credentials is found again.
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": s3_server, "default_block_size": 12345})
    remote = to_path(f"{s3_bucket}/x")
    assert isinstance(remote, RemotePath)
    monkeypatch.setattr("distil_cache.storage.retry.time.sleep", lambda seconds: pytest.fail("it is tried again"))
    with pytest.raises(OSError, match="credentials"):
        remote.create(b"x")
    with pytest.raises(OSError, match="credentials"):
        remote.exists()


def test_a_process_finds_the_server_by_its_environment_alone(s3_server: str) -> None:
    make_bucket(s3_server, "by-environment")
    code = "from distil_cache.storage import to_path; print(to_path('s3://by-environment/x').create(b'1'))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FSSPEC_"))}
    for variable in ("FSSPEC_S3_ENDPOINT_URL", "AWS_ENDPOINT_URL"):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**environment, **SETTINGS, variable: s3_server}, capture_output=True,
            text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "True"


def _put_elsewhere(url: str) -> None:
    """Write an object as another client would, past everything that this one may remember."""
    import fsspec

    protocol, _, path = url.partition("://")
    fsspec.filesystem(protocol, skip_instance_cache=True).pipe_file(path, b"elsewhere")


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
