"""A store in the memory of this process, ``counted://``, that notes what it is asked and fails or lies when it is told to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import fsspec
import pytest
from distil_cache.storage import RemotePath
from fsspec.implementations.memory import MemoryFileSystem


class CountingStore(MemoryFileSystem):
    """``asked`` : (operation, path, start, stop) of each request. ``answer`` : what becomes of the bytes of a read."""

    protocol = "counted"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    asked: ClassVar[list[tuple[str, str, int | None, int | None]]] = []
    answer: ClassVar[Callable[[str, bytes], bytes]] = staticmethod(lambda path, data: data)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        inside: str = MemoryFileSystem._strip_protocol(str(path).removeprefix("counted://"))
        return inside

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self.asked.append(("read", path, start, end))
        return type(self).answer(path, super().cat_file(path, start, end, **options))

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self.asked.append(("stat", path, None, None))
        found: dict[str, Any] = super().info(path, **options)
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        self.asked.append(("list", path, None, None))
        found: list[Any] = super().ls(path, detail, **options)
        return found

    def find(self, path: str, *arguments: Any, **options: Any) -> Any:
        self.asked.append(("list", path, None, None))
        before = len(self.asked)
        found = super().find(path, *arguments, **options)
        del self.asked[before:]  # some versions list each folder on the way
        return found


fsspec.register_implementation("counted", CountingStore, clobber=True)


@pytest.fixture
def counted() -> RemotePath:
    """An empty folder in the counting store."""
    CountingStore.store.clear()
    CountingStore.pseudo_dirs[:] = [""]
    CountingStore.asked.clear()
    CountingStore.answer = staticmethod(lambda path, data: data)
    return RemotePath("counted://bucket/cache")


def operations() -> list[str]:
    """What was asked since the last call."""
    found = [operation for operation, *_ in CountingStore.asked]
    CountingStore.asked.clear()
    return found


def change(place: RemotePath, to: Callable[[bytes], bytes]) -> None:
    """Put something else in the place of an object."""
    place.write(to(place.read_bytes()))
