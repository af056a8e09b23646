"""Sections that are added to a report, one a file: robustness, the audit, the table of costs; ``report.write`` and commands use them."""
