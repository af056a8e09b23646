"""Builds on a disk that fills up, breaks, or may only be read; each in a process of its own.

As a program it does what its first argument names and prints one JSON list: ``python fault_disk.py WHAT FOLDER FORMAT``.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from distil_cache.cache.maintenance.listing import summary
from distil_cache.cache.store import Cache
from distil_cache.errors import UserError
from fault_builder import Order, build, write_images
from fault_checks import differences, problems, snapshot
from fault_injection import ACTS, STAGES, Watch, in_child

NOBODY = 65534


def outcome(work: Callable[[], Any]) -> list[Any]:
    """Run in a child and return the name and text of the error that ended it, or ``done`` and the result."""

    def told() -> list[Any]:
        try:
            return ["done", work()]
        except UserError as error:
            return [type(error).__name__, str(error)]
        except KeyboardInterrupt:
            return ["KeyboardInterrupt", ""]

    answer: list[Any] = in_child(told)[1]
    return answer


def again(order: Order, expected: dict[str, Any]) -> list[str]:
    """Say what is wrong with a cache now and after one more build, which nothing disturbs."""
    there = (order.cache / "cache.json").exists()
    wrong: list[str] = in_child(lambda: problems(order.cache))[1] if there else []
    in_child(lambda: build(order))
    wrong += in_child(lambda: problems(order.cache))[1]
    return wrong or differences(in_child(lambda: snapshot(order.cache))[1], expected)


def undisturbed(folder: Path, form: str) -> tuple[Order, dict[str, Any], dict[str, int]]:
    """Build once; return the order, what came of it, and the events by stage."""
    order = Order(folder / "whole", (write_images(folder / "images", {"train": 6, "test": 3}),), form=form)

    def watched() -> dict[str, int]:
        watch = Watch(order.cache)
        build(order)
        return dict(watch.counts)

    counts = in_child(watched)[1]
    return order, in_child(lambda: snapshot(order.cache))[1], counts


def can_mount(folder: Path) -> bool:
    """Say whether this process may mount a small file system."""
    try:
        with small_disk(folder / "try", 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """Mount a file system in memory of so many bytes; yields a function that mounts it anew with other options."""

    def mount(*options: str) -> None:
        subprocess.run(["mount", *options, str(folder)], check=True, capture_output=True)

    folder.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs")
    try:
        yield lambda options: mount("-o", f"remount,{options}")
    finally:
        gc.unfreeze()  # a build freezes what is there, so the files that an error's traceback holds would stay open
        gc.collect()
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def full(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """Build on disks of growing size until one is large enough."""
    whole, expected, _ = undisturbed(folder, form)
    for size in range(48, 4096, 48):
        with small_disk(folder / "disk", size << 10) as remount:
            order = replace(whole, cache=folder / "disk" / "cache")
            kind, text = outcome(lambda order=order: build(order))
            remount("size=64m")
            yield {"size": size, "kind": kind, "text": text, "wrong": again(order, expected)}
        if kind == "done":
            return


def limited(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """Build with limits on the size of a file, which needs no right to mount."""
    whole, expected, _ = undisturbed(folder, form)
    for limit in (16, 500, 1500, 6000, 1 << 20):
        order = replace(whole, cache=folder / f"limit-{limit}")

        def work(order: Order = order, limit: int = limit) -> Any:
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            try:
                return build(order)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)

        kind, text = outcome(work)
        yield {"size": limit, "kind": kind, "text": text, "wrong": again(order, expected)}


def refused(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """Refuse, or interrupt, a call in the middle of each stage: a full disk, a broken one, Ctrl-C."""
    whole, expected, counts = undisturbed(folder, form)
    for number, stage in enumerate(stage for stage in STAGES if stage in counts):
        act = ("full", "interrupt", "broken")[number % 3]
        at = f"{stage}:{counts[stage] // 2}"
        order = replace(whole, cache=folder / stage)

        def work(order: Order = order, at: str = at, act: str = act) -> Any:
            Watch(order.cache, at=at, act=ACTS[act])
            return build(order)

        kind, text = outcome(work)
        yield {"at": at, "act": act, "kind": kind, "text": text, "wrong": again(order, expected)}
        shutil.rmtree(order.cache)


def after_the_link(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """Fail, or be interrupted, between the link that makes a marker and the flush of its folder."""
    whole, expected, _ = undisturbed(folder, form)
    for act in ("broken", "interrupt"):
        order = replace(whole, cache=folder / act)

        def work(order: Order = order, act: str = act) -> Any:
            link, fsync = os.link, os.fsync

            def linked(source: Any, target: Any) -> None:
                link(source, target)
                if Path(target).parent.name == "shards":
                    os.fsync = lambda handle: ACTS[act]() or fsync(handle)  # type: ignore[func-returns-value]

            os.link = linked  # type: ignore[assignment]
            return build(order)

        kind, text = outcome(work)
        shards = in_child(lambda order=order: [len(store.markers()) for store in Cache.open(order.cache).features()])[1]
        yield {"act": act, "kind": kind, "text": text, "shards": sum(shards), "wrong": again(order, expected)}


def read_only(folder: Path, form: str) -> Iterator[dict[str, Any]]:
    """Use a cache that may only be read: as another user, and, where mounting is allowed, on a read-only file system."""
    whole, expected, _ = undisturbed(folder, form)
    before = _names(whole.cache)

    def everything_imported() -> None:
        """Do all of it once: the other user may have no right to read the installation."""
        with tempfile.TemporaryDirectory() as place:
            order = replace(whole, cache=Path(place) / "cache")
            build(order)
            snapshot(order.cache)
            problems(order.cache)
            summary(Cache.open(order.cache))

    more = replace(whole, sources=(*whole.sources, write_images(folder / "more", {"train": 4}, first=50)))
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)

    def asked(order: Order, user: int | None) -> Iterator[tuple[str, list[Any]]]:
        def become() -> None:
            if user is not None:
                everything_imported()
                os.setgid(user)
                os.setuid(user)

        for what, work in {
            "build of nothing": lambda: build(order)["computed"],
            "build of more": lambda: build(replace(more, cache=order.cache)),
            "reading": lambda: differences(json.loads(json.dumps(snapshot(order.cache))), expected),
            "verify": lambda: problems(order.cache),
            "ls": lambda: len(summary(Cache.open(order.cache))["builds"]),
        }.items():
            yield what, outcome(lambda work=work: become() or work())  # type: ignore[func-returns-value]

    for what, (kind, text) in asked(whole, NOBODY if os.geteuid() == 0 else None):
        yield {"where": "user", "what": what, "kind": kind, "text": text}
    if os.geteuid() == 0 and can_mount(folder):
        with small_disk(folder / "mounted", 64 << 20) as remount:
            order = replace(whole, cache=folder / "mounted" / "cache")
            shutil.copytree(whole.cache, order.cache)
            remount("ro")
            for what, (kind, text) in asked(order, None):
                yield {"where": "mount", "what": what, "kind": kind, "text": text}
    yield {"where": "user", "what": "names", "kind": "done", "text": _names(whole.cache) == before}


def _names(cache: Path) -> list[str]:
    return sorted(path.relative_to(cache).as_posix() for path in cache.rglob("*"))


def main() -> None:
    what, folder, form = sys.argv[1:]
    works = {
        "full": full,
        "limited": limited,
        "refused": refused,
        "after-the-link": after_the_link,
        "read-only": read_only,
    }
    print(json.dumps(list(works[what](Path(folder), form))))


if __name__ == "__main__":
    main()
