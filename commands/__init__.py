"""The commands: each parses its arguments, calls one function of the package and shows the result.

Only :mod:`distil_cache.cli` uses these modules. Packages that take time to load are imported inside the commands, so
that ``--help`` answers at once.
"""
