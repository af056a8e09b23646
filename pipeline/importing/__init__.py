"""Loose files that others computed become shards, a dataset and a build record; others use ``importer.run_import``
and ``import_config.ImportConfig``.
"""
