"""From the files of the sources to the rows of a dataset.

Other folders use ``scan.scan``, and ``conflicts`` for rows and rejects.
"""
