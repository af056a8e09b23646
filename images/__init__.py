"""Image files: headers, decoding and perturbation.

Other folders use ``sniff`` (is it an image?), ``file`` (reasons and limits), ``opening`` and ``headers`` (parse a file
without decoding it), ``jpeg`` (quantisation tables and segments), ``spec``, ``decode`` and ``perturb`` (pixels),
``upright`` (decoding without torch), and ``budget`` (memory). ``jpeg_decode``, ``png``,
``huffman``, ``gif``, ``tiff``, ``jp2``, ``jxl`` and ``exif`` know one format each.
"""
