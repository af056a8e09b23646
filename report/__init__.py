"""The report over finished runs. Reads run folders and nothing else: no cache, no model."""

from .layout.panels import Figure, Panel, png_panel
from .layout.section import Addition, Section
from .layout.tables import Table
from .write import SCHEMA_VERSION, write_report

__all__ = ["SCHEMA_VERSION", "Addition", "Figure", "Panel", "Section", "Table", "png_panel", "write_report"]
