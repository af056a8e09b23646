"""DNF (Zhang and Xu 2023): the noise along the inversion alone."""

from __future__ import annotations

from .method import UNTIL_PLATEAU, Method

DNF = Method(
    "dnf",
    title="DNF on an ADM's noise",
    scales={"noise": "stored"},
    whole=True,
    head=0.02,
    defaults=UNTIL_PLATEAU,
    caveat="its noise is that of an ADM, which sees 8-bit images, while DNF's code takes it from another network, a DDIM "
    "UNet of LSUN bedrooms fed with unrounded values: its numbers here are not those of its paper's features",
)
