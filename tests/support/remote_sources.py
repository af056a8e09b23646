"""Small sources in an object store, for tests: a bucket in memory, and what is put into it."""

from __future__ import annotations

from typing import Any

import pytest
from distil_cache.storage import RemotePath
from fsspec.implementations.memory import MemoryFileSystem
from image_bytes import noise, saved


@pytest.fixture
def memory_bucket(request: pytest.FixtureRequest) -> RemotePath:
    """A place in memory that no other test uses."""
    return RemotePath(f"memory://{''.join(letter if letter.isalnum() else '-' for letter in request.node.name)}")


def picture(seed: int) -> bytes:
    return saved(noise(20, 24, seed))


def put(folder: RemotePath, files: dict[str, bytes]) -> RemotePath:
    """Write objects below a folder; returns it."""
    for name, data in files.items():
        (folder / name).write(data)
    return folder


def small_set(folder: RemotePath, count: int = 3) -> RemotePath:
    """Write as many pictures of each class; returns the folder."""
    files = {f"{kind}/{n}.png": picture(n + 100 * (kind == "fake")) for kind in ("real", "fake") for n in range(count)}
    return put(folder, files)


class Forbidden(MemoryFileSystem):
    """A store that shows the objects of the open folder alone, and lists all but those of ``unlisted``."""

    protocol = "forbidden"
    open_folder = "real"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.replace("forbidden://", "memory://")))

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        if path.endswith("/unlisted"):
            raise PermissionError("Access Denied")
        found: list[Any] = super().ls(path, detail, **options)
        return found

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        if f"/{self.open_folder}/" not in path:
            raise PermissionError("Access Denied")
        data: bytes = super().cat_file(path, start, end, **options)
        return data
