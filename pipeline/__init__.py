"""Stage one: from images to cached features."""

from ..progress import Progress, Silent
from .build import run_build
from .config import BuildConfig

__all__ = ["BuildConfig", "Progress", "Silent", "run_build"]
