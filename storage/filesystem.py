"""The file system of fsspec that serves a URL."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

from ..errors import UserError

CONNECTIONS = 64
"""Requests that are under way at a time; the libraries' own 10 would leave a reader waiting most of the time."""
_EXTRA = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the URL's path in it.

    fsspec keeps one for each process and set of options, so this is asked again for every request: an object of before a
    fork must not be used after it. Listings are not kept. Of the layers that try again when there is no answer s3fs's own
    is left out (:mod:`.retry` does it): together they would wait for half an hour.

    Raises UserError for a protocol that fsspec does not know, or whose package is not installed.
    """
    protocol = url.partition("://")[0]
    import fsspec  # here and below: only those pay for it who use an object store

    kind = _kind(protocol)
    options = {**_many_at_once(protocol), **kind._get_kwargs_from_urls(url)}
    try:
        filesystem = fsspec.filesystem(protocol, use_listings_cache=False, **options)
    except (ImportError, ValueError, TypeError, OSError) as error:
        raise UserError(f"{url}: cannot be reached ({error}).") from error
    if protocol in ("s3", "s3a"):
        filesystem.retries = 1  # repeating is done in one place; nested, it would wait for most of an hour
    return filesystem, kind._strip_protocol(url)


def _many_at_once(protocol: str) -> dict[str, Any]:
    """Return the option of s3fs that allows :data:`CONNECTIONS` requests at a time, beside what a user has configured."""
    if protocol not in ("s3", "s3a"):
        return {}
    import fsspec

    configured = fsspec.config.conf.get(protocol, {}).get("config_kwargs", {})
    return {"config_kwargs": {"max_pool_connections": CONNECTIONS, **configured}}


@lru_cache(maxsize=16)
def _kind(protocol: str) -> Any:
    import fsspec

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs whole tracebacks of what it raises anyway
    try:
        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = _EXTRA.get(protocol)
        how = f"Install it with: pip install 'distil-cache[{extra}]'" if extra else str(error)
        raise UserError(f"{protocol}:// needs a package that is not installed. {how}") from error
    except ValueError as error:
        raise UserError(f"{protocol}://: no such kind of store is known ({error}).") from error
