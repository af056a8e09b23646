"""Export of a build as a training set of webdataset tars, which any webdataset reader takes.

Others use ``webdataset.export_build``.
"""
