"""Addresses of weights that are downloaded, and their checksums. Loads without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import UsageError

SHA256 = re.compile(r"[0-9a-f]{64}")


def is_address(name: str) -> bool:
    """Return whether a name of weights is an address: ``hf:OWNER/REPO/FILE`` or a URL."""
    return name.startswith(("hf:", "https://", "http://"))


def absolute_name(name: str) -> str:
    """Return a name of weights that does not depend on the working folder: an address, or an absolute path."""
    return name if is_address(name) else str(Path(name).absolute())


def check_sha256(sha256: Sequence[str]) -> tuple[str, ...]:
    """Return SHA-256s in lower case. Raises UsageError for one that is none."""
    for text in sha256:
        if not SHA256.fullmatch(text.lower()):
            raise UsageError(f"--sha256 {text}: is not a SHA-256, which has 64 hexadecimal digits.")
    return tuple(text.lower() for text in sha256)
