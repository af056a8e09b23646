"""A copy of shards on a local disk, for a cache that is remote or slow.

Others use ``reader.LocalCopy``.
"""
