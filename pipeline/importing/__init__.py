"""Import feature files that other programs computed as shards, a dataset and a build record.

Other folders use ``importer.run_import`` and ``import_config.ImportConfig``.
"""
