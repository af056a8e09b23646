"""A path as a pydantic field: parsed from a string, kept as a path, serialised as a string."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from .paths import to_path
from .remote import RemotePath

PlaceField: TypeAlias = Annotated[
    Path | InstanceOf[RemotePath], BeforeValidator(to_path), PlainSerializer(str, when_used="json")
]
