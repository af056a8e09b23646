"""What the report reads: others in it use ``runs.read_runs``, ``measured.measure``, the paper's figures in ``paper``, and
``provenance``.
"""
