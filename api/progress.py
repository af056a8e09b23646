"""Progress for Python: what a long step has to say goes to the logger ``distil_cache``."""

from __future__ import annotations

import logging

from ..progress import Silent

_WARNING = "Warning: "
_logger = logging.getLogger("distil_cache")


class Logged(Silent):
    """Progress that logs its lines, warnings as such, so that a script sees them without asking."""

    def say(self, text: str) -> None:
        """Log a line."""
        from ..storage.text import visible

        if text.startswith(_WARNING):
            _logger.warning("%s", visible(text.removeprefix(_WARNING)))
        else:
            _logger.info("%s", visible(text))
