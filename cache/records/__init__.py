"""What a cache records beside its shards: datasets, build records, run references and audits.

Others use the stores and records of :mod:`.datasets`, :mod:`.builds` and :mod:`.audit`.
"""
