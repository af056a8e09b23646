"""obstore against s3fs behind the operations of ``storage``: requests and CPU time a block, and the tests with injected faults.

    python benchmarks/object_stores.py [--rounds 3] [--json FILE]
    python benchmarks/object_stores.py --faults [obstore|s3fs]

The server is moto's on loopback, behind the proxy of the tests, which counts requests. Each library works in a process of its
own, in turns; its CPU time is that of all threads of that process. ``--faults`` runs the tests of ``tests/storage`` and
``tests/cache`` that go to S3; one that hangs is killed and passed over. Without the package obstore,
s3fs is measured alone.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))
LIBRARIES = ("s3fs", "obstore") if importlib.util.find_spec("obstore") else ("s3fs",)
FAULT_TESTS = (
    "tests/storage/test_storage_faults.py",
    "tests/storage/test_storage_remote.py",
    "tests/cache/test_cache_s3_faults.py",
)
SECONDS_A_FILE = 400
CHOICE = "DISTIL_CACHE_STORE_LIBRARY"
MIB = 1 << 20
_BIG = 32 * MIB
_SMALL = 256


class _ObstoreFileSystem(AbstractFileSystem):
    """The part of fsspec's interface that ``storage`` uses, by obstore; ``obstore.fsspec`` ignores the mode of a put.

    Parameters
    ----------
    endpoint_url, config_kwargs
        As those of s3fs, so that the same settings serve both.
    """

    protocol = ("s3",)

    def __init__(
        self, endpoint_url: str | None = None, config_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        settings = config_kwargs or {}
        self._client = {
            "allow_http": True,
            "connect_timeout": timedelta(seconds=settings.get("connect_timeout", 60)),
            "read_timeout": timedelta(seconds=settings.get("read_timeout", 60)),
            "timeout": timedelta(seconds=600),
        }
        attempts = settings.get("retries", {}).get("total_max_attempts", 5)
        self._retry = {"max_retries": attempts - 1, "retry_timeout": timedelta(seconds=180)}
        self._endpoint = endpoint_url or os.environ.get("AWS_ENDPOINT_URL")
        self._stores: dict[str, Any] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(path).removeprefix("s3://").rstrip("/")

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        with _errors(path):
            store, key = self._split(path)
            try:
                if key:
                    return _info(path, store.head(key))
            except FileNotFoundError:
                pass
            except Exception as error:
                if type(error).__name__ != "NotFoundError":
                    raise
            found = store.list_with_delimiter(key or None)
            if key and not found["objects"] and not found["common_prefixes"]:
                raise FileNotFoundError(path)
            return {"name": path, "size": 0, "type": "directory"}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        with _errors(path):
            store, key = self._split(path)
            found = store.list_with_delimiter(key or None)
        bucket = path.split("/")[0]
        entries = [{"name": f"{bucket}/{name}", "size": 0, "type": "directory"} for name in found["common_prefixes"]]
        return entries + [_info(f"{bucket}/{meta['path']}", meta) for meta in found["objects"]]

    def find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, detail: bool = False, **_: Any
    ) -> Any:
        with _errors(path):
            store, key = self._split(path)
            metas = [meta for chunk in store.list(key or None, chunk_size=1000) for meta in chunk]
        bucket = path.split("/")[0]
        found = {f"{bucket}/{meta['path']}": _info(f"{bucket}/{meta['path']}", meta) for meta in metas}
        if not found and key:
            whole = self.info(path)
            found = {} if whole["type"] == "directory" else {path: whole}
        return found

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        with _errors(path):
            store, key = self._split(path)
            if start is None or end is None:
                return bytes(store.get(key).bytes())
            return bytes(store.get_range(key, start=start, end=end))

    def cat_ranges(
        self, paths: list[str], starts: Any, ends: Any, max_gap: Any = None, on_error: str = "return", **_: Any
    ) -> Any:
        async def all_of_them() -> list[Any]:
            return await asyncio.gather(*map(one, paths, starts, ends), return_exceptions=True)

        async def one(path: str, start: int, end: int) -> bytes:
            with _errors(path):
                store, key = self._split(path)
                return bytes(await store.get_range_async(key, start=start, end=end)) if end > start else b""

        return asyncio.run(all_of_them())

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        with _errors(path):
            store, key = self._split(path)
            store.put(key, value, mode=mode, use_multipart=False)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        with _errors(rpath):
            store, key = self._split(rpath)
            store.put(key, Path(lpath))

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        with _errors(rpath), Path(lpath).open("wb") as file:
            store, key = self._split(rpath)
            for chunk in store.get(key).stream(min_chunk_size=8 * MIB):
                file.write(chunk)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        with _errors(path1):
            store, key = self._split(path1)
            store.copy(key, self._split(path2)[1])

    def rm_file(self, path: str) -> None:
        with _errors(path):
            store, key = self._split(path)
            store.delete(key)

    def rm(self, path: str, recursive: bool = False, **_: Any) -> None:
        for name in self.find(path):
            self.rm_file(name)

    def _split(self, path: str) -> tuple[Any, str]:
        from obstore.store import S3Store

        bucket, _, key = path.partition("/")
        if bucket not in self._stores:
            self._stores[bucket] = S3Store(
                bucket, endpoint=self._endpoint, client_options=self._client, retry_config=self._retry
            )
        return self._stores[bucket], key


@contextmanager
def _errors(path: str) -> Iterator[None]:
    """Raise Python's own errors for absence, presence and missing rights."""
    try:
        yield
    except Exception as error:
        kinds = {
            "NotFoundError": FileNotFoundError,
            "AlreadyExistsError": FileExistsError,
            "PermissionDeniedError": PermissionError,
            "UnauthenticatedError": PermissionError,
        }
        if (kind := kinds.get(type(error).__name__)) is not None and not isinstance(error, OSError):
            raise kind(path) from error
        raise


def _info(path: str, meta: Any) -> dict[str, Any]:
    return {"name": path, "size": meta["size"], "type": "file", "LastModified": meta["last_modified"]}


def pytest_configure() -> None:
    """Let a test run that loads this module as a plugin use the library that the environment names."""
    use(os.environ.get(CHOICE, "s3fs"))


def use(library: str) -> None:
    """Let ``s3://`` be served by a library in this process."""
    if library == "obstore":
        fsspec.register_implementation("s3", _ObstoreFileSystem, clobber=True)


def works(folder: Any) -> dict[str, tuple[int, Callable[[], object]]]:
    """Return what is measured: name -> (how many blocks or objects, a function that writes or reads them)."""
    from distil_cache.storage import read_many

    blocks = {"64 KiB": (64 << 10, 32), "1 MiB": (MIB, 16), "8 MiB": (8 * MIB, 4)}
    found: dict[str, tuple[int, Callable[[], object]]] = {}
    for name, (size, count) in blocks.items():
        data = os.urandom(size)

        def create(data: bytes = data, size: int = size, count: int = count) -> None:
            taken = [(folder / f"new-{size}-{number}").create(data) for number in range(count)]
            assert all(taken)

        def read(size: int = size, count: int = count) -> None:
            for number in range(count):
                start = number * size % (_BIG - size + 1)
                assert len((folder / "big").read_range(start, start + size)) == size

        found[f"create {name}"] = count, create
        found[f"read {name}"] = count, read
    found["create, taken"] = 32, lambda: [(folder / "small" / "0").create(b"another") for _ in range(32)]
    found["list, then read all at once"] = _SMALL, lambda: read_many((folder / "small").children())
    found["list"] = _SMALL, lambda: (folder / "small").below()
    found["stat"] = 32, lambda: [(folder / "big").stat() for _ in range(32)]
    found["delete"] = 32, lambda: [(folder / f"new-{64 << 10}-{number}").unlink() for number in range(32)]
    return found


def child(library: str, url: str) -> None:
    """Do each work for every line of input that names it; print its CPU and wall time in seconds."""
    use(library)
    from distil_cache.storage import to_path

    folder = to_path(url)
    folder.exists()  # loads the library and opens a connection
    todo = works(folder)
    print("ready", flush=True)
    for line in sys.stdin:
        work = todo[line.strip()][1]
        before, began = _cpu(), time.perf_counter()
        work()
        print(json.dumps([_cpu() - before, time.perf_counter() - began]), flush=True)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def measure(rounds: int) -> list[dict[str, Any]]:
    from distil_cache.storage import to_path
    from faulty_proxy import faulty_proxy
    from s3_server import SETTINGS, make_bucket, serving

    found: list[dict[str, Any]] = []
    with serving() as server, faulty_proxy(server) as proxy:
        os.environ |= {**SETTINGS, "AWS_ENDPOINT_URL": server}
        for round_number in range(rounds):
            children = {}
            for library in LIBRARIES:
                bucket = f"{library}-{round_number}"
                make_bucket(server, bucket)
                folder: Any = to_path(f"s3://{bucket}/blocks")
                (folder / "big").write(os.urandom(_BIG))
                for number in range(_SMALL):
                    (folder / "small" / str(number)).write(b"marker " * 100)
                command = [sys.executable, __file__, "--child", library, str(folder)]
                environment = {**os.environ, "AWS_ENDPOINT_URL": proxy.address}
                process = subprocess.Popen(
                    command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
                assert process.stdout is not None
                process.stdout.readline()  # it is ready
                children[library] = process
            for work, (count, _) in works(folder).items():
                for library, process in children.items():
                    assert process.stdin is not None
                    assert process.stdout is not None
                    proxy.calm()
                    process.stdin.write(f"{work}\n")
                    process.stdin.flush()
                    cpu, wall = json.loads(process.stdout.readline())
                    methods = Counter(request.method for request in proxy.requests)
                    found.append(
                        {
                            "library": library,
                            "work": work,
                            "count": count,
                            "cpu_s": cpu,
                            "wall_s": wall,
                            "requests": dict(methods),
                        }
                    )
            for process in children.values():
                assert process.stdin is not None
                process.stdin.close()
                process.wait()
    return found


def show(found: list[dict[str, Any]]) -> None:
    print(
        f"{'':28}"
        + "".join(f"{library + ': requests':>20}{'CPU ms each':>24}{'wall ms each':>14}" for library in LIBRARIES)
    )
    for work in dict.fromkeys(entry["work"] for entry in found):
        cells = []
        for library in LIBRARIES:
            here = [entry for entry in found if (entry["work"], entry["library"]) == (work, library)]
            cpu = sorted(entry["cpu_s"] / entry["count"] * 1e3 for entry in here)
            wall = median(entry["wall_s"] / entry["count"] * 1e3 for entry in here)
            requests = " ".join(f"{number} {method}" for method, number in sorted(here[0]["requests"].items()))
            cells.append(f"{requests:>20}{f'{median(cpu):.2f} ({cpu[0]:.2f} - {cpu[-1]:.2f})':>24}{wall:>14.1f}")
        print(f"{work:28}" + "".join(cells))


def run_faults(library: str) -> None:
    """Run the tests that go to S3 with a library and print those that do not pass; after one that hangs, those behind it."""
    search = os.pathsep.join([str(ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, CHOICE: library, "PYTHONPATH": search}
    pytest = [sys.executable, "-m", "pytest", "-p", "object_stores", "-p", "no:cacheprovider", "-m", "not slow"]
    ends: Counter[str] = Counter()
    for tests in FAULT_TESTS:
        seen: list[str] = []
        while True:
            command = [*pytest, "-v", "--tb=line", *(f"--deselect={test}" for test in seen), tests]
            with subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE) as process:
                watch = threading.Timer(SECONDS_A_FILE, process.kill)
                watch.start()
                assert process.stdout is not None
                lines = process.stdout.read().splitlines()
                watch.cancel()
            verdicts = dict(line.split(" ")[:2] for line in lines if line.startswith(tests) and " " in line)
            ends.update(verdict or "HANGS" for verdict in verdicts.values())
            for line in lines:
                if line.startswith(("FAILED", "ERROR", "E ")) or "Error: " in line:
                    print(f"{library}: {line}", flush=True)
            seen += verdicts
            hanging = [test for test, verdict in verdicts.items() if not verdict]
            if not hanging:
                break
            print(f"{library}: HANGS {hanging}", flush=True)
    print(f"{library}: {dict(ends)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--faults", choices=LIBRARIES)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
    elif options.faults:
        run_faults(options.faults)
    else:
        found = measure(options.rounds)
        show(found)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
