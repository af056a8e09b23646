"""Predictions in files and on stdout: one JSON object, JSON lines, or CSV; lines leave as soon as they are known."""

from __future__ import annotations

import csv
import errno
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ..choices import FILE_FORMS, FileForm
from ..errors import UsageError, UserError
from ..storage.locks import try_lock
from .prediction import COLUMNS, Prediction

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def form_of(path: Path) -> FileForm:
    """What a file's suffix asks for; UsageError if it is none of them."""
    for form in FILE_FORMS:
        if path.suffix.lower() == f".{form}":
            return form
    raise UsageError(f"--out {path}: its name must end with .json, .jsonl or .csv, which says what to write.")


def line_writer(stream: TextIO, form: FileForm) -> Callable[[Prediction], None]:
    """Return what writes one prediction to a stream, as a line of JSON or as rows of a CSV whose header is written now."""
    if form == "jsonl":
        return lambda prediction: print(json.dumps(prediction.as_json(), ensure_ascii=False), file=stream, flush=True)
    table = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    table.writeheader()

    def write(prediction: Prediction) -> None:
        table.writerows(prediction.as_rows())
        stream.flush()

    return write


def write_object(stream: TextIO, result: dict[str, Any]) -> None:
    """Write a whole result as one JSON object."""
    print(json.dumps(result, indent=2, ensure_ascii=False), file=stream)


@contextmanager
def opened(path: Path, form: FileForm) -> Iterator[TextIO]:
    """Open a file to write, in UTF-8, before the work begins. One that is there is replaced.

    Lines go into the file itself as they come, so those of a run that was interrupted are kept. A JSON object comes last and is
    put in its place whole. Raises UserError if the file cannot be written, or another command is writing its lines.
    """
    target = path.with_name(f".tmp-{path.name}-{secrets.token_hex(8)}") if form == "json" else path
    try:
        with open(target, "w", encoding="utf-8", newline="", opener=_alone) as stream:
            yield stream
        target.replace(path)
    except OSError as error:
        if error.filename != str(target) and error.errno not in _FULL:
            raise
        raise UserError(f"--out {path}: cannot be written ({error.strerror}).") from error
    finally:
        if target != path:
            target.unlink(missing_ok=True)


def _alone(path: str, flags: int) -> int:
    """Open a file for one command alone; nothing that another command is writing is cut off."""
    handle = os.open(path, (flags & ~os.O_TRUNC) | os.O_CLOEXEC, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            if not try_lock(handle):
                raise UserError(
                    f"--out {path}: another command is writing it. Wait until it ends, or name another file."
                )
        if stat.S_ISREG(os.fstat(handle).st_mode):
            os.ftruncate(handle, 0)
    except BaseException:
        os.close(handle)
        raise
    return handle
