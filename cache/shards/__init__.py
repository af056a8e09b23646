"""One shard: its data in either format, and the marker that makes it exist.

Others use :mod:`.marker`, :mod:`.keys`, :mod:`.format` and ``registry.open_data``.
"""
