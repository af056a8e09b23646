"""The form of the JSON files in a run's folder that a report alone reads; :mod:`...train.runs.forms` has the others.

A run may come from a stranger or from another version, so every value that is used has its type checked where it is
read; fields that are not named here pass unchecked and are only copied to ``report.json``.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, TypeAdapter, model_validator

from ...storage.json_record import Items
from ...storage.text import harmless
from ...train.runs.forms import EpochMetrics, Finite, Open

_FEATURE = re.compile(r"[a-z0-9_]{1,40}")


class GalleryForm(Open):
    """An entry of ``gallery.json``; each further field is a feature, and the name of its PNG file or None."""

    key: str
    label: Annotated[int, Field(ge=0, le=1)]
    generator: str
    score: Finite

    @model_validator(mode="after")
    def _names_files(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if not _FEATURE.fullmatch(name) or not (value is None or isinstance(value, str)):
                raise ValueError("an image is no name of a file, or not that of a feature")
        return self

    @property
    def images(self) -> dict[str, str]:
        """Feature -> name of its PNG file."""
        return {name: value for name, value in (self.model_extra or {}).items() if value is not None}


GALLERY: TypeAdapter[list[GalleryForm]] = TypeAdapter(Items[GalleryForm])
LINE: TypeAdapter[EpochMetrics] = TypeAdapter(EpochMetrics)


def as_stored(form: BaseModel) -> dict[str, Any]:
    """Return the content of a file as it was stored, without the defaults of fields that it lacks; texts are visible."""
    content: dict[str, Any] = harmless(form.model_dump(mode="json", exclude_unset=True))
    return content
