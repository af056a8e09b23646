"""Side of a network's input in pixels. Without torch, because reports load it."""

from __future__ import annotations


def paper_size(image_size: int) -> int:
    """Return the input side of the paper's teacher and student, 7/8 of the image: 224 of 256 pixels."""
    return (image_size * 7 + 4) // 8
