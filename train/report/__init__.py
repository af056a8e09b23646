"""The report over finished runs. Reads run folders and nothing else: no cache, no model."""

from .drawing import Figure, Panel, png_panel
from .tables import Table
from .write import SCHEMA_VERSION, Section, write_report

__all__ = ["SCHEMA_VERSION", "Figure", "Panel", "Section", "Table", "png_panel", "write_report"]
