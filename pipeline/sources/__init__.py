"""Where images come from: folders, tables, tars and URLs; others use ``discover.discover``, ``file.SourceFile``, and
``read`` for the bytes of an image.
"""
