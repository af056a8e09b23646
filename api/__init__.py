"""What the package offers to Python: thin functions and views over what the commands call.

The names are those of ``distil_cache.__all__``; ``docs/reference/python.md`` describes them. Nothing below this folder knows it.
"""
