"""Run the tasks of a plan on the device of this process.

Other folders use ``tasks``, ``context`` for what tasks share, and ``batches``, ``networks`` and ``transfer`` for
running a model in batches.
"""
