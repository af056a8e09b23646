"""Whether an object store can hold a cache at all: found out once, before the first object of a cache is written."""

from __future__ import annotations

import secrets

from ..errors import UserError
from . import AnyPath, RemotePath
from .atomic import TEMPORARY_PREFIX, cannot_write


def probe_conditional_put(root: AnyPath) -> None:
    """Make sure that the store refuses to create an object twice; nothing is to be checked on a disk.

    Raises UserError if it cannot be written to, or overwrites what is there: two builders would both believe that their
    marker counts.
    """
    if not isinstance(root, RemotePath):
        return
    probe = root / f"{TEMPORARY_PREFIX}probe-{secrets.token_hex(8)}"
    try:
        refuses = probe.create(b"1") and not probe.create(b"2") and probe.read_bytes() == b"1"
        probe.unlink()
    except FileNotFoundError as error:
        raise UserError(f"{root}: there is no such bucket, or no way to it. Make the bucket first.") from error
    except (OSError, NotImplementedError, TypeError) as error:
        raise cannot_write(root, error if isinstance(error, OSError) else OSError(0, str(error))) from error
    if not refuses:
        raise UserError(
            f"{root}: this store overwrites objects where it was asked not to (it knows no conditional puts), and a cache "
            "relies on that. Use another store, or a newer version of its server."
        )
