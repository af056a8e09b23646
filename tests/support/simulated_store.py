"""An object store in memory, ``simulated://``, whose requests are steps of the process that makes them, and whose answers get lost.

A request that changes something may be carried out although its answer is lost, so that the client repeats it; or it may
be late: the client takes it for lost and repeats it, and it is carried out once more at any time afterwards, even when
the client is dead.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar, Literal

import fsspec
from fault_injection import stage_of
from fsspec.implementations.memory import MemoryFileSystem
from simulated_processes import Process, pause

Fault = Literal["answer lost", "request lost", "late"]


class SimulatedStore(MemoryFileSystem):
    """``faults``: what becomes of the next requests that change something. ``late``: requests on their way."""

    protocol = "simulated"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    faults: ClassVar[list[Fault]] = []
    late: ClassVar[list[Callable[[], None]]] = []

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        inside: str = MemoryFileSystem._strip_protocol(str(path).removeprefix("simulated://"))
        return inside

    @classmethod
    def clear(cls) -> None:
        cls.store.clear()
        cls.pseudo_dirs[:] = [""]
        cls.faults.clear()
        cls.late.clear()

    @classmethod
    def deliver(cls) -> None:
        """Carry out the requests that were late."""
        while cls.late:
            try:
                cls.late.pop(0)()
            except OSError:
                continue  # refused, as a conditional put whose object is there by now

    @classmethod
    def age(cls, seconds: float) -> None:
        """Make everything older."""
        for file in cls.store.values():
            file.created -= timedelta(seconds=seconds)
            file.modified -= timedelta(seconds=seconds)

    def _wait(self, path: str, operation: str) -> None:
        inside = self._strip_protocol(path).strip("/").split("/", 2)
        pause(stage_of(inside[2] if len(inside) > 2 else "", operation, ""), operation)

    def _change(self, path: str, operation: str, carry_out: Callable[[], None]) -> None:
        self._wait(path, operation)
        fault = self.faults.pop(0) if self.faults and isinstance(threading.current_thread(), Process) else None
        if fault in (None, "answer lost"):
            carry_out()
        if fault == "late":
            self.late.append(carry_out)
        if fault is not None:
            raise TimeoutError(fault)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        put = super().pipe_file
        self._change(path, "put", lambda: put(path, value, mode=mode, **options))

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        def copy() -> None:
            MemoryFileSystem.pipe_file(self, path2, MemoryFileSystem.cat_file(self, path1))

        self._change(path2, "copy", copy)

    def rm_file(self, path: str) -> None:
        remove = super().rm_file
        self._change(path, "delete", lambda: remove(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        self._wait(path, "read")
        data: bytes = super().cat_file(path, start, end, **options)
        return data

    def info(self, path: str, **options: Any) -> dict[str, Any]:
        self._wait(path, "stat")
        found: dict[str, Any] = super().info(path, **options)
        return found

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        self._wait(path, "list")
        found: list[Any] = super().ls(path, detail, **options)
        return found


fsspec.register_implementation("simulated", SimulatedStore, clobber=True)
