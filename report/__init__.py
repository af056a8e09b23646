"""The report over finished runs. Reads run folders and nothing else: no cache, no model."""

from .drawing import Figure, Panel, png_panel
from .sections import Addition, Section
from .tables import Table
from .write import SCHEMA_VERSION, write_report

__all__ = ["SCHEMA_VERSION", "Addition", "Figure", "Panel", "Section", "Table", "png_panel", "write_report"]
