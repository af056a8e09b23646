"""For the site: show ``:class:`.Name` `` and other roles of docstrings as code. A Griffe extension, named in mkdocs.yml."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Roles(griffe.Extension):
    """Replaces roles in every docstring before it is rendered."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Replace the roles of an object that was loaded."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":(?:py:)?[a-z]+:`[~.]*([^`]+)`", r"`\1`", obj.docstring.value)
