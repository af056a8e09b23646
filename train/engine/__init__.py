"""One training: its loop and what the loop calls; others use ``loop.run_training`` and ``distributed``."""
