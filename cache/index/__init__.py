"""The index of a feature, from key to shard and row, and the compacted file that makes opening it fast.

Others use ``index.Index`` and ``index.EMPTY``.
"""
