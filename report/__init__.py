"""The report of finished runs, made from their folders alone: no cache, no model.

Others use the names below; the demo also uses ``inputs`` and ``layout.panels`` for its own sections.
"""

from .layout.page import Addition, Section
from .layout.panels import Figure, Panel, png_panel
from .layout.tables import Table
from .write import SCHEMA_VERSION, write_report

__all__ = ["SCHEMA_VERSION", "Addition", "Figure", "Panel", "Section", "Table", "png_panel", "write_report"]
