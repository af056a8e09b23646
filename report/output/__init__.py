"""What the report writes for programs, and how its files are put in place; only ``report.write`` uses it."""
