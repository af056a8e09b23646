"""Decode files, Pillow images and arrays in threads to the uint8 images from which a student's features are made.

Decoding uses the build's code with the run's image spec, so an image has the pixels that a build would cache. Inputs
that cannot be used are rejected with the reasons of the scan.
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
from ..images.file import ImageRejected, Limits, content_key, rejection
from ..images.spec import ImageSpec
from ..pipeline.sources.file import printable
from ..pipeline.sources.read import read_source_bytes
from ..storage import AnyPath
from .arguments import is_video
from .video import sample

Source = str | AnyPath | Image.Image | NDArray[np.uint8]
"""A path or a URL, a Pillow image, or uint8 pixels of shape (H, W), (H, W, 3) or (H, W, 4)."""


@dataclass(frozen=True, slots=True)
class InputItem:
    """One input.

    Attributes
    ----------
    number : int
        Position in the input, from 1.
    name : str
        What to call it: its path, or ``input N``.
    source : Source
    video : bool
    """

    number: int
    name: str
    source: Source
    video: bool

    @classmethod
    def of(cls, number: int, source: Source) -> InputItem:
        """Wrap a source.

        Raises
        ------
        UsageError
            If the source is not a path, an image, or an array of the right type and shape.
        """
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
    """What an input was decoded to.

    Attributes
    ----------
    item : InputItem
    images : tuple of ndarray
        (3, S, S) uint8 each: one for an image, one per sampled frame for a video, none if rejected.
    keys : tuple of str
        Key of each image: of the file's bytes, as in a cache; of the pixels for what was no image file.
    seconds : tuple of float or None
        Time of each frame in the video; None for an image.
    rejected : ImageRejected or None
        Why there are no images.
    """

    item: InputItem
    images: tuple[NDArray[np.uint8], ...] = ()
    keys: tuple[str, ...] = ()
    seconds: tuple[float | None, ...] = ()
    rejected: ImageRejected | None = None


@dataclass(frozen=True)
class InputDecoder:
    """Decodes inputs.

    Attributes
    ----------
    spec : ImageSpec
        Resizing and cropping.
    limits : Limits
        Sizes that are accepted.
    frames : int
        Most frames per video.
    workers : int
        Decoding threads.
    """

    spec: ImageSpec
    limits: Limits
    frames: int
    workers: int

    def decode(self, items: Iterable[InputItem], ahead: int) -> Generator[DecodedInput]:
        """Decode items in threads and yield them in order, while about ``ahead`` further images are being decoded."""
        pool = ThreadPoolExecutor(max_workers=self.workers)
        pending: deque[tuple[int, Future[DecodedInput]]] = deque()
        held = 0
        try:
            for item in items:
                weight = self.frames if item.video else 1
                while pending and held + weight > ahead:
                    first, done = pending.popleft()
                    yield done.result()
                    held -= first
                pending.append((weight, pool.submit(self.decode_one, item)))
                held += weight
            while pending:
                yield pending.popleft()[1].result()
        finally:
            pool.shutdown(cancel_futures=True)

    def decode_one(self, item: InputItem) -> DecodedInput:
        """Decode one item. An unusable one is returned with the reason, whatever its decoder raised."""
        try:
            if item.video:
                frames = sample(str(item.source), self.frames, self._from_pillow, self.limits)
                images = tuple(frame.value for frame in frames)
                return DecodedInput(item, images, tuple(map(_pixel_key, images)), tuple(f.seconds for f in frames))
            image, key = self._from_source(item.source)
            return DecodedInput(item, (image,), (key,), (None,))
        except Exception as error:  # one bad item must not end the list; what is not its fault is raised again
            return DecodedInput(item, rejected=rejection(b"", error))

    def _from_source(self, source: Source) -> tuple[NDArray[np.uint8], str]:
        """Return the image of a source and its key."""
        if isinstance(source, np.ndarray | Image.Image):
            image = self._from_pillow(source if isinstance(source, Image.Image) else Image.fromarray(source))
            return image, _pixel_key(image)
        if "\0" in str(source):
            raise ImageRejected("missing", "a file's name cannot contain a NUL byte")
        data = read_source_bytes(str(source))
        return decode(data, self.spec, self.limits), content_key(data)

    def _from_pillow(self, image: Image.Image) -> NDArray[np.uint8]:
        return decode_image(image, self.spec, self.limits)


def _pixel_key(image: NDArray[np.uint8]) -> str:
    return content_key(image.tobytes())
