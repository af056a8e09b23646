"""The form of the JSON files in a run's folder, as far as a report uses them.

A run may come from a stranger or from another version, so every value that is used has its type checked where it is
read; fields that are not named here pass unchecked and are only copied to ``report.json``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter

from ...storage.text import harmless
from ...train.runs.forms import EpochMetrics, Finite, Open


class _Trained(Open):
    dataset: str
    revision: str
    build: str


class _Settings(Open):
    method: str
    dataset: str | list[str]
    seed: int | None = None
    preset: str | None = None
    backbone: str | None = None
    kd_weight: Finite | None = None


class RunForm(Open):
    """``config.json``."""

    config: _Settings
    version: int = 1
    run: str | None = None
    dataset: str | None = None
    revision: str | None = None
    build: str | None = None
    created: str | None = None
    others: list[_Trained] | None = None
    fingerprints: dict[str, str] | None = None
    versions: dict[str, str] | None = None
    samples: dict[str, int] | None = None
    seen_generators: list[str] | None = None
    groups: list[str] | None = None
    imported: dict[str, str] | None = None


class GalleryForm(Open):
    """An entry of ``gallery.json``; images are names of PNG files."""

    key: str
    label: Annotated[int, Field(ge=0, le=1)]
    generator: str
    score: Finite
    image: str | None = None
    eps: str | None = None
    dire: str | None = None


RUN: TypeAdapter[RunForm] = TypeAdapter(RunForm)
GALLERY: TypeAdapter[list[GalleryForm]] = TypeAdapter(list[GalleryForm])
LINE: TypeAdapter[EpochMetrics] = TypeAdapter(EpochMetrics)


def as_stored(form: BaseModel) -> dict[str, Any]:
    """Return the content of a file as it was stored, without the defaults of fields that it lacks; texts are visible."""
    content: dict[str, Any] = harmless(form.model_dump(mode="json", exclude_unset=True))
    return content
