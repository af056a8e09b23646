"""Image files: headers, decoding and perturbation.

Other folders use ``file`` and ``headers`` (parse a file without decoding it), ``jpeg`` (quantisation tables and
segments), ``spec``, ``decode`` and ``perturb`` (pixels), and ``upright`` (decoding without torch).
"""
