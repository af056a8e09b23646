"""Leases: which processes use a cache, so that ``gc`` removes nothing they need.

A lease is a small file ``builders/HOST-PID-NONCE.json`` that names a dataset and the feature folders in use. A thread
touches it every 30 seconds. One that was not touched for ten minutes belongs to a killed process and is ignored. Ages
are measured against a file written just now in the same folder, so only the file system's clock matters.

A process that relies on the content of a cache takes its lease first and reads second. ``gc`` does the reverse: it
moves a marker to the trash first, reads the leases second, and restores the marker if a lease needs it. So at least one
of the two always sees the other.
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
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, FailFast, ValidationError

from ..errors import IntegrityError, ReadOnlyError, UserError
from ..storage import AnyPath, list_matching, path_exists, unreachable_on_error
from ..storage.atomic import TEMPORARY_PREFIX, create_file, make_folder, new_file_time, read_file, set_time

FOLDER = "builders"
BEAT_SECONDS = 30.0
STALE_SECONDS = 600.0
_SMALL = 1 << 20
LEASE_FILE = re.compile(r".+\.json")
"""Names of files that may be leases: a fresh one counts whatever its name."""
_LEASE_NAME = re.compile(r"[A-Za-z0-9._]+-\d+-[0-9a-f]{16}\.json")

Work = Literal["build", "compact", "import", "export", "train", "evaluate", "verify"]
"""What a process with a lease does."""


class Lease(BaseModel):
    """The content of a lease.

    Attributes
    ----------
    work
        What the process does.
    host, pid
        The process.
    dataset
        The dataset that it writes, or None.
    features
        Names of the feature folders that it uses.
    started
        When it began.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    work: Work
    host: str
    pid: int
    dataset: str | None
    features: Annotated[tuple[str, ...], FailFast()]
    started: AwareDatetime


@dataclass(frozen=True)
class Leases:
    """The leases of a cache.

    Attributes
    ----------
    live
        Those of running processes.
    stale
        The files that killed processes left.
    """

    live: tuple[Lease, ...]
    stale: tuple[AnyPath, ...]

    @property
    def features(self) -> frozenset[str]:
        """The feature folders in use."""
        return frozenset(folder for lease in self.live for folder in lease.features)

    @property
    def datasets(self) -> frozenset[str]:
        """The datasets being written."""
        return frozenset(lease.dataset for lease in self.live if lease.dataset is not None)


@contextmanager
def lease(
    root: AnyPath,
    work: Work,
    features: Iterable[str],
    dataset: str | None = None,
    *,
    beat: float = BEAT_SECONDS,
) -> Iterator[AnyPath]:
    """Hold a lease on a cache for the duration of a ``with`` block.

    In a read-only cache no lease can be written, and none is needed, since nothing is removed: the block runs without.

    Parameters
    ----------
    root
        The cache.
    work
        What the block does.
    features
        Names of the feature folders that it uses.
    dataset
        The dataset that it writes.
    beat
        Seconds between two touches of the file.

    Yields
    ------
    Path or RemotePath
        The lease's file.
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
    heartbeat = threading.Thread(target=_beat, args=(path, content, ended, beat), name="lease", daemon=True)
    heartbeat.start()
    try:
        yield path
    finally:
        ended.set()
        heartbeat.join()
        path.unlink(missing_ok=True)


def read_leases(root: AnyPath) -> Leases:
    """Read all leases of a cache.

    Raises
    ------
    IntegrityError
        If a fresh lease cannot be parsed, since it may name anything.
    UnreachableError
        If a lease cannot be read at the moment.
    """
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
            continue  # the process has just finished
        except ValidationError as error:
            raise IntegrityError(f"{path}: is not a valid lease. Delete it if no build is running.") from error
        except IntegrityError:
            if path_exists(path):
                raise
    return Leases(tuple(live), tuple(stale))


def file_time(root: AnyPath) -> float:
    """Return the current time of the cache's file system, in seconds since the epoch."""
    folder = root / FOLDER
    make_folder(folder)
    return new_file_time(folder / f"{TEMPORARY_PREFIX}clock-{secrets.token_hex(8)}")


def _beat(path: AnyPath, content: bytes, ended: threading.Event, seconds: float) -> None:
    """Touch the file until the work ends; write it again if another process deleted it as stale."""
    while not ended.wait(seconds):
        try:
            set_time(path, content)
        except FileNotFoundError:
            with contextlib.suppress(UserError):
                create_file(path, content)
        except OSError:
            continue  # the file system is unavailable: the next beat tries again
