"""Features and methods of other installed packages, found by their entry points and loaded when they are asked for.

A package lists what it brings in its ``pyproject.toml``:

    [project.entry-points."distil_cache.features"]
    strips = "distil_bands.feature:Strips"

Only the name is read until it is used, so a package that is broken disturbs nobody who does not use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, NamedTuple, TypeVar

from .errors import UserError

_SEPARATORS = re.compile("[-_.]+")

T = TypeVar("T")


class Package(NamedTuple):
    """An installed package: the name of its distribution, and its version."""

    name: str
    version: str

    def __str__(self) -> str:
        """Return both as one writes them."""
        return f"{self.name} {self.version}"


class Registry(Mapping[str, T], Generic[T]):
    """What there is of a kind, by name: first that of this package, then that of others in the order of their names.

    Looking up a name that another package brings loads it, and raises UserError if it cannot be used.

    Parameters
    ----------
    kind
        What it is in the singular, such as ``feature``. The group of entry points is ``distil_cache.`` and its plural.
    built_in
        That of this package.
    checked
        Returns what an entry point loaded, given with its name and its package, ready for use. Raises ValueError, with
        what is wrong as a phrase, if it cannot be used.
    """

    def __init__(self, kind: str, built_in: Mapping[str, T], checked: Callable[[str, object, Package], T]) -> None:
        self.kind, self.built_in = kind, built_in
        self._checked = checked
        self._loaded: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        """Return what has this name; KeyError if nothing has."""
        found = self._entries.get(name, [])
        if len(found) + (name in self.built_in) > 1:
            owners = [str(_package(entry)) for entry in found]
            first, *others = ["distil-cache itself", *owners] if name in self.built_in else owners
            raise UserError(
                f"{self.kind} {name}: is provided by {first} and by {' and '.join(others)}. Uninstall one of these packages."
            )
        if name in self.built_in:
            return self.built_in[name]
        if name not in self._loaded:
            if not found:
                raise KeyError(name)
            self._loaded[name] = self._load(found[0])
        return self._loaded[name]

    def __contains__(self, name: object) -> bool:
        """Return whether anything has this name, without loading it."""
        return name in self.built_in or name in self._entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names, without loading anything."""
        yield from self.built_in
        yield from (name for name in self._entries if name not in self.built_in)

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.built_in.keys() | self._entries.keys())

    def package(self, name: str) -> Package | None:
        """Return the package that brings what has this name; None if it is this one, or if nothing has the name."""
        return None if name in self.built_in or name not in self._entries else _package(self._entries[name][0])

    @cached_property
    def _entries(self) -> Mapping[str, list[EntryPoint]]:
        """The entry points of other packages by name, of which there should be one each."""
        found: dict[str, list[EntryPoint]] = {}
        for entry in sorted(entry_points(group=f"distil_cache.{self.kind}s")):
            found.setdefault(entry.name, []).append(entry)
        return found

    def _load(self, entry: EntryPoint) -> T:
        package = _package(entry)
        try:
            loaded = entry.load()
        except Exception as error:  # whatever the code of another package raises
            why = f"{type(error).__name__}: {error}".partition("\n")[0]
            raise UserError(
                f"{self.kind} {entry.name}: {package}, which provides it, cannot be loaded ({why}). Update or remove it."
            ) from error
        try:
            return self._checked(entry.name, loaded, package)
        except ValueError as error:
            raise UserError(f"{self.kind} {entry.name}: {package}, which provides it, is at fault: {error}") from error


def same_distribution(one: str, other: str) -> bool:
    """Return whether two names are those of one distribution: case, dots, dashes and underscores make no difference."""
    return _SEPARATORS.sub("-", one).lower() == _SEPARATORS.sub("-", other).lower()


def absent(kind: str, name: str, package: str) -> UserError:
    """Return the error for something whose package is not installed."""
    return UserError(f"{kind} {name}: is provided by {package}, which is not installed here. Install it.")


def _package(entry: EntryPoint) -> Package:
    """Return the package of an entry point; one that belongs to none is named by its module."""
    return Package(entry.dist.name, entry.dist.version) if entry.dist else Package(entry.module, "0")
