"""A place as a field of a configuration: given as text, kept as a place, written as text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import BeforeValidator, InstanceOf, PlainSerializer

from .paths import to_path
from .remote import RemotePath

PlaceField: TypeAlias = Annotated[
    Path | InstanceOf[RemotePath], BeforeValidator(to_path), PlainSerializer(str, when_used="json")
]
