"""Put the report's files in place: all are written first, so that a report that fails leaves the earlier one intact."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from ...errors import UsageError, UserError
from ...storage.atomic import TEMPORARY_PREFIX, fsync_folder, read_file
from ...storage.json_record import MOST_BYTES
from ...storage.locks import temporary_folder, waiting_lock

PROGRAM = "distil-cache"
REPORT = "report.json"
TEMPORARY = f"{TEMPORARY_PREFIX}report-"
TABLES = "tables"
LIST = f"{TABLES}/tables.json"

_Content = str | Callable[[Path], None]
"""A file's text, or a function that writes the file."""


def put_files(out: Path, files: Mapping[str, _Content]) -> None:
    """Write all files to a temporary folder, then move each into ``out`` atomically.

    Tables of the earlier report that the new one lacks are deleted; other files stay. Concurrent reports are moved into
    place one after the other.

    Parameters
    ----------
    out : Path
        The report's folder; made if missing.
    files : Mapping
        Path below ``out``, with ``/`` between folders -> text, or a function that writes the file.

    Raises
    ------
    UsageError
        If ``out`` cannot be made, or has files that no report wrote.
    UserError
        If a file cannot be written; the earlier report is then unchanged.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(f"{out}: cannot be made ({problem.strerror}). Choose another folder with --out") from problem
    with waiting_lock(out):
        fresh = _check_own(out)
    try:
        with temporary_folder(out, TEMPORARY) as new:
            _write(new, files)
            with waiting_lock(out):
                _move(new, out, files.keys())
    except OSError as problem:
        raise UserError(
            f"{out}: the report cannot be written ({problem.strerror}). Free space or choose another --out"
        ) from problem
    finally:
        if fresh:
            with suppress(OSError):
                out.rmdir()  # fails unless empty: removes the folder of a report that failed


def _check_own(out: Path) -> bool:
    """Return whether a folder is empty. Raises UsageError if it is not, and no report was written there."""
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith(TEMPORARY))
    if others and not _is_report(out / REPORT):
        raise UsageError(
            f"{out}: has files that no report wrote ({', '.join(others[:3])}). Choose an empty folder with --out."
        )
    return not others


def _is_report(path: Path) -> bool:
    """Return whether a file is the ``report.json`` of this program."""
    try:
        return bool(json.loads(read_file(path, MOST_BYTES))["program"]["name"] == PROGRAM)
    except (UserError, ValueError, RecursionError, KeyError, TypeError):
        return False


def _move(new: Path, out: Path, names: Collection[str]) -> None:
    old = _listed(out / LIST)
    for name in sorted(names, key=lambda name: name != REPORT):  # first the file by which the folder is known again
        (out / name).parent.mkdir(exist_ok=True)
        (new / name).replace(out / name)
    for name in old - set(names):
        (out / name).unlink(missing_ok=True)


def _write(folder: Path, files: Mapping[str, _Content]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_text(content, encoding="utf-8")
        fsync_folder(path)


def _listed(path: Path) -> set[str]:
    """Return the paths of the tables that an earlier report lists; none if its list cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["tables"]
        return {f"{TABLES}/{name}" for name in found if Path(name).name == name and name.endswith(".csv")}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
