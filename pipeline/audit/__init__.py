"""Whether labels can be told without what the images show; others use ``run.run_audit``, and a build uses
``summary.summarise``.
"""
