"""What a build has to do and what that costs, before anything is computed; others use ``prepare.prepare``, ``plan``
and ``estimate``.
"""
