"""A build as a training set of webdataset tars that any reader takes; others use ``webdataset.export_build``."""
