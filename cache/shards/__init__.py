"""One shard, its data in either format and the marker that makes it exist; others use ``marker``, ``keys``, ``format``
and ``registry.open_data``.
"""
