"""Stage two: train students from cached features and evaluate them. Opens no source image, loads no diffusion model.

Others use ``config``, ``engine.loop.run_training``, ``sweep``, ``evaluation``, ``runs``, ``methods`` and ``student``.
"""
