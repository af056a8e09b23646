"""The audit: can real and generated images be told apart without their content?

Other folders use ``run.run_audit``; a build uses ``summary.summarise``.
"""
