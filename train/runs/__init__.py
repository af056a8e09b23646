"""The files of a run; others use ``folder``, ``checkpoint``, ``forms`` and ``reference_checkpoint``."""
