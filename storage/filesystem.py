"""The fsspec file system that serves a URL."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from ..errors import UserError

CONNECTIONS = 64
"""Concurrent requests per client. With the libraries' default of 10 a reader would mostly wait."""
_EXTRA = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the URL's path in it.

    fsspec keeps one instance per process and set of options. Call this again for every request: an instance created
    before a fork must not be used after it. Listings are not cached. s3fs's own retries are switched off, since
    :mod:`.retry` retries; nested retries would wait for half an hour.

    Parameters
    ----------
    url
        An object or folder, such as ``s3://bucket/name``.

    Raises
    ------
    UserError
        If fsspec does not know the protocol, or the package for it is not installed.
    """
    protocol = url.partition("://")[0]
    import fsspec  # here and below: imported only where an object store is used

    kind = _filesystem_class(protocol)
    options = {**_connection_options(protocol), **kind._get_kwargs_from_urls(url)}
    try:
        filesystem = fsspec.filesystem(protocol, use_listings_cache=False, **options)
    except (ImportError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{url}: cannot be reached ({error}).") from error
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1  # see with_retries
    return filesystem, kind._strip_protocol(url)


def _connection_options(protocol: str) -> dict[str, Any]:
    """Return the s3fs option for :data:`CONNECTIONS` concurrent requests; the user's own configuration wins.

    The Hub is asked for the dates of files, without which unchanged files are not recognised.
    """
    if protocol == "hf":
        return {"expand_info": True}
    if protocol not in ("s3", "s3a"):
        return {}
    import fsspec

    configured = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    return {"config_kwargs": {"max_pool_connections": CONNECTIONS, **configured}}


@lru_cache(maxsize=16)
def _filesystem_class(protocol: str) -> Any:
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs full tracebacks of errors that it also raises
    try:
        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRA.get(protocol)
        how = f"Install it with: pip install 'distil-cache[{extra}]'" if extra else str(error)
        raise UserError(f"{protocol}:// needs a package that is not installed. {how}") from error
    except ValueError as error:
        raise UserError(f"{protocol}://: unknown kind of store ({error}).") from error
