"""Find a network's weights in what a checkpoint file holds.

Training frameworks wrap a state dict: in dicts (``{"model_ema": …, "optimizer": …}``), in prefixes of its keys
(``module.``, ``_orig_mod.``, ``model.``), or in both. A network is recognised by one of its keys, the anchor: each
place of the file where the anchor occurs is one set of weights, and what stands before it there is its wrapper. A file
may hold several sets, usually the trained weights and their exponential moving average (EMA).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import UserError

DEPTH = 6
"""Dicts within dicts that are searched, at most: a pickle may contain itself."""
_EMA = re.compile(r"(^|[._])ema([._]|$)|averaged|shadow", re.IGNORECASE)
_DOTLESS = "model_ema."
"""Prefix below which latent-diffusion keeps the EMA of each weight under its name without dots."""
_SHOWN = 5
"""Entries that a message names, at most."""


@dataclass(frozen=True)
class WeightsSet:
    """One set of weights in a file.

    Attributes
    ----------
    wrapper
        What stands before the network's own keys, with dots between its parts; empty for a plain state dict.
    tensors
        The weights under the network's own keys.
    """

    wrapper: str
    tensors: dict[str, Tensor]

    @property
    def ema(self) -> bool:
        """Whether the wrapper names a moving average."""
        return _EMA.search(self.wrapper) is not None

    def is_called(self, name: str) -> bool:
        """Return whether a name means this set: its wrapper or the beginning of it."""
        return self.wrapper == name or self.wrapper.startswith(f"{name}.")


def find_sets(content: object, anchor: str) -> list[WeightsSet]:
    """Return every set of weights in the content of a file.

    Parameters
    ----------
    content
        What the file holds.
    anchor
        A key of the network, such as ``time_embed.0.weight``.
    """
    return [found for path, group in _groups(content) for found in _sets_of(path, group, anchor)]


def choose_set(sets: Sequence[WeightsSet], choice: str | None, source: str) -> WeightsSet:
    """Return the set that a user means.

    Parameters
    ----------
    sets
        At least one set.
    choice
        A wrapper, ``ema`` for the only moving average, ``model`` for the only other set, or None for the only set.
    source
        The file as the user names it.

    Raises
    ------
    UserError
        Several sets are meant, or none.
    """
    if choice is None:
        meant = list(sets)
    else:
        meant = [one for one in sets if one.is_called(choice)]
        exact = [one for one in meant if one.wrapper == choice]
        meant = exact or meant
        if len(meant) != 1 and choice in ("ema", "model"):
            meant = [one for one in sets if one.ema == (choice == "ema")]
    if len(meant) == 1:
        return meant[0]
    names = [one.wrapper or "model" for one in sets]
    if not meant:
        raise UserError(f"{source}#{choice}: the file holds no such weights, only {' and '.join(names)}.")
    commands = " or ".join(f"{source}#{name}" for name in names)
    average = ". Published results usually use the EMA" if any(one.ema for one in sets) else ""
    raise UserError(f"{source}: holds {len(sets)} sets of weights: {' and '.join(names)}{average}. Choose: {commands}.")


def describe_choice(content: Mapping[str, object], sets: Sequence[WeightsSet], chosen: WeightsSet) -> str:
    """Return what has to be said about a choice: the wrapper, and what was passed over. Empty for a plain state dict."""
    parts = [f"weights read from {chosen.wrapper}"] if chosen.wrapper else []
    others = [one.wrapper or "the plain weights" for one in sets if one is not chosen]
    inside = {one.wrapper.split(".")[0] for one in sets}
    others += [str(name) for name in content if str(name).split(".")[0] not in inside]
    if not chosen.wrapper:
        others = [name for name in others if name not in chosen.tensors]
    if others:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        parts.append(f"passed over: {', '.join(others[:_SHOWN])}{more}")
    return "; ".join(parts)


def tensor_names(content: object) -> dict[str, tuple[int, ...]]:
    """Return the shape of every named tensor in the content of a file, by the path of its dict and its key."""
    return {f"{path}{name}": tuple(value.shape) for path, group in _groups(content) for name, value in group.items()}


def _groups(content: object, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the named tensors of each dict within the content, with the path of the dict."""
    if not isinstance(content, Mapping) or depth > DEPTH:
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield path, tensors
    for name, value in content.items():
        if isinstance(name, str):
            yield from _groups(value, f"{path}{name}.", depth + 1)


def _sets_of(path: str, group: Mapping[str, Tensor], anchor: str) -> Iterator[WeightsSet]:
    """Yield the sets among the tensors of one dict."""
    prefixes = sorted({name.removesuffix(anchor) for name in group if f".{name}".endswith(f".{anchor}")})
    outer = [p for p in prefixes if not any(p != o and p.startswith(o) for o in prefixes) or _EMA.search(p)]
    owner = {name: max((p for p in outer if name.startswith(p)), key=len, default=None) for name in group}
    for prefix in outer:
        own = {name.removeprefix(prefix): value for name, value in group.items() if owner[name] == prefix}
        average = _dotless_average(group, prefix, own)
        if average:
            yield WeightsSet(f"{path}{_DOTLESS}".strip("."), average)
            own = {name: value for name, value in own.items() if not f"{prefix}{name}".startswith(_DOTLESS)}
        yield WeightsSet(f"{path}{prefix}".strip("."), own)


def _dotless_average(group: Mapping[str, Tensor], prefix: str, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the moving average of a set whose keys have lost their dots; empty if there is none."""
    parts = prefix.split(".")
    for start in range(len(parts)):
        below = "".join(parts[start:])
        names = {name: f"{_DOTLESS}{below}{name.replace('.', '')}" for name in own if not name.startswith(_DOTLESS)}
        if names and all(dotless in group for dotless in names.values()):
            return {name: group[dotless] for name, dotless in names.items()}
    return {}
