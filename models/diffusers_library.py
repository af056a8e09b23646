"""The optional library diffusers, imported when a network of it is built."""

from __future__ import annotations

from types import ModuleType

from ..errors import UserError


def diffusers_library() -> ModuleType:
    """Return the library. Raises UserError, saying how to install it, if it is missing."""
    try:
        import diffusers
    except ImportError as error:
        raise UserError(
            "diffusers: is not installed. Install it with: pip install 'distil-cache[diffusers]'"
        ) from error
    return diffusers
