"""Image files and the pictures in them; others use ``file`` and ``headers`` for files, ``spec``, ``decode`` and ``perturb``
for pictures, and ``jpeg`` for what a JPEG says of itself.
"""
