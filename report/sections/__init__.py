"""Sections that are added to a report, one per module; ``report.write`` and ``commands`` use them."""
