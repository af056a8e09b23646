"""The first noise alone, DistilDIRE's input without the image."""

from __future__ import annotations

from .method import Method, MethodDefaults

EPS = Method(
    "eps",
    title="eps alone",
    scales={"eps": "stored"},
    defaults=MethodDefaults(epochs=20, batch_size=64, lr=1e-4),
)
