"""The report's words: labels of numbers and names, and its sentences; the rest of the report may use both files."""
