"""What is computed of an image: one file a feature in :mod:`.builtin`, what they share, and the list of them.

Stage one and inference use it. Stage two does not: it reads what is stored.
"""
