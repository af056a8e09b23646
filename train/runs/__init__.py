"""What a training leaves on the disk; others use ``folder``, ``checkpoint`` and ``reference_checkpoint``."""
