"""The logs of a training: progress line, TensorBoard, ``metrics.jsonl``; the first process writes them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from torch.utils.tensorboard import SummaryWriter

from ...progress import Progress, Silent
from ...storage.atomic import fsync_folder
from ..runs.checkpoint import replace_text
from ..runs.folder import RunFolder, append_line
from ..runs.forms import EpochMetrics, State

STAGE = "training"


class MetricsLogger:
    """Logs a training; a context manager.

    Parameters
    ----------
    folder
        The run.
    progress
        Receives the samples and a line per step.
    state
        Where the training starts or resumes.
    total, done
        Samples of the whole training, and samples done in ``state``.
    enabled
        Whether this process logs.
    """

    def __init__(
        self, folder: RunFolder, progress: Progress, state: State, total: int, done: int, *, enabled: bool
    ) -> None:
        self._folder = folder
        self._enabled = enabled
        self._progress = progress if enabled else Silent()
        self._total, self._done = total, done
        self._board: SummaryWriter | None = None
        self._state = state
        self._threads: Callable[[threading.ExceptHookArgs], object] | None = None

    def __enter__(self) -> Self:
        """Open the logs, and drop what a stopped training had logged after its saved state."""
        if self._enabled:
            replace_text(self._folder.metrics, "")
            for line in self._state.history:
                append_line(self._folder.metrics, line)
            self._threads = threading.excepthook
            threading.excepthook = self._thread_failed
            with self._optional():
                self._board = SummaryWriter(str(self._folder.tensorboard), purge_step=self._state.step + 1)
        self._progress.start(STAGE, self._total)
        self._progress.advance(STAGE, self._done)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        with self._optional():
            if self._board is not None:
                self._board.close()
        if self._threads is not None:
            threading.excepthook = self._threads

    def step(self, state: State, number: int, values: tuple[float, float, float], samples: int, rate: float) -> None:
        """Log total, bce and kd of a step by its number, and its learning rate."""
        scalars = dict(zip(("loss", "bce", "kd", "lr"), (*values, rate), strict=True))
        self._plot({f"batch/{name}": value for name, value in scalars.items()}, number)
        self._progress.advance(STAGE, samples)
        note = "epoch {}: loss {:.4f} bce {:.4f} kd {:.4f} lr {:.1e}"
        self._progress.note(STAGE, note.format(state.epoch + 1, *values, rate))

    def epoch(self, state: State, line: EpochMetrics) -> None:
        """Log the line of an epoch."""
        if not self._enabled:
            return
        append_line(self._folder.metrics, line)
        fsync_folder(self._folder.metrics)
        shown = {f"epoch/{name}": value for name, value in line.items() if name not in ("epoch", "step")}
        self._plot({name: value for name, value in shown.items() if value is not None}, state.step)

    def _plot(self, scalars: dict[str, float], step: int) -> None:
        with self._optional():
            for name, value in scalars.items():
                if self._board is not None:
                    self._board.add_scalar(name, value, step)

    @contextmanager
    def _optional(self) -> Iterator[None]:
        """Go on without curves if their file cannot be written: they can be drawn from ``metrics.jsonl``."""
        try:
            yield
        except Exception as error:  # TensorBoard raises what its writing thread has raised, whatever that was
            self._board = None
            self._progress.say(f"{self._folder.tensorboard}: TensorBoard's curves end here ({error}).")

    def _thread_failed(self, failed: threading.ExceptHookArgs) -> None:
        """Leave the failures of TensorBoard's writing thread to `_optional`, which says them without a traceback."""
        if not type(failed.thread).__module__.startswith("tensorboard.") and self._threads is not None:
            self._threads(failed)
