"""Match folders with a pattern of path parts, such as ``{split}/{generator}/{label}``.

============================= =====================================================================================
part of a pattern             what it matches
============================= =====================================================================================
``{split}``                   a folder whose name means train, val or test (:data:`..words.SPLITS`)
``{label}``                   a folder whose name means real or generated (:data:`..words.LABELS`, ``--labels``)
``{label:0_real,1_fake}``     one of these words alone, and the words of ``--labels``
``{generator}``               a folder with any name that is no split: it names the generator
``{generator:imagenet*}``     the same with a name like one of these, capitals aside
``{generator:known}``         the name of a generator that :func:`.families.is_known_generator` knows
``{group}``, ``{class}``      a folder with any name that is no split: the origin of the reals, or the content
``{family}``                  a folder that names the generator's family
``*``, ``imagenet*``          a folder with any name, or with one like this
``**``                        any number of folders, or none
``[...]``                     may be absent
============================= =====================================================================================

A part may mix them, as in ``{generator}_{split}``. The pattern describes the path of a class folder; all that is below
it belongs to it. Where several readings fit, the one with more parts of the pattern is taken, the first of them first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from itertools import islice

from ....errors import UsageError
from ..words import LABELS, NUMBERS, normalised, split_of_word
from .families import is_known_generator

FIELDS = ("split", "label", "generator", "group", "family")
"""What a pattern can say of an image."""

_ALIASES = {"class": "group"}
_TOKEN = re.compile(r"\{([a-z]+)(?::([^{}/]+))?\}")
_ANY_DEPTH = "**"
_ANY_LENGTH = -1
_MOST_FORMS = 64
_MOST_ANY_DEPTH = 2

Found = Mapping[str, str]
"""Field -> what a path says of it. A label is ``0`` or ``1``."""


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A pattern, ready to match.

    Attributes
    ----------
    text
        The pattern as written.
    variants
        Its forms with and without the optional parts, the fullest first.
    """

    text: str
    variants: tuple[tuple[_Part, ...], ...]
    _by_length: Mapping[int, tuple[tuple[_Part, ...], ...]]

    @property
    def depth(self) -> float:
        """Most folders of a path that it can match."""
        if any(part.any_depth for variant in self.variants for part in variant):
            return math.inf
        return max(map(len, self.variants))

    def match(self, parts: Sequence[str]) -> Found | None:
        """Return what the parts of a folder's path say, or None if the pattern does not fit the whole path."""
        variants = self._by_length.get(len(parts))
        if variants is None:
            variants = self._by_length[_ANY_LENGTH]
        for variant in variants:
            last = variant[-1]
            if parts and not last.any_depth and last.match(parts[-1]) is None:
                continue  # most folders of a source are none of a class: they cost no more than this
            found = _match(variant, parts)
            if found is not None:
                return found
        return None

    def may_begin(self, above: Sequence[str]) -> bool:
        """Check whether :meth:`match_from` can match anything below such a root."""
        return any(part.is_particular and part.match(above[0]) is not None for part, *_ in self.variants)

    def match_from(self, above: Sequence[str], parts: Sequence[str]) -> Found | None:
        """Match a path below a root that is itself inside the tree that the pattern describes.

        Parameters
        ----------
        above
            Last names of the root's path. The first must be one that the pattern is particular about: a root may have
            any name, and it is not taken for that of a generator.
        parts
            The path below the root.
        """
        for variant in self.variants:
            if len(variant) > len(above) and variant[0].is_particular and variant[0].match(above[0]) is not None:
                found = _match(variant, [*above, *parts])
                if found is not None:
                    return found
        return None


def compile_pattern(text: str, labels: Mapping[str, int] | None = None) -> PathPattern:
    """Parse a pattern.

    Parameters
    ----------
    text
        The pattern.
    labels
        Further words for ``{label}``, normalised, before the known ones.

    Raises
    ------
    UsageError
        For an unknown field, a field that occurs twice in one form, or brackets that do not match.
    """
    variants = []
    forms = list(islice(_forms(text), _MOST_FORMS + 1))
    if len(forms) > _MOST_FORMS or text.count(_ANY_DEPTH) > _MOST_ANY_DEPTH:
        raise UsageError(f"--layout {text}: has too many optional parts, or more than {_MOST_ANY_DEPTH} `**`.")
    for form in dict.fromkeys(forms):
        names = [name for name in form.strip("/").split("/") if name]
        fields = [_ALIASES.get(token[1], token[1]) for name in names for token in _TOKEN.finditer(name)]
        repeated = next((name for name in fields if fields.count(name) > 1), None)
        if repeated is not None:
            raise UsageError(f"--layout {text}: {{{repeated}}} occurs twice.")
        variants.append(tuple(_part(text, name, labels or {}) for name in names))
    ordered = tuple(sorted(filter(None, variants), key=len, reverse=True))
    open_ones = tuple(variant for variant in ordered if any(part.any_depth for part in variant))
    by_length = {
        length: tuple(variant for variant in ordered if variant in open_ones or len(variant) == length)
        for length in {len(variant) for variant in ordered}
    }
    return PathPattern(text, ordered, {**by_length, _ANY_LENGTH: open_ones})


class _Part:
    """Matches the name of one folder."""

    def __init__(self, expression: str, fields: Sequence[tuple[str, str]], labels: Mapping[str, int]) -> None:
        self.any_depth = expression == _ANY_DEPTH
        self.is_particular = any(field in ("split", "label") or words for field, words in fields) or (
            not fields and expression not in (_ANY_DEPTH, translate("*"))
        )
        self._regex = re.compile("" if self.any_depth else expression, re.IGNORECASE)
        self._fields = fields
        self._labels = labels
        self.match = cache(self._match_name)

    def _match_name(self, name: str) -> tuple[tuple[str, str], ...] | None:
        """Return what a folder's name says, or None if it does not fit."""
        matched = self._regex.fullmatch(name)
        if matched is None:
            return None
        found = []
        for (field, words), value in zip(self._fields, matched.groups(), strict=True):
            meaning = _meaning(field, words, value, self._labels)
            if meaning is None:
                return None
            found.append((field, meaning))
        return tuple(found)


def _forms(text: str) -> Iterator[str]:
    """Yield the forms of a pattern with each optional part present and absent, the fullest first."""
    start = text.find("[")
    if start < 0:
        if "]" in text:
            raise UsageError(f"--layout {text}: a ] without a [.")
        yield text
        return
    depth = 0
    for end in range(start, len(text)):
        depth += {"[": 1, "]": -1}.get(text[end], 0)
        if depth == 0:
            break
    else:
        raise UsageError(f"--layout {text}: a [ without a ].")
    before, inside, after = text[:start], text[start + 1 : end], text[end + 1 :]
    for form in _forms(inside):
        for rest in _forms(after):
            yield before + form + rest
    for rest in _forms(after):
        yield before + rest


def _part(text: str, name: str, labels: Mapping[str, int]) -> _Part:
    if name == _ANY_DEPTH:
        return _Part(_ANY_DEPTH, [], labels)
    fields: list[tuple[str, str]] = []
    expression, place = "", 0
    for token in _TOKEN.finditer(name):
        field = _ALIASES.get(token[1], token[1])
        if field not in FIELDS:
            raise UsageError(f"--layout {text}: {{{token[1]}}} is none of {', '.join(f'{{{one}}}' for one in FIELDS)}.")
        expression += _glob(name[place : token.start()]) + "(.+?)"
        fields.append((field, token[2] or ""))
        place = token.end()
    rest = name[place:]
    if "{" in rest or "}" in rest:
        raise UsageError(f"--layout {text}: cannot be read at {rest!r}. Write fields as {{split}}.")
    return _Part(translate(name) if not fields else expression + _glob(rest), fields, labels)


def _glob(text: str) -> str:
    return ".*".join(map(re.escape, text.split("*")))


def _meaning(field: str, words: str, value: str, labels: Mapping[str, int]) -> str | None:
    """Return what a folder's name means for a field, or None if it means nothing there."""
    if field == "split":
        return split_of_word(value)
    if field == "label":
        label = _label(words, normalised(value), labels)
        return None if label is None else str(label)
    if split_of_word(value) is not None:
        return None
    if words == "known":
        return value if is_known_generator(value) else None
    if words and not _one_of(words).fullmatch(value):
        return None
    return value


def _label(words: str, value: str, labels: Mapping[str, int]) -> int | None:
    if value in labels:
        return labels[value]
    return _labels_of(words).get(value) if words else LABELS.get(value)


@cache
def _labels_of(words: str) -> Mapping[str, int]:
    """Return the labels of words that a pattern lists."""
    known = {**NUMBERS, **LABELS}
    return {word: known[word] for word in map(normalised, words.split(",")) if word in known}


@cache
def _one_of(words: str) -> re.Pattern[str]:
    """Return what matches one of the names that a pattern lists."""
    return re.compile("|".join(map(translate, words.split(","))), re.IGNORECASE)


def _match(variant: Sequence[_Part], parts: Sequence[str]) -> dict[str, str] | None:
    """Match one form of a pattern with a whole path."""
    if not variant:
        return {} if not parts else None
    first, rest = variant[0], variant[1:]
    if first.any_depth:
        for skipped in range(len(parts) + 1):
            found = _match(rest, parts[skipped:])
            if found is not None:
                return found
        return None
    if not parts or (here := first.match(parts[0])) is None:
        return None
    below = _match(rest, parts[1:])
    return None if below is None else {**dict(here), **below}
