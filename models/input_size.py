"""The side in pixels of what a network sees."""

from __future__ import annotations


def paper_size(image_size: int) -> int:
    """Return the side that the paper's teacher and student see, 7/8 of the image: 224 of 256 pixels."""
    return (image_size * 7 + 4) // 8
