"""A path in an object store, with the part of the :class:`pathlib.Path` interface that a cache and its sources need.

An object store has objects and no folders: a folder exists as long as an object below it does. Objects appear whole or
not at all. ``create`` writes one only where none exists (a conditional put, atomic across all writers); the commit
protocol of a cache rests on it. Listings are never cached, since other processes write too.

fsspec makes the requests. Each is retried while the store or the network fails (:mod:`.retry`).
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
_TIMES = ("LastModified", "mtime", "updated", "last_modified", "created", "last_commit")
"""Keys under which fsspec file systems report when an object was written."""
_BUFFER = 1 << 20
_SINGLE_PUT = 64 << 20


@dataclass(frozen=True)
class RemoteStatus:
    """What a store reports of an object without reading it.

    Attributes
    ----------
    st_size
        Bytes.
    st_mtime
        When it was written, in seconds since the epoch by the store's clock.
    """

    st_size: int
    st_mtime: float

    @property
    def st_mtime_ns(self) -> int:
        """When the object was written, in nanoseconds."""
        return round(self.st_mtime * 1e9)


@dataclass(frozen=True)
class Entry:
    """One entry of a listing: an object with its size in bytes and time in seconds, or a folder, where both are 0."""

    path: RemotePath
    size: int
    mtime: float
    is_folder: bool = False


@total_ordering
class RemotePath:
    """A path in an object store.

    Paths compare, hash and sort by URL, and can be pickled and used in forked processes. They are not
    ``os.PathLike``, so code that would open one as a local file fails at once.

    FileNotFoundError, FileExistsError and PermissionError mean what they mean locally. Any other failure of the store
    or the network is, after some retries, an OSError.

    Parameters
    ----------
    url
        Such as ``s3://bucket/folder/name``. Empty and ``.`` parts are dropped.
    """

    __slots__ = ("_url",)

    def __init__(self, url: str) -> None:
        protocol, _, rest = url.partition("://")
        self._url = f"{protocol}://{'/'.join(part for part in rest.split('/') if part and part != '.')}"

    # Pure path operations

    @property
    def protocol(self) -> str:
        """The kind of store, such as ``s3``."""
        return self._url.partition("://")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        """The protocol with the bucket, then the names of the path."""
        first, *names = self._url.partition("://")[2].split("/")
        return (f"{self.protocol}://{first}", *names)

    @property
    def name(self) -> str:
        """The last part; for a bucket, the bucket's name."""
        return self._url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """The last suffix of the name with its dot, or an empty string."""
        return PurePosixPath(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return PurePosixPath(self.name).stem

    @property
    def parent(self) -> RemotePath:
        """The folder above; for a bucket, the bucket itself."""
        names = self.parts
        return self if len(names) == 1 else RemotePath("/".join(names[:-1]))

    @property
    def parents(self) -> Sequence[RemotePath]:
        """The folders above, nearest first."""
        names = self.parts
        return [RemotePath("/".join(names[:length])) for length in range(len(names) - 1, 0, -1)]

    def __truediv__(self, name: str | PurePosixPath) -> RemotePath:
        return RemotePath(f"{self._url}/{name}")

    def with_name(self, name: str) -> RemotePath:
        """Return the path of a sibling."""
        return self.parent / name

    def relative_to(self, other: object) -> PurePosixPath:
        """Return the path relative to a folder above it; ValueError if it is not below that folder."""
        if not self.is_relative_to(other):
            raise ValueError(f"{self} is not below {other}")
        return PurePosixPath(self._url[len(str(other)) :].lstrip("/"))

    def is_relative_to(self, other: object) -> bool:
        """Return whether this is ``other`` or below it."""
        return isinstance(other, RemotePath) and f"{self._url}/".startswith(f"{other._url}/")

    def resolve(self) -> RemotePath:
        """Return the path itself: a URL is always absolute."""
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

    # Existence and listings

    def exists(self) -> bool:
        """Return whether an object exists here or below."""
        return self._kind() is not None

    def is_file(self) -> bool:
        """Return whether an object exists here."""
        return self._kind() == "file"

    def is_dir(self) -> bool:
        """Return whether objects exist below and none exists here."""
        return self._kind() == "directory"

    def is_symlink(self) -> bool:
        """Return False: an object store has no links."""
        return False

    def stat(self) -> RemoteStatus:
        """Return an object's size and time; FileNotFoundError if there is none, or only a folder."""
        info = self._request("info")
        if info.get("type") == "directory":
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._url)
        return RemoteStatus(int(info["size"]), _time(info))

    def children(self) -> list[Entry]:
        """Return the objects and folders directly below, sorted by name; an empty list if there are none."""
        try:
            return self._entries(self._request("ls", detail=True))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def below(self) -> list[Entry]:
        """Return all objects below, at any depth, sorted by path.

        The list holds the object itself if there is one here, and is empty if there is nothing.
        """
        try:
            return self._entries(list(self._request("find", detail=True).values()), include_self=True)
        except (FileNotFoundError, NotADirectoryError):
            return []

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield the direct children."""
        for entry in self.children():
            yield entry.path

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield the paths below that match, sorted.

        Parameters
        ----------
        pattern
            ``*``, ``?`` and ``[...]`` match within one name; ``**`` has no special meaning.
        """
        first, _, rest = pattern.partition("/")
        if not any(letter in first for letter in "*?["):
            child = self / first
            if rest:
                yield from child.glob(rest)
            elif child.exists():
                yield child
            return
        for entry in self.children():
            if fnmatch.fnmatchcase(entry.path.name, first):
                if not rest:
                    yield entry.path
                elif entry.is_folder:
                    yield from entry.path.glob(rest)

    # Reading

    def read_bytes(self) -> bytes:
        """Return a whole object; if it is replaced meanwhile, either the old or the new one."""
        data: bytes = self._request("cat_file")
        return data

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes from ``start`` up to ``stop``.

        Raises
        ------
        OSError
            If fewer bytes arrive, as when the range exceeds the object.
        """
        if start == stop:
            return b""

        def read() -> bytes:
            filesystem, path = filesystem_of(self._url)
            data: bytes = filesystem.cat_file(path, start=start, end=stop)
            if len(data) != stop - start:
                raise OSError(errno.EIO, f"{len(data):,} of {stop - start:,} bytes were received", self._url)
            return data

        return with_retries(read, self._url)

    def open(self, mode: str = "rb") -> BufferedReader:
        """Open an object for buffered reading in binary mode; each read of the buffer is a range request."""
        if mode != "rb":
            raise ValueError(f"mode {mode!r}: a store's objects are opened for reading only")
        return BufferedReader(RemoteStream(self.read_range, self.stat().st_size), _BUFFER)

    def download(self, target: Path) -> None:
        """Copy an object, or all objects below, to a new local file or folder.

        Raises
        ------
        FileNotFoundError
            If there is nothing to copy.
        OSError
            If an object arrives incomplete.
        """
        entries = self.below()
        if not entries:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._url)
        for entry in entries:
            local = target / entry.path.relative_to(self) if entry.path != self else target
            local.parent.mkdir(parents=True, exist_ok=True)
            entry.path._request("get_file", str(local))
            if local.stat().st_size != entry.size:
                raise OSError(
                    errno.EIO, f"{local.stat().st_size:,} of {entry.size:,} bytes were received", str(entry.path)
                )

    # Writing

    def create(self, *data: bytes | memoryview) -> bool:
        """Put an object unless one exists (a conditional put).

        If the answer to a put is lost, the retry is refused. The stored object then decides: identical bytes count as
        this call's own.

        Parameters
        ----------
        *data
            The content, as pieces that are joined.

        Returns
        -------
        bool
            Whether the stored object is the one of this call.
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
                    raise OSError(errno.EAGAIN, "it existed and was deleted meanwhile", self._url) from error
            return True

        return with_retries(put, self._url)

    def write(self, data: bytes) -> None:
        """Put an object, replacing any that exists."""
        self._request("pipe_file", data, mode="overwrite")

    def upload(self, source: Path) -> None:
        """Copy a local file, or all files below a local folder, here; OSError if one arrives incomplete."""
        for local in sorted(path for path in (source.rglob("*") if source.is_dir() else [source]) if path.is_file()):
            target = self / PurePosixPath(local.relative_to(source)) if source.is_dir() else self
            with_retries(lambda local=local, target=target: _put_file(local, target), str(target))  # type: ignore[misc]

    def copy_to(self, target: Path | RemotePath) -> None:
        """Copy an object within its store, replacing any at the target.

        Raises
        ------
        FileNotFoundError
            If there is no object here.
        ValueError
            If the target is not in the same kind of store.
        """
        if not isinstance(target, RemotePath) or target.protocol != self.protocol:
            raise ValueError(f"{target} is not in the same store as {self}")
        self._request("cp_file", filesystem_of(str(target))[1])

    def unlink(self, missing_ok: bool = True) -> None:
        """Delete an object.

        Most stores do not report whether the object existed, so ``missing_ok=False`` raises FileNotFoundError only
        where the store does.
        """
        try:
            self._request("rm_file")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self) -> None:
        """Delete an object, or all objects below."""
        for entry in self.below():
            entry.path.unlink()
        if self.is_dir():  # some file systems have real folders
            self._request("rm", recursive=True)

    # Requests

    def _kind(self) -> object:
        try:
            return self._request("info").get("type")
        except FileNotFoundError:
            return None

    def _request(self, operation: str, *arguments: object, **options: object) -> Any:
        """Call an operation of the file system on this path, with retries."""

        def request() -> Any:
            filesystem, path = filesystem_of(self._url)
            return getattr(filesystem, operation)(path, *arguments, **options)

        return with_retries(request, self._url)

    def _entries(self, infos: Sequence[dict[str, Any]], *, include_self: bool = False) -> list[Entry]:
        """Return a listing's entries.

        Left out are the empty objects that some tools write for folders, and names that no path has (``a//b``,
        ``../a``).
        """
        own = filesystem_of(self._url)[1].strip("/")
        found = []
        for info in infos:
            name = str(info["name"]).strip("/")
            is_folder = info.get("type") == "directory"
            if name == own:
                if include_self and not is_folder and not str(info["name"]).endswith("/"):
                    found.append(Entry(self, int(info["size"]), _time(info)))
            elif (not str(info["name"]).endswith("/") or is_folder) and _is_plain(name[len(own) :]):
                path = self / name[len(own) :].lstrip("/")
                size = 0 if is_folder else int(info["size"])
                found.append(Entry(path, size, 0.0 if is_folder else _time(info), is_folder))
        return sorted(found, key=lambda entry: entry.path)

    def _holds(self, data: bytes) -> bool:
        return self.stat().st_size == len(data) and self.read_bytes() == data


def read_many(entries: Sequence[Entry]) -> list[bytes | OSError]:
    """Read several whole objects of one store with concurrent requests.

    Returns
    -------
    list of bytes or OSError
        One item for each entry: its content, or the error if it cannot be read.
    """
    if not entries:
        return []
    filesystem, _ = filesystem_of(str(entries[0].path))
    paths = [filesystem_of(str(entry.path))[1] for entry in entries]
    sizes = [entry.size for entry in entries]
    found = filesystem.cat_ranges(paths, [0] * len(paths), sizes, on_error="return")
    return [_whole_or_error(entry, data) for entry, data in zip(entries, found, strict=True)]


def _whole_or_error(entry: Entry, data: object) -> bytes | OSError:
    """Return one object of a batch of requests; if that request failed, read the object again by itself."""
    if isinstance(data, bytes) and len(data) == entry.size:
        return data
    try:
        return entry.path.read_range(0, entry.size)
    except OSError as error:
        return error


def _put_file(local: Path, target: RemotePath) -> None:
    filesystem, path = filesystem_of(str(target))
    if (
        local.stat().st_size <= _SINGLE_PUT
    ):  # a single request; put_file would also create folders on file systems that have them
        filesystem.pipe_file(path, local.read_bytes())
    else:
        filesystem.put_file(str(local), path)
    size = target.stat().st_size
    if size != local.stat().st_size:
        raise OSError(errno.EIO, f"{size:,} of {local.stat().st_size:,} bytes arrived", str(target))


def _is_plain(below: str) -> bool:
    """Return whether a relative name, with its leading slash, has no empty, ``.`` or ``..`` part."""
    return not any(part in ("", ".", "..") for part in below.removeprefix("/").split("/"))


def _time(info: dict[str, Any]) -> float:
    """Return when an object was written, in seconds since the epoch; 0 if the file system does not report it."""
    for name in _TIMES:
        value = info.get(name)
        if name == "last_commit":  # the Hub gives the commit
            value = getattr(value, "date", None)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, str):
            return datetime.fromisoformat(value).timestamp()
        if isinstance(value, (int, float)):
            return float(value)
    return 0.0
