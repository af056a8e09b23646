"""The tasks of a plan computed on the device of this process; others use ``tasks``, ``in_process``, and ``context`` for
what tasks share.
"""
