"""Paths of the user's cache folder, and the small JSON files of known values in it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path


def user_cache_folder() -> Path:
    """Return the folder of replaceable data: ``$XDG_CACHE_HOME/distil-cache``, by default in ``~/.cache``."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "distil-cache"


def read_memory(name: str) -> dict[str, object]:
    """Read a JSON file of known values; empty if it is missing or unreadable. The caller checks the values."""
    try:
        known = json.loads((user_cache_folder() / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def write_memory(name: str, known: Mapping[str, object]) -> None:
    """Write a JSON file of known values in one step; a folder that is not writable only costs the next caller time."""
    memory = user_cache_folder() / name
    temporary = memory.with_name(f"{memory.name}.{secrets.token_hex(8)}")
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(known, indent=1), encoding="utf-8")
        temporary.replace(memory)
    except OSError:
        return
