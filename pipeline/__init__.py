"""Stage one: compute features of images and store them in a cache.

Other folders use ``build.run_build``, ``config.BuildConfig``, ``specs``, ``sources`` and ``execution``. Sources, scan,
plan and audit load without torch.
"""
