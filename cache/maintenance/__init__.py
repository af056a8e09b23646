"""Maintenance of a cache: list, compare, verify, repair, compact, collect garbage.

Others use ``listing.summary``, ``diff.diff``, ``verify.report``, ``repair.repair``, ``compact.compact``, ``gc.collect``
and ``trash.ensure_shards``.
"""
