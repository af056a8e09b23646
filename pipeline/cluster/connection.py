"""The line to a Dask scheduler, and to the next one at the same address when that one has gone away.

A scheduler keeps nothing on a disk: one that was started anew knows neither the build nor its tasks. So a new client gives it
the build's plugin again, and whoever handed in tasks through the old client hands them in anew. Dask's own client would connect
again too, but tell nobody, and leave the plugin out.
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
"""What Dask's client raises if the scheduler is gone, or goes while it is asked."""
NO_ANSWER = (*LOST, ValueError, RuntimeError)
"""What it raises if nobody is there to connect to, or somebody who is no scheduler."""
_ATTEMPT_SECONDS = 10.0
_PAUSE_SECONDS = 0.5
_CLOSE_SECONDS = 5.0


class Connection:
    """A client of the scheduler at ``address``; another one after each time that the scheduler went away.

    tell : is told when the scheduler went away and when there is one again. None for a scheduler that lives in this process: it
    cannot come back.
    """

    def __init__(self, client: Client, address: str, tell: Callable[[str], None] | None = None) -> None:
        self.client = client
        self.address = address
        self._tell = tell
        self._plugin: BuildPlugin | None = None

    @property
    def running(self) -> bool:
        """Whether the scheduler is there, as far as this process knows."""
        return bool(self.client.status == "running")

    def ask(self, question: Callable[[Client], T]) -> T:
        """Put a question to the scheduler; if that is gone, to the one that comes. UserError if none does."""
        while True:
            try:
                return question(self.client)
            except LOST as error:
                self.renew(error)

    def give(self, plugin: BuildPlugin) -> None:
        """Give a plugin to all workers: those that are there, that join later, and that come with another scheduler."""
        self._plugin = plugin
        self.ask(lambda client: client.register_plugin(plugin))

    def take_back(self, plugin: BuildPlugin) -> None:
        """Take the plugin from the workers again; a scheduler that is gone is not asked."""
        self._plugin = None
        if self.running:
            with suppress(*LOST, ValueError):  # a scheduler that came this moment does not know it
                self.client.unregister_worker_plugin(plugin.name)

    def renew(self, why: BaseException | None = None) -> None:
        """Wait for a scheduler at the address and connect to it. UserError if none comes in time, or none can."""
        if self._tell is None:
            raise self._gone() from why
        self._tell(
            f"the scheduler at {self.address} went away. Waiting up to {RETURN_SECONDS:.0f} s for it to be there again; "
            "what is finished is kept"
        )
        self.close()
        end = time.monotonic() + RETURN_SECONDS
        while (left := end - time.monotonic()) > 0:
            with suppress(*NO_ANSWER):
                self.client = Client(self.address, timeout=min(left, _ATTEMPT_SECONDS), set_as_default=False)
                if self._plugin is not None:
                    self.client.register_plugin(self._plugin)
                self._tell(f"connected to the scheduler at {self.address} again; what was under way is handed in anew")
                return
            self.close()
            time.sleep(_PAUSE_SECONDS)
        raise self._gone() from why

    def close(self) -> None:
        """Close the client, whatever is left of it."""
        with suppress(*LOST):
            self.client.close(_CLOSE_SECONDS)

    def _gone(self) -> UserError:
        return UserError(
            f"the scheduler at {self.address} went away. What was finished is kept: start it and run the same command again."
        )


@contextmanager
def silenced_logging() -> Iterator[None]:
    """Keep Dask's client from logging the loss of a scheduler with a traceback: the build says it in a sentence."""
    log = logging.getLogger("distributed.client")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)
