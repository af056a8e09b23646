"""Shards kept on a disk of this machine for a cache that is far away; others use ``reader.LocalCopy``."""
