"""The names of the files in a folder."""

from __future__ import annotations

import sys

import pytest
from distil_cache.pipeline.sources import names as module
from distil_cache.pipeline.sources.names import Names

GIVEN = ["b.png", "", "a.png", "ä.png", "\udcff.png", "\U0001f600.png", "\ufb33.png", "a.png", "Z", "a b\n.png"]


@pytest.mark.parametrize("piece", [1, 7, 2**16])
def test_names_are_read_as_they_were_added(piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE_BYTES", piece)
    names = Names(GIVEN)
    assert list(names) == GIVEN
    assert len(names) == len(GIVEN)
    assert "ä.png" in names
    assert "c.png" not in names
    names.sort()
    assert list(names) == sorted(GIVEN)
    assert len(names) == len(GIVEN)


def test_no_names_are_false_and_sorted() -> None:
    names = Names()
    names.sort()
    assert not names
    assert list(names) == []


def test_a_name_takes_its_letters_and_one_byte() -> None:
    names = Names(f"{number:09}.png" for number in range(10_000))
    assert sys.getsizeof(names._text) < 14 * 10_000 * 1.2
