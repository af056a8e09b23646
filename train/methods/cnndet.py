"""CNNDet (arXiv 1912.11035): the image alone, blurred and compressed at random."""

from __future__ import annotations

from .method import UNTIL_PLATEAU, Degradation, Method

CNNDET = Method(
    "cnndet",
    title="CNNDet",
    scales={"image": "imagenet"},
    window="random-crop",
    degradation=Degradation(probability=0.5, blur=(0.0, 3.0), jpeg=(30, 100), adjustable=True, validated=True),
    initial="imagenet",
    head=0.02,
    defaults=UNTIL_PLATEAU,
    caveat="the cached image is resized before it is tested, while CNNDet's own test crops the original: its numbers "
    "here are not those of its paper's protocol",
)
