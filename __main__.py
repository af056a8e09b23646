"""Run the program as ``python -m distil_cache``."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()
