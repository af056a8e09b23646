"""Check that the version of a release is the same everywhere, before anything is built.

python tools/check_release.py v0.1.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """Return a sentence for each place that does not state the tag's version."""
    version = tag.removeprefix("v")
    texts = {
        name: (root / name).read_text(encoding="utf-8") for name in ("__init__.py", "CITATION.cff", "CHANGELOG.md")
    }
    found = []
    if not re.fullmatch(r"v\d+\.\d+\.\d+", tag):
        found.append(f"{tag}: a tag is v and three numbers, such as v0.1.0.")
    if f'__version__ = "{version}"' not in texts["__init__.py"]:
        found.append(f"__init__.py: __version__ is not {version}.")
    if not re.search(rf"^version: {re.escape(version)}$", texts["CITATION.cff"], re.MULTILINE):
        found.append(f"CITATION.cff: version is not {version}.")
    if not re.search(rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", texts["CHANGELOG.md"], re.MULTILINE):
        found.append(f"CHANGELOG.md: has no heading '## [{version}] - YYYY-MM-DD'.")
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python tools/check_release.py vX.Y.Z")
    lines = problems(sys.argv[1])
    print(*lines or [f"{sys.argv[1]}: version, citation and changelog agree"], sep="\n")
    raise SystemExit(bool(lines))
