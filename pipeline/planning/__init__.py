"""Plan a build: which rows are missing and what they cost, before anything is computed.

Other folders use ``prepare.prepare``, ``plan`` and ``estimate``.
"""
