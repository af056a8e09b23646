"""Looking after a cache: others use ``listing.summary``, ``diff.diff``, ``verify.report``, ``repair.repair``,
``compact.compact``, ``gc.collect`` and ``trash.keep_shards``.
"""
