"""Leases: who is at work on a cache, so that nothing is removed under them.

A lease is a small file ``builders/HOST-PID-NONCE.json`` that names a dataset and the feature folders in use. A thread
touches it every 30 seconds; one that was not touched for ten minutes belongs to a killed process and counts for nothing.
Ages are measured against a file freshly written beside it, so only the file system's clock matters, not this machine's.

Whoever relies on what a cache holds takes the lease first and looks second. ``gc`` does it the other way round: it sets
a marker aside first, looks for leases second, and puts the marker back if there is one. So one of the two always sees
the other.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import secrets
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from ..errors import IntegrityError, ReadOnlyError, UserError
from ..storage import AnyPath, RemotePath, list_matching, path_exists, unreachable_on_error
from ..storage.atomic import TEMPORARY_PREFIX, create_file, make_folder, new_file_time, read_file

FOLDER = "builders"
BEAT_SECONDS = 30.0
STALE_SECONDS = 600.0
_SMALL = 1 << 20
LEASE_FILE = re.compile(r".+\.json")
"""Files that may be leases: a fresh one counts whatever it is called."""
_LEASE_NAME = re.compile(r"[A-Za-z0-9._]+-\d+-[0-9a-f]{16}\.json")


class Lease(BaseModel):
    """Who uses what since when. ``features`` are names of feature folders, ``dataset`` is None where none is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    work: Literal["build", "compact", "import", "export"]
    host: str
    pid: int
    dataset: str | None
    features: tuple[str, ...]
    started: AwareDatetime


@dataclass(frozen=True)
class Leases:
    """The leases of a cache: those of processes that live, and the files that killed ones left."""

    live: tuple[Lease, ...]
    stale: tuple[AnyPath, ...]

    @property
    def features(self) -> frozenset[str]:
        """The feature folders that somebody uses."""
        return frozenset(folder for lease in self.live for folder in lease.features)

    @property
    def datasets(self) -> frozenset[str]:
        """The datasets that somebody writes."""
        return frozenset(lease.dataset for lease in self.live if lease.dataset is not None)


@contextmanager
def lease(
    root: AnyPath,
    work: Literal["build", "compact", "import", "export"],
    features: Iterable[str],
    dataset: str | None = None,
    *,
    beat: float = BEAT_SECONDS,
) -> Iterator[AnyPath]:
    """Hold a lease on the cache at ``root`` for the length of a ``with`` block; yields its file.

    features : folder names. beat : seconds between two signs of life. Where the cache may only be read no lease can be
    written, and nothing will be: the block runs without.
    """
    host = re.sub(r"[^A-Za-z0-9.]+", "_", platform.node()) or "host"
    path = root / FOLDER / f"{host}-{os.getpid()}-{secrets.token_hex(8)}.json"
    held = Lease(
        work=work, host=host, pid=os.getpid(), dataset=dataset, features=tuple(sorted(set(features))),
        started=datetime.now(UTC).replace(microsecond=0),
    )  # fmt: skip
    content = held.model_dump_json(indent=2).encode() + b"\n"
    try:
        make_folder(path.parent)
        create_file(path, content)
    except ReadOnlyError:
        yield path
        return
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(path, content, ended, beat), name="lease", daemon=True)
    heart.start()
    try:
        yield path
    finally:
        ended.set()
        heart.join()
        path.unlink(missing_ok=True)


def read_leases(root: AnyPath) -> Leases:
    """Read all leases of a cache. One that is fresh and cannot be understood is an IntegrityError: it may hold anything."""
    live: list[Lease] = []
    stale: list[AnyPath] = []
    paths = list_matching(root / FOLDER, LEASE_FILE)
    now = file_time(root) if paths else 0.0
    for path in paths:
        try:
            with unreachable_on_error(path):
                age = now - path.stat().st_mtime
            if age > STALE_SECONDS:
                stale += [path] if _LEASE_NAME.fullmatch(path.name) else []
            else:
                live.append(Lease.model_validate_json(read_file(path, _SMALL)))
        except FileNotFoundError:
            continue  # it has just ended
        except ValidationError as error:
            raise IntegrityError(f"{path}: is no lease. Delete it if no build is running.") from error
        except IntegrityError:
            if path_exists(path):
                raise
    return Leases(tuple(live), tuple(stale))


def file_time(root: AnyPath) -> float:
    """Return the present time of the cache's file system in seconds: the time of a file written now."""
    folder = root / FOLDER
    make_folder(folder)
    return new_file_time(folder / f"{TEMPORARY_PREFIX}clock-{secrets.token_hex(8)}")


def _beat(path: AnyPath, content: bytes, ended: threading.Event, seconds: float) -> None:
    """Touch the file until the work ends; write it again if somebody took this process for dead."""
    while not ended.wait(seconds):
        try:
            path.write(content) if isinstance(path, RemotePath) else os.utime(path)
        except FileNotFoundError:
            with contextlib.suppress(UserError):
                create_file(path, content)
        except OSError:
            continue  # a file system that is away for a moment: the next beat tries again
