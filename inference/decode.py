"""From files, Pillow images and arrays to the uint8 pictures that a student's features are made of, several at a time.

The picture is decoded by the pipeline's own code under the run's image spec, so it is the one that a build would have
cached. What cannot be used is set aside with the reasons of the scan.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import UsageError
from ..images.decode import decode, decode_image
from ..images.file import ImageRejected, Limits
from ..images.spec import ImageSpec
from ..pipeline.sources.file import printable
from ..pipeline.sources.read import read_source_bytes
from ..storage import AnyPath
from .arguments import is_video
from .video import sample

Picture = NDArray[np.uint8]
"""Uint8 (3, S, S)."""

Source = str | AnyPath | Image.Image | NDArray[np.uint8]
"""A path or a URL, a Pillow image, or uint8 pixels of shape (H, W), (H, W, 3) or (H, W, 4)."""


@dataclass(frozen=True, slots=True)
class InputItem:
    """One thing to look at: its place in the input from 1 on, what to call it, and the thing itself."""

    number: int
    name: str
    source: Source
    video: bool

    @classmethod
    def of(cls, number: int, source: Source) -> InputItem:
        """Name a source. UsageError for an array that is no picture."""
        if isinstance(source, np.ndarray):
            if (
                source.dtype != np.uint8
                or source.ndim not in (2, 3)
                or (source.ndim == 3 and source.shape[2] not in (3, 4))
            ):
                shape = f"{source.dtype} of shape {source.shape}"
                raise UsageError(f"predict: input {number} is {shape}; give uint8 (H, W), (H, W, 3) or (H, W, 4).")
            return cls(number, f"input {number}", source, False)
        if isinstance(source, Image.Image):
            return cls(number, printable(str(getattr(source, "filename", ""))) or f"input {number}", source, False)
        if not isinstance(source, str | AnyPath):
            raise UsageError(f"predict: input {number} is a {type(source).__name__}, not a path, an image or an array.")
        return cls(number, printable(str(source)), str(source), is_video(str(source)))


@dataclass(frozen=True, slots=True)
class DecodedInput:
    """The pictures of an item, with their seconds in the video (None elsewhere), or why there are none."""

    item: InputItem
    pictures: tuple[Picture, ...] = ()
    seconds: tuple[float | None, ...] = ()
    rejected: ImageRejected | None = None


@dataclass(frozen=True)
class InputDecoder:
    """How items become pictures. frames : most that are taken of a video. workers : threads that decode."""

    spec: ImageSpec
    limits: Limits
    frames: int
    workers: int

    def look(self, items: Iterable[InputItem], ahead: int) -> Generator[DecodedInput]:
        """Yield what each item holds, in order; about ``ahead`` pictures more are decoded meanwhile."""
        pool = ThreadPoolExecutor(max_workers=self.workers)
        flying: deque[tuple[int, Future[DecodedInput]]] = deque()
        waiting = 0
        try:
            for item in items:
                weight = self.frames if item.video else 1
                while flying and waiting + weight > ahead:
                    first, done = flying.popleft()
                    yield done.result()
                    waiting -= first
                flying.append((weight, pool.submit(self.one, item)))
                waiting += weight
            while flying:
                yield flying.popleft()[1].result()
        finally:
            pool.shutdown(cancel_futures=True)

    def one(self, item: InputItem) -> DecodedInput:
        """Decode one item. Never raises for what is wrong with it."""
        try:
            if item.video:
                frames = sample(str(item.source), self.frames, self._of_image, self.limits)
                return DecodedInput(item, tuple(f.value for f in frames), tuple(f.seconds for f in frames))
            return DecodedInput(item, (self._picture(item.source),), (None,))
        except ImageRejected as rejected:
            return DecodedInput(item, rejected=rejected)

    def _picture(self, source: Source) -> Picture:
        if isinstance(source, np.ndarray):
            return self._of_image(Image.fromarray(source))
        if isinstance(source, Image.Image):
            return self._of_image(source)
        if "\0" in str(source):
            raise ImageRejected("missing", "no file's name has a NUL byte")
        return decode(read_source_bytes(str(source)), self.spec, self.limits)

    def _of_image(self, image: Image.Image) -> Picture:
        return decode_image(image, self.spec, self.limits)
