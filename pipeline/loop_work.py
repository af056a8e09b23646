"""The tasks of a plan in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..progress import Progress
from .config import BuildConfig
from .device import device_name
from .precision import Deviation, deviation_on
from .prepare import Prepared
from .run import Report, run_tasks
from .toolbox import make_tools


class LoopWork:
    """One build's work in the loop of :func:`.run.run_tasks`. ``tools`` : what its tasks share."""

    def __init__(self, config: BuildConfig, ready: Prepared, progress: Progress) -> None:
        self._config, self._tasks = config, ready.plan.tasks
        self.tools = make_tools(
            config, ready.device, ready.schedule, ready.specs, ready.stores, pictures=ready.pictures,
            files={row.key: row.file for row in reversed(ready.scanned.rows)} if self._tasks else {},
            advance=progress.advance,
        )  # fmt: skip

    def reports(self) -> Iterator[Report]:
        """Do the tasks; yields what became of each."""
        name = device_name(self.tools.device)
        return (Report(done, "", name) for done in run_tasks(self._tasks, self.tools))

    def deviation(self, keys: Sequence[str]) -> Deviation:
        """Compare reduced precision with float32 on these cached pictures."""
        return deviation_on(self._config, self.tools, keys)
