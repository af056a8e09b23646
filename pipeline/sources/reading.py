"""How a user says that sources are to be read: words of classes, names of columns, and moved paths."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import UsageError
from .file import ReadingOptions
from .words import label_of_word, normalised

COLUMNS = ("path", "label", "split", "generator", "family", "group")
"""What a table may say of an image."""


def parse_reading(labels: str | None, columns: str | None, path_prefix: Sequence[str] = ()) -> ReadingOptions:
    """Parse the options ``--labels``, ``--columns`` and ``--path-prefix``.

    Parameters
    ----------
    labels
        ``WORD=real`` or ``WORD=fake``, separated by commas, such as ``ai=fake,nature=real`` or ``0=fake,1=real``.
    columns
        ``OURS=THEIRS``, separated by commas, such as ``path=image_file,label=target``.
    path_prefix
        ``OLD=NEW``, each.

    Raises
    ------
    UsageError
        For anything else.
    """
    return ReadingOptions(
        labels={normalised(word): _label(word, meaning) for word, meaning in _pairs("--labels", labels)},
        columns={_column(ours): theirs for ours, theirs in _pairs("--columns", columns)},
        path_prefixes=tuple(_pair("--path-prefix", text) for text in path_prefix),
    )


_FORMS = {
    "--labels": "WORD=real or WORD=fake, separated by commas, such as ai=fake,nature=real",
    "--columns": "MEANING=COLUMN, separated by commas, such as path=image_file,label=target",
    "--path-prefix": "OLD=NEW",
}


def _pairs(option: str, text: str | None) -> list[tuple[str, str]]:
    return [_pair(option, item.strip()) for item in text.split(",")] if text else []


def _pair(option: str, text: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not equals or not left.strip():
        raise UsageError(f"{option} {text}: write {_FORMS[option]}.")
    return left.strip(), right.strip()


def _label(word: str, meaning: str) -> int:
    label = {"0": 0, "1": 1}.get(meaning, label_of_word(meaning))
    if label is None:
        raise UsageError(f"--labels {word}={meaning}: {meaning!r} is neither real nor fake.")
    return label


def _column(name: str) -> str:
    if name not in COLUMNS:
        raise UsageError(f"--columns {name}=...: there is no such column here. There are: {', '.join(COLUMNS)}.")
    return name
