"""Stage one: from images to cached features."""

from .build import run_build
from .config import BuildConfig
from .progress import Progress, Silent

__all__ = ["BuildConfig", "Progress", "Silent", "run_build"]
