"""The demo: the whole system on real photographs and a small diffusion model, with its controls."""

from __future__ import annotations

from .recipe import Recipe
from .run import run_demo

__all__ = ["Recipe", "run_demo"]
