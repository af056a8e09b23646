"""The names of the files in a folder, in little more memory than their letters."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

_END = b"/"
"""Follows each name. No name of a file has it."""
_PIECE_BYTES = 2**16
"""Text that is decoded at once."""


class Names(Collection[str]):
    """Names in the order in which they were added, as one text in UTF-8.

    A name takes its bytes and one more, where a string in a list takes some 60 bytes and its letters.

    Parameters
    ----------
    names
        The first names.
    """

    __slots__ = ("_count", "_text")

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._count = 0
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        """Add a name, which may have the lone surrogates of bytes that are no UTF-8."""
        self._text += name.encode(errors="surrogatepass") + _END
        self._count += 1

    def sort(self) -> None:
        """Put the names in the order of strings."""
        names = bytes(self._text).split(_END)[:-1]
        self._text.clear()
        names.sort()  # of code points and of their bytes in UTF-8 the order is the same
        for name in names:
            self._text += name + _END

    def __len__(self) -> int:
        return self._count

    def __contains__(self, name: object) -> bool:
        return any(name == one for one in self)

    def __iter__(self) -> Iterator[str]:
        start = 0
        while start < len(self._text):
            end = self._text.rfind(_END, start, start + _PIECE_BYTES)
            end = self._text.index(_END, start) if end < 0 else end
            yield from self._text[start:end].decode(errors="surrogatepass").split("/")
            start = end + 1
