"""Images whose rows must not be used, though the cache holds them: what ``cache verify --sources --set-aside`` records.

A feature of images keeps small JSON files, key -> ``reason: detail``, in its folder ``set-aside``. Each is created once
under the hash of its content and never changed, so several may be written at once. A build treats these keys as images
that cannot be decoded. Deleting a file takes it back.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping

from ..errors import IntegrityError
from ..storage import AnyPath, list_matching
from ..storage.atomic import create_file, make_folder, read_file
from .shards.marker import check_hint, is_id
from .store import FeatureStore

FOLDER = "set-aside"
_NAME = re.compile(r"[0-9a-f]{16}\.json")
_MOST_BYTES = 2**28


def list_files(store: FeatureStore) -> list[AnyPath]:
    """Return the files that name images of a feature, sorted."""
    return list_matching(store.folder / FOLDER, _NAME)


def read_set_aside(store: FeatureStore) -> dict[str, str]:
    """Return key -> reason of the images that are set aside. Raises IntegrityError for a damaged file."""
    found: dict[str, str] = {}
    for path in list_files(store):
        for key, reason in read_list(path).items():
            found.setdefault(key, reason)
    return found


def read_list(path: AnyPath) -> dict[str, str]:
    """Read one file. Raises IntegrityError if it is damaged."""
    try:
        reasons = json.loads(read_file(path, _MOST_BYTES))
    except (ValueError, RecursionError):
        reasons = None
    if not isinstance(reasons, dict) or not all(is_id(key) and isinstance(reasons[key], str) for key in reasons):
        raise IntegrityError(
            f"{path}: is no list of images that are set aside, so the file is damaged. {check_hint(path)} --repair"
        )
    return reasons


def write_set_aside(store: FeatureStore, reasons: Mapping[str, str]) -> None:
    """Set images aside, in addition to those that are; ``reasons`` is key -> ``reason: detail``."""
    new = {key: reason for key, reason in reasons.items() if key not in read_set_aside(store)}
    if not new:
        return
    content = json.dumps(new, indent=2, sort_keys=True).encode() + b"\n"
    make_folder(store.folder / FOLDER)
    create_file(store.folder / FOLDER / f"{hashlib.sha256(content).hexdigest()[:16]}.json", content)
