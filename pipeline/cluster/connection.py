"""The connection to a Dask scheduler, and to its successor at the same address when it has gone away.

A scheduler stores nothing on disk, so a restarted one knows neither the build nor its tasks. A new client registers the
build's plugin again, and the tasks that were submitted through the old client are submitted again. Dask's own client
also reconnects, but silently and without the plugin.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from distributed import Client
from distributed.client import ClosedClientError

from ...errors import UserError
from .worker import BuildPlugin

T = TypeVar("T")
RETURN_SECONDS = 300.0
"""How long a build waits for a scheduler to come back."""
LOST = (OSError, TimeoutError, asyncio.CancelledError, ClosedClientError)
"""What Dask's client raises if the scheduler is gone, or goes away during a request."""
NO_ANSWER = (*LOST, ValueError, RuntimeError)
"""What it raises if nothing answers at the address, or something that is not a scheduler."""
_ATTEMPT_SECONDS = 10.0
_PAUSE_SECONDS = 0.5
_CLOSE_SECONDS = 5.0


class Connection:
    """A client of the scheduler at an address, replaced each time the scheduler goes away.

    Parameters
    ----------
    client
        Connected client.
    address
        Address of the scheduler.
    say
        Called with a message when the scheduler goes away and when there is one again. None for a scheduler in this
        process, which cannot come back.
    """

    def __init__(self, client: Client, address: str, say: Callable[[str], None] | None = None) -> None:
        self.client = client
        self.address = address
        self._say = say
        self._plugin: BuildPlugin | None = None

    @property
    def running(self) -> bool:
        """Whether the scheduler is running, as far as this process knows."""
        return bool(self.client.status == "running")

    def ask(self, request: Callable[[Client], T]) -> T:
        """Send a request to the scheduler, or to its successor. Raises UserError if none comes in time."""
        while True:
            try:
                return request(self.client)
            except LOST as error:
                self.renew(error)

    def give(self, plugin: BuildPlugin) -> None:
        """Install a plugin on all workers, including those that join later or with another scheduler."""
        self._plugin = plugin
        self.ask(lambda client: client.register_plugin(plugin))

    def take_back(self, plugin: BuildPlugin) -> None:
        """Remove the plugin from the workers, unless the scheduler is gone."""
        self._plugin = None
        if self.running:
            with suppress(*LOST, ValueError):  # a scheduler that has just started does not know it
                self.client.unregister_worker_plugin(plugin.name)

    def renew(self, why: BaseException | None = None) -> None:
        """Wait for a scheduler at the address and connect to it. Raises UserError if none comes in time."""
        if self._say is None:
            raise self._gone() from why
        self._say(
            f"the scheduler at {self.address} went away. Waiting up to {RETURN_SECONDS:.0f} s for it to return; "
            "finished shards are kept"
        )
        self.close()
        end = time.monotonic() + RETURN_SECONDS
        while (left := end - time.monotonic()) > 0:
            with suppress(*NO_ANSWER):
                self.client = Client(self.address, timeout=min(left, _ATTEMPT_SECONDS), set_as_default=False)
                if self._plugin is not None:
                    self.client.register_plugin(self._plugin)
                self._say(f"connected to the scheduler at {self.address} again; unfinished tasks are submitted again")
                return
            self.close()
            time.sleep(_PAUSE_SECONDS)
        raise self._gone() from why

    def close(self) -> None:
        """Close the client, ignoring a lost connection."""
        with suppress(*LOST):
            self.client.close(_CLOSE_SECONDS)

    def _gone(self) -> UserError:
        return UserError(
            f"the scheduler at {self.address} went away. Finished shards are kept. "
            "Start it and run the same command again."
        )


@contextmanager
def silenced_logging() -> Iterator[None]:
    """Keep Dask's client from logging the loss of a scheduler with a traceback: the build reports it in a sentence."""
    log = logging.getLogger("distributed.client")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
