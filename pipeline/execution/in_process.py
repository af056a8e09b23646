"""The tasks of a plan in this process, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...models.device import device_name
from ...progress import Progress
from ..config import BuildConfig
from ..planning.prepare import BuildPlan
from .context import TaskContext
from .deviation import Deviation, deviation_on
from .tasks import TaskReport, run_tasks


class InProcessExecutor:
    """One build's work in the loop of :func:`.tasks.run_tasks`. ``context`` : what its tasks share."""

    def __init__(self, config: BuildConfig, ready: BuildPlan, progress: Progress) -> None:
        self._tasks = ready.plan.tasks
        self.context = TaskContext.of(config, ready, ready.files(), progress.advance)

    def reports(self) -> Iterator[TaskReport]:
        """Do the tasks; yields what became of each."""
        name = device_name(self.context.models.device, of_machine=True)
        return (TaskReport(done, "", name) for done in run_tasks(self._tasks, self.context))

    def deviation(self, keys: Sequence[str]) -> Deviation:
        """Compare reduced precision with float32 on these cached pictures."""
        return deviation_on(self.context, keys)
