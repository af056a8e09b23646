"""Putting the report's files in place: all new ones are written first, so that a report that fails leaves the old one."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path

from ...errors import UsageError, UserError
from ...storage.locks import waiting_lock

TABLES = "tables"
LIST = f"{TABLES}/tables.json"

Writer = str | Callable[[Path], None]
"""A file's text, or what writes it to a path."""


def put_files(out: Path, files: Mapping[str, Writer]) -> None:
    """Write files by their names below ``out`` (``/`` separates folders), each replaced in one step once all are written.

    Tables of the report that was there before, and that the new one has not, are removed; other files stay. Raises
    UsageError if ``out`` cannot be a folder and UserError if there is no room; what was there before is then unchanged.
    Reports that are written at the same time are put in place one after the other.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UsageError(
            f"{out}: cannot be the report's folder ({problem.strerror}). Name another with --out"
        ) from problem
    fresh = not any(out.iterdir())
    new = out / f".tmp-report-{secrets.token_hex(8)}"
    try:
        _write(new, files)
        with waiting_lock(out):
            _move(new, out, files.keys())
    except OSError as problem:
        raise UserError(
            f"{out}: the report cannot be written ({problem.strerror}). Make room or name another --out"
        ) from problem
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if fresh:
            with suppress(OSError):
                out.rmdir()  # only an empty one can be removed: the folder of a report that failed


def _move(new: Path, out: Path, names: Collection[str]) -> None:
    old = _listed(out / LIST)
    for name in names:
        (out / name).parent.mkdir(exist_ok=True)
        (new / name).replace(out / name)
    for name in old - set(names):
        (out / name).unlink(missing_ok=True)


def _write(folder: Path, files: Mapping[str, Writer]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_text(content, encoding="utf-8")
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _listed(path: Path) -> set[str]:
    """Tables that an earlier report has left, by name; none where it cannot be told."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["tables"]
        return {f"{TABLES}/{name}" for name in found if Path(name).name == name and name.endswith(".csv")}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
