"""From rows of a cache to batches on a device; others use ``dataset``, ``rows``, ``select`` and ``readers``, and ``augment`` for
what a student sees.
"""
