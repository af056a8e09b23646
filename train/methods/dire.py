"""DIRE (Wang et al. 2023): the reconstruction error alone."""

from __future__ import annotations

from .method import UNTIL_PLATEAU, Method

DIRE = Method(
    "dire",
    title="DIRE",
    scales={"dire": "imagenet"},
    window="random-crop",
    initial="imagenet",
    head=0.02,
    defaults=UNTIL_PLATEAU,
)
