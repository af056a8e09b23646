"""Progress bars on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ...storage.text import visible
from .format import new_console

GO_ON = "Interrupted. Finished work is kept; run the same command again to continue."


class RichProgress:
    """Progress bars on stderr; if stderr is not a terminal, one line per finished stage.

    Parameters
    ----------
    interrupted : str
        Printed after Ctrl-C.
    """

    def __init__(self, interrupted: str = GO_ON) -> None:
        self._interrupted = interrupted
        self._console = new_console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> RichProgress:
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the bars as they are; after an interruption, print what is kept."""
        self._bars.stop()
        if kind is KeyboardInterrupt:
            self._console.print(self._interrupted)

    def start(self, stage: str, total: int) -> None:
        """Begin a stage; an earlier one of the same name is replaced."""
        if stage in self._tasks:
            self._bars.remove_task(self._tasks[stage])
        self._tasks[stage] = self._bars.add_task(stage, total=total, rate="", note="")

    def advance(self, stage: str, units: int) -> None:
        """Advance a stage by ``units``."""
        task = self._tasks[stage]
        self._bars.advance(task, units)
        shown = self._bars.tasks[self._bars.task_ids.index(task)]
        self._bars.update(task, rate=f"{shown.speed:,.0f}/s" if shown.speed else "")
        if shown.finished and not self._console.is_terminal:
            self._console.print(
                f"{stage}: {int(shown.completed):,} done in {shown.elapsed or 0:,.1f} s", highlight=False
            )

    def note(self, stage: str, text: str) -> None:
        """Show a text beside a stage."""
        self._bars.update(self._tasks[stage], note=visible(text))

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(Text(visible(text)), soft_wrap=True)
