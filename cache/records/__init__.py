"""What a cache records beside its shards; others use the stores and records of ``datasets``, ``builds`` and ``audit``,
and ``revision.revision_of``.
"""
