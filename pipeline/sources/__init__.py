"""Sources of images: folders, tables, tars and URLs.

Other folders use ``discover.discover``, ``file.SourceFile``, and ``read`` for the bytes of an image.
"""
