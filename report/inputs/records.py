"""The form of the JSON files in a run's folder that a report alone reads; :mod:`...train.runs.forms` has the others.

A run may come from a stranger or from another version, so every value that is used has its type checked where it is
read; fields that are not named here pass unchecked and are only copied to ``report.json``.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter

from ...storage.json_record import Items
from ...storage.text import harmless
from ...train.runs.forms import EpochMetrics, Finite, Open


class GalleryForm(Open):
    """An entry of ``gallery.json``; images are names of PNG files."""

    key: str
    label: Annotated[int, Field(ge=0, le=1)]
    generator: str
    score: Finite
    image: str | None = None
    eps: str | None = None
    dire: str | None = None


GALLERY: TypeAdapter[list[GalleryForm]] = TypeAdapter(Items[GalleryForm])
LINE: TypeAdapter[EpochMetrics] = TypeAdapter(EpochMetrics)


def as_stored(form: BaseModel) -> dict[str, Any]:
    """Return the content of a file as it was stored, without the defaults of fields that it lacks; texts are visible."""
    content: dict[str, Any] = harmless(form.model_dump(mode="json", exclude_unset=True))
    return content
