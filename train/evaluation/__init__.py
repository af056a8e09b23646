"""Scores of a student on rows of a cache; others use ``evaluate.run_evaluation``, ``score`` and ``gallery``."""
