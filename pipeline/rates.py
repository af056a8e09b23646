"""Rates that were measured on this user's machines, kept in the user's cache folder by machine and subject."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from ..models.user_cache import read_memory, write_memory

MEMORY = "rates.json"


def remember(device: str, key: Mapping[str, object], rate: float) -> None:
    """Keep a rate, a second, that was measured today; ``key`` says of what."""
    known = read_memory(MEMORY)
    name = json.dumps({**key, "device": device}, sort_keys=True)
    entry = {"device": device, "key": dict(key), "per_second": rate, "date": datetime.now(UTC).date().isoformat()}
    write_memory(MEMORY, {**known, name: entry})


def remembered(key: Mapping[str, object] | None) -> Iterator[tuple[str, float, str]]:
    """Yield device, rate and date of what was measured for this key."""
    for entry in read_memory(MEMORY).values():
        if isinstance(entry, dict) and key is not None and entry.get("key") == key:
            device, rate, date = (entry.get(name) for name in ("device", "per_second", "date"))
            if isinstance(device, str) and isinstance(date, str) and isinstance(rate, float) and is_rate(rate):
                yield device, rate, date


def is_rate(rate: float) -> bool:
    """Return whether a number can be a rate."""
    return math.isfinite(rate) and rate > 0
