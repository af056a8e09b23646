"""What a build and its workers tell each other, as JSON: keys and paths to the worker, small records back.

Dask wraps these texts in its own messages. No image, no tensor and no object of this program travels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..execution.tasks import TaskReport, TaskResult
from ..planning.plan import Task
from ..scan.memory import ScanEntry
from ..sources.file import ListedObject, SourceFile, TarMember, absolute_root


class OpenBuild(BaseModel):
    """What a worker must know of a build before its first task.

    version : of this program. config : the fields of the build's configuration that were given, with absolute paths.
    fingerprints : feature -> fingerprint, to be found again by the worker. lease : name of the build's lease, which shows
    that both see one cache. images : folder of the images that are perturbed, if any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    config: dict[str, Any]
    fingerprints: dict[str, str]
    lease: str
    pictures: str | None


def write_task(task: Task, files: Mapping[str, SourceFile]) -> str:
    """Return a task and the files that its images are decoded from."""
    place = {key: number for number, key in enumerate(task.keys)}
    needed = () if task.image_shard is not None else task.keys
    return _dump(
        {
            "shard": task.image_shard,
            "keys": task.keys,
            "missing": {
                feature: True if keys == task.keys else [place[key] for key in keys]
                for feature, keys in task.missing.items()
            },
            "files": [_plain_file(files[key]) if key in files else None for key in needed],
        }
    )


def read_task(text: str) -> tuple[Task, dict[str, SourceFile]]:
    """Return the task and its files by key."""
    plain = json.loads(text)
    keys = tuple(plain["keys"])
    missing = {
        feature: keys if places is True else tuple(keys[place] for place in places)
        for feature, places in plain["missing"].items()
    }
    files = {key: _file(file) for key, file in zip(keys, plain["files"], strict=False) if file is not None}
    return Task(plain["shard"], keys, missing), files


def write_report(report: TaskReport) -> str:
    """Return a report as text."""
    return _dump(asdict(report))


def read_report(text: str) -> TaskReport:
    """Return the report of a text."""
    plain = json.loads(text)
    return TaskReport(TaskResult(**plain["done"]), plain["worker"], plain["device"])


def write_files(files: Sequence[SourceFile], known: Sequence[ScanEntry | None]) -> str:
    """Return files to be scanned, each with the size and time at which it is known already."""
    stamps = [None if one is None else (one.size, one.mtime_ns) for one in known]
    return _dump([[_plain_file(file), stamp] for file, stamp in zip(files, stamps, strict=True)])


def read_files(text: str) -> list[tuple[SourceFile, ScanEntry | None]]:
    """Return the files, each with a finding that has only size and time, or None."""
    return [(_file(file), stamp and ScanEntry(stamp[0], stamp[1], "")) for file, stamp in json.loads(text)]


def write_findings(findings: Sequence[ScanEntry | bool]) -> str:
    """Return what was found about files: a finding, True for an unchanged file, False for one that could not be read."""
    return _dump([found if isinstance(found, bool) else tuple(found) for found in findings])


def read_findings(text: str) -> list[ScanEntry | bool]:
    """Return what was found."""
    return [found if isinstance(found, bool) else ScanEntry(*found) for found in json.loads(text)]


def _plain_file(file: SourceFile) -> list[Any]:
    return [absolute_root(file.root), *astuple(file)[1:]]  # a worker may run in another folder


def _file(plain: list[Any]) -> SourceFile:
    root, path, label, split, generator, family, group, member, listed = plain
    own, seen = member and TarMember(*member), listed and ListedObject(*listed)
    return SourceFile(root, path, label, split, generator, family, group, own, seen)


def _dump(plain: object) -> str:
    return json.dumps(plain, separators=(",", ":"))
