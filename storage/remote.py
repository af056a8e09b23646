"""A file or folder in an object store, with the part of :class:`pathlib.Path` that a cache and its sources need.

An object store has objects and no folders: a folder is there as long as an object lies below it. Objects appear whole
or not at all. ``create`` writes one only where there is none yet (a conditional put, in one step for all writers), which
is what the commit protocol of a cache rests on. Listings are asked for anew each time, for others write too.

fsspec does the talking. Every request is repeated while the store or the network fails (:mod:`.retry`).
"""

from __future__ import annotations

import errno
import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import total_ordering
from io import BufferedReader
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from .filesystem import filesystem_of
from .retry import with_retries
from .stream import RemoteStream

_Result = TypeVar("_Result")
_TIMES = ("LastModified", "mtime", "updated", "last_modified", "created")
"""Where the file systems of fsspec say when an object was written."""
_BUFFER = 1 << 20
_WHOLE = 64 << 20


@dataclass(frozen=True)
class RemoteStatus:
    """What is known of an object without reading it: bytes, and when it was written, in seconds of the store's clock."""

    st_size: int
    st_mtime: float

    @property
    def st_mtime_ns(self) -> int:
        """The time in nanoseconds."""
        return round(self.st_mtime * 1e9)


@dataclass(frozen=True)
class Entry:
    """One line of a listing; a folder has neither size nor time."""

    path: RemotePath
    size: int
    mtime: float
    is_folder: bool = False


@total_ordering
class RemotePath:
    """One place in an object store.

    Paths compare, hash and sort by their URL, and can be pickled and used in forked processes. They are no
    ``os.PathLike``: what would open one as a local file fails at once.

    FileNotFoundError, FileExistsError and PermissionError mean what they mean locally. Whatever else a store or the
    network says is, after some tries, an OSError.
    """

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        protocol, _, rest = url.partition("://")
        self._url = f"{protocol}://{'/'.join(part for part in rest.split('/') if part and part != '.')}"

    # Paths as text

    @property
    def protocol(self) -> str:
        """Return the kind of store, such as ``s3``."""
        return self._url.partition("://")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """Return the protocol with the bucket, then the names of the path."""
        first, *names = self._url.partition("://")[2].split("/")
        return (f"{self.protocol}://{first}", *names)

    @property
    def name(self) -> str:
        """Return the last part; that of a bucket is the bucket's name."""
        return self._url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Return the last ending of the name with its dot, or nothing."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """Return the name without its last ending."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> RemotePath:
        """Return the folder above; a bucket's is the bucket."""
        names = self.parts
        return self if len(names) == 1 else RemotePath("/".join(names[:-1]))

    @property
    def parents(self) -> Sequence[RemotePath]:
        """Return the folders above, the nearest first."""
        names = self.parts
        return [RemotePath("/".join(names[:length])) for length in range(len(names) - 1, 0, -1)]

    def __truediv__(self, name: str | PurePosixPath) -> RemotePath:
        return RemotePath(f"{self._url}/{name}")

    def with_name(self, name: str) -> RemotePath:
        """Return the path of a neighbour."""
        return self.parent / name

    def relative_to(self, other: object) -> PurePosixPath:
        """Return the path as seen from a folder above it, or ValueError."""
        if not self.is_relative_to(other):
            raise ValueError(f"{self} does not lie in {other}")
        return PurePosixPath(self._url[len(str(other)) :].lstrip("/"))

    def is_relative_to(self, other: object) -> bool:
        """Say whether this is ``other``, or lies below it."""
        return isinstance(other, RemotePath) and f"{self._url}/".startswith(f"{other._url}/")

    def resolve(self) -> RemotePath:
        """Return the path itself: a URL is whole, wherever it is read."""
        return self

    absolute = resolve

    def as_posix(self) -> str:
        """Return the URL."""
        return self._url

    def __str__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"RemotePath({self._url!r})"

    def __hash__(self) -> int:
        return hash(self._url)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and self._url == other._url

    def __lt__(self, other: RemotePath) -> bool:
        return self.parts < other.parts

    def __reduce__(self) -> tuple[type[RemotePath], tuple[str]]:
        return RemotePath, (self._url,)

    # Looking

    def exists(self) -> bool:
        """Say whether there is an object, or anything below."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Say whether there is an object."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Say whether there is no object but something below."""
        return self._kind() == "directory"

    def is_symlink(self) -> bool:
        """Say no: an object store has no links."""
        return False

    def stat(self) -> RemoteStatus:
        """Return size and time of an object; FileNotFoundError if there is none, or only a folder."""
        info = self._ask("info")
        if info.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._url)
        return RemoteStatus(int(info["size"]), _time(info))

    def children(self) -> list[Entry]:
        """Return the objects and folders directly below, sorted by name; none if there is no such folder."""
        try:
            return self._entries(self._ask("ls", detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def below(self) -> list[Entry]:
        """Return all objects below, at any depth, sorted by path, or the object itself; none if there is nothing."""
        try:
            return self._entries(list(self._ask("find", detail=True).values()), itself=True)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what lies directly below."""
        for entry in self.children():
            yield entry.path

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield the places below that match, sorted; ``*``, ``?`` and ``[...]`` stand for parts of one name, ``**`` for nothing."""
        first, _, rest = pattern.partition("/")
        if not any(letter in first for letter in "*?["):
            place = self / first
            if rest:
                yield from place.glob(rest)
            elif place.exists():
                yield place
            return
        for entry in self.children():
            if fnmatch.fnmatchcase(entry.path.name, first):
                if not rest:
                    yield entry.path
                elif entry.is_folder:
                    yield from entry.path.glob(rest)

    # Reading

    def read_bytes(self) -> bytes:
        """Return an object whole: the old or the new one, if it is replaced meanwhile."""
        data: bytes = self._ask("cat_file")
        return data

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``, which must lie in the object; an OSError if fewer come."""
        if start == stop:
            return b""

        def read() -> bytes:
            filesystem, path = filesystem_of(self._url)
            data: bytes = filesystem.cat_file(path, start=start, end=stop)
            if len(data) != stop - start:
                raise OSError(errno.EIO, f"{len(data):,} of {stop - start:,} bytes came", self._url)
            return data

        return with_retries(read, self._url)

    def open(self, mode: str = "rb") -> BufferedReader:
        """Open an object for reading bytes; each read asks for a range."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: a store's objects are opened for reading only")
        return BufferedReader(RemoteStream(self.read_range, self.stat().st_size), _BUFFER)

    def download(self, target: Path) -> None:
        """Copy an object, or all below, to a new local file or folder. FileNotFoundError if there is nothing."""
        entries = self.below()
        if not entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._url)
        for entry in entries:
            local = target / entry.path.relative_to(self) if entry.path != self else target
            local.parent.mkdir(parents=True, exist_ok=True)
            entry.path._ask("get_file", str(local))
            if local.stat().st_size != entry.size:
                raise OSError(errno.EIO, f"{local.stat().st_size:,} of {entry.size:,} bytes came", str(entry.path))

    # Writing

    def create(self, *data: bytes | memoryview) -> bool:
        """Put an object, the pieces one after the other, unless one is there; say whether it is this one that is there.

        A put whose answer was lost is made again and refused, so what lies there decides: the same bytes are one's own.
        """
        whole = b"".join(data)

        def put() -> bool:
            filesystem, path = filesystem_of(self._url)
            try:
                filesystem.pipe_file(path, whole, mode="create")
            except FileExistsError as error:
                try:
                    return self._holds(whole)
                except FileNotFoundError:
                    raise OSError(errno.EAGAIN, "it was there, and is gone", self._url) from error
            return True

        return with_retries(put, self._url)

    def write(self, data: bytes) -> None:
        """Put an object in the place of what is there."""
        self._ask("pipe_file", data, mode="overwrite")

    def upload(self, source: Path) -> None:
        """Put a local file, or all files below a local folder, here; OSError if it did not arrive whole."""
        for local in sorted(path for path in (source.rglob("*") if source.is_dir() else [source]) if path.is_file()):
            target = self / PurePosixPath(local.relative_to(source)) if source.is_dir() else self
            with_retries(lambda local=local, target=target: _put_file(local, target), str(target))  # type: ignore[misc]

    def copy_to(self, target: Path | RemotePath) -> None:
        """Copy an object within its store, in the place of what is there; FileNotFoundError if there is none."""
        if not isinstance(target, RemotePath) or target.protocol != self.protocol:
            raise ValueError(f"{target} does not lie in the store of {self}")
        self._ask("cp_file", filesystem_of(str(target))[1])

    def unlink(self, missing_ok: bool = True) -> None:
        """Delete an object. Most stores do not say whether there was one, so ``missing_ok`` only says that it may be absent."""
        try:
            self._ask("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self) -> None:
        """Delete an object, or all below."""
        for entry in self.below():
            entry.path.unlink()
        if self.is_dir():  # some file systems have folders of their own
            self._ask("rm", recursive=True)

    # Asking

    def _kind(self) -> object:
        try:
            return self._ask("info").get("type")
        except FileNotFoundError:
            return None

    def _ask(self, operation: str, *arguments: object, **options: object) -> Any:
        """Call an operation of the file system with this path, again while the store fails."""

        def ask() -> Any:
            filesystem, path = filesystem_of(self._url)
            return getattr(filesystem, operation)(path, *arguments, **options)

        return with_retries(ask, self._url)

    def _entries(self, infos: Sequence[dict[str, Any]], *, itself: bool = False) -> list[Entry]:
        """Return the lines of a listing, without folders' own empty objects and names that no path has (``a//b``, ``../a``)."""
        own = filesystem_of(self._url)[1].strip("/")
        found = []
        for info in infos:
            name = str(info["name"]).strip("/")
            is_folder = info.get("type") == "directory"
            if name == own:
                if itself and not is_folder and not str(info["name"]).endswith("/"):
                    found.append(Entry(self, int(info["size"]), _time(info)))
            elif (not str(info["name"]).endswith("/") or is_folder) and _is_plain(name[len(own) :]):
                place = self / name[len(own) :].lstrip("/")
                size = 0 if is_folder else int(info["size"])
                found.append(Entry(place, size, 0.0 if is_folder else _time(info), is_folder))
        return sorted(found, key=lambda entry: entry.path)

    def _holds(self, data: bytes) -> bool:
        return self.stat().st_size == len(data) and self.read_bytes() == data


def read_many(entries: Sequence[Entry]) -> list[bytes | OSError]:
    """Read objects of one store whole, many requests at a time; in place of one that cannot be read, the error."""
    if not entries:
        return []
    filesystem, _ = filesystem_of(str(entries[0].path))
    paths = [filesystem_of(str(entry.path))[1] for entry in entries]
    sizes = [entry.size for entry in entries]
    found = filesystem.cat_ranges(paths, [0] * len(paths), sizes, on_error="return")
    return [_checked(entry, data) for entry, data in zip(entries, found, strict=True)]


def _checked(entry: Entry, data: object) -> bytes | OSError:
    """Return what one of many requests brought; one that failed is made again, by itself."""
    if isinstance(data, bytes) and len(data) == entry.size:
        return data
    try:
        return entry.path.read_range(0, entry.size)
    except OSError as error:
        return error


def _put_file(local: Path, target: RemotePath) -> None:
    filesystem, path = filesystem_of(str(target))
    if local.stat().st_size <= _WHOLE:  # one request; and put_file makes folders where a file system has some
        filesystem.pipe_file(path, local.read_bytes())
    else:
        filesystem.put_file(str(local), path)
    size = target.stat().st_size
    if size != local.stat().st_size:
        raise OSError(errno.EIO, f"{size:,} of {local.stat().st_size:,} bytes arrived", str(target))


def _is_plain(below: str) -> bool:
    """Say whether a path's text, with the slash before it, is what a path of its parts has, and stays below the folder."""
    return not any(part in ("", ".", "..") for part in below.removeprefix("/").split("/"))


def _time(info: dict[str, Any]) -> float:
    """Return when an object was written, in seconds; 0 where the file system does not say."""
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return 0.0
