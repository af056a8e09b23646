"""The files of a run; others use ``folder``, ``checkpoint`` and ``reference_checkpoint``."""
