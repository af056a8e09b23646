"""From rows of a cache to batches on a device.

Others use ``dataset``, ``rows``, ``select``, ``readers`` and, for the student's input, ``augment``.
"""
