"""Messages between a build and its workers, as JSON: keys and paths to the worker, small records back.

Dask wraps these texts in its own messages. They contain no image, no tensor and no pickled object of this package.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...choices import IMAGE_ALGORITHMS
from ..execution.tasks import TaskReport, TaskResult
from ..planning.plan import Task
from ..scan.memory import ScanEntry
from ..sources.file import MEMBER_KINDS, ListedObject, SourceFile, absolute_root


class OpenBuild(BaseModel):
    """What a worker must know of a build before its first task.

    Attributes
    ----------
    version
        Version of this package.
    config
        Fields of the build's configuration that were given, with absolute paths.
    fingerprints
        Feature -> fingerprint, which the worker must reproduce.
    image_algorithm
        ``ImageSpec.algorithm`` of the images; the newest unless the build is made from cached images.
    lease
        Name of the build's lease, which proves that both see the same cache.
    pictures
        Folder of the cached images to perturb, if any.
    packages
        Feature -> the package that provides it, with its version, for features of other packages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    config: dict[str, Any]
    fingerprints: dict[str, str]
    image_algorithm: int = IMAGE_ALGORITHMS[0]
    lease: str
    pictures: str | None
    packages: dict[str, str] = {}


def write_task(task: Task, files: Mapping[str, SourceFile]) -> str:
    """Return the message for a task and the files from which its images are decoded."""
    row_of = {key: number for number, key in enumerate(task.keys)}
    needed = () if task.image_shard is not None else task.keys
    return _dump(
        {
            "shard": task.image_shard,
            "keys": task.keys,
            "missing": {
                feature: True if keys == task.keys else [row_of[key] for key in keys]
                for feature, keys in task.missing.items()
            },
            "files": [_plain_file(files[key]) if key in files else None for key in needed],
        }
    )


def read_task(text: str) -> tuple[Task, dict[str, SourceFile]]:
    """Parse a task and its files by key."""
    plain = json.loads(text)
    keys = tuple(plain["keys"])
    missing = {
        feature: keys if rows is True else tuple(keys[row] for row in rows)
        for feature, rows in plain["missing"].items()
    }
    files = {key: _file(file) for key, file in zip(keys, plain["files"], strict=False) if file is not None}
    return Task(plain["shard"], keys, missing), files


def write_report(report: TaskReport) -> str:
    """Return the message for a report."""
    return _dump(asdict(report))


def read_report(text: str) -> TaskReport:
    """Parse a report."""
    plain = json.loads(text)
    return TaskReport(TaskResult(**plain["done"]), plain["worker"], plain["device"])


def write_files(files: Sequence[SourceFile], known: Sequence[ScanEntry | None]) -> str:
    """Return the message for files to scan, each with the size and time of its known entry."""
    stamps = [None if entry is None else (entry.size, entry.mtime_ns) for entry in known]
    return _dump([[_plain_file(file), stamp] for file, stamp in zip(files, stamps, strict=True)])


def read_files(text: str) -> list[tuple[SourceFile, ScanEntry | None]]:
    """Parse files to scan, each with an entry that has only size and time, or None."""
    return [(_file(file), stamp and ScanEntry(stamp[0], stamp[1], "")) for file, stamp in json.loads(text)]


def write_entries(entries: Sequence[ScanEntry | bool]) -> str:
    """Return the message for scanned files: an entry, True for an unchanged file, False for an unreadable one."""
    return _dump([found if isinstance(found, bool) else tuple(found) for found in entries])


def read_entries(text: str) -> list[ScanEntry | bool]:
    """Parse the entries of scanned files."""
    return [found if isinstance(found, bool) else ScanEntry(*found) for found in json.loads(text)]


def _plain_file(file: SourceFile) -> list[Any]:
    """Return the fields of a file; a member is the name of its kind and its fields."""
    root = absolute_root(file.root)  # a worker may run in another folder
    member = file.member and [file.member.kind, *astuple(file.member)]
    return [root, file.path, file.label, file.split, file.generator, file.family, file.group, member, file.listed]


def _file(plain: list[Any]) -> SourceFile:
    root, path, label, split, generator, family, group, member, listed = plain
    parsed = None if member is None else MEMBER_KINDS[member[0]](*member[1:])
    listing = listed and ListedObject(*listed)
    return SourceFile(root, path, label, split, generator, family, group, parsed, listing)


def _dump(plain: object) -> str:
    return json.dumps(plain, separators=(",", ":"))
