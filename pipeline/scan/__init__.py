"""From the files of the sources to the rows of a dataset; others use ``scan.scan`` and the rows of ``conflicts``."""
