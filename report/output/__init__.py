"""The report's files for programs, and how all files are put in place; only ``report.write`` uses it."""
