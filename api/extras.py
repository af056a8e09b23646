"""Libraries that only some of the package's users need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import UserError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn the absence of an extra's library into a UserError that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed. Install it with: pip install 'distil-cache[{extra}]'"
        ) from error
