"""The packages of the project, as folders below its root."""

from __future__ import annotations

PACKAGES = (
    "api",
    "cache",
    "commands",
    "demo",
    "features",
    "images",
    "inference",
    "metrics",
    "models",
    "pipeline",
    "report",
    "storage",
    "testing",
    "train",
)
