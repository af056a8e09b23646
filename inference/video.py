"""Sample frames evenly over a video with the optional package ``av`` (PyAV, which includes FFmpeg).

Memory holds one full frame and what the caller makes of the sampled ones, whatever the length of the video. FFmpeg may
open only video containers: a playlist could name other files or addresses to open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from PIL import Image

from ..images.file import ImageRejected, Limits
from ..pipeline.sources.read import file_status, path_of_source

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

T = TypeVar("T")

CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,m4v,h264,hevc"
SEEK_OVER = 4.0
"""Seconds beyond which to seek to the keyframe before the next wanted frame instead of decoding up to it."""
INSTALL = 'videos need the package av: pip install "distil-cache[video]"'


@dataclass(frozen=True, slots=True)
class SampledFrame(Generic[T]):
    """One frame: its time in seconds (None if the video has no times), and what the caller made of it."""

    seconds: float | None
    value: T


def sample(path: str, count: int, take: Callable[[Image.Image], T], limits: Limits) -> list[SampledFrame[T]]:
    """Sample up to ``count`` frames: those shown in the middle of ``count`` intervals of equal length.

    A video of unknown length is decoded completely.

    Parameters
    ----------
    path : str
        Path or URL.
    count : int
        Most frames.
    take : callable
        Converts a frame, an upright RGB image, to what is kept of it.
    limits : Limits
        Sizes that are accepted.

    Returns
    -------
    list of SampledFrame
        In the order of time; fewer than ``count`` for a short video.

    Raises
    ------
    ImageRejected
        ``no-video-support`` without the package, ``too-large``, ``empty``, ``missing``, ``not-a-file``, ``unreadable``,
        or ``damaged`` if FFmpeg cannot read it.
    """
    if find_spec("av") is None:
        raise ImageRejected("no-video-support", INSTALL)
    import av

    source = path_of_source(path)
    if not file_status(str(source)).st_size:
        raise ImageRejected("empty", "0 bytes")
    try:
        with (
            source.open("rb") as file,
            av.open(file, mode="r", options={"format_whitelist": CONTAINERS}, **_any_titles(av.__version__)) as video,
        ):
            found = _frames(video, count, take, limits)
    except av.error.FFmpegError as error:
        raise ImageRejected("damaged", f"FFmpeg: {error.strerror}") from None
    except OSError as error:
        raise ImageRejected("unreadable", error.strerror or str(error)) from None
    if not found:
        raise ImageRejected("damaged", "it has no frame that can be decoded")
    return found


def _any_titles(version: str) -> dict[str, Any]:
    """Return the options with which PyAV opens a video whose titles are not UTF-8; from version 19 on it needs none."""
    return {"metadata_errors": "replace"} if int(version.partition(".")[0]) < 19 else {}


def _frames(
    video: InputContainer, count: int, take: Callable[[Image.Image], T], limits: Limits
) -> list[SampledFrame[T]]:
    if not video.streams.video:
        raise ImageRejected("damaged", "it has no video stream")
    stream = video.streams.video[0]
    limits.check(stream.width, stream.height)

    def taken(frame: VideoFrame) -> SampledFrame[T]:
        limits.check(frame.width, frame.height)
        return SampledFrame(frame.time, take(_upright(frame)))

    length = _length(video, stream)
    if length is None:
        return _thinned(video.decode(stream), taken, count)
    start = float((stream.start_time or 0) * (stream.time_base or 0))
    return [taken(frame) for frame in _at_times(video, stream, start, length, count)]


def _length(video: InputContainer, stream: VideoStream) -> float | None:
    """Return the length of a video in seconds, from its stream or its container; None if neither has it."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return video.duration / 1_000_000 if video.duration else None  # FFmpeg's AV_TIME_BASE


def _at_times(
    video: InputContainer, stream: VideoStream, start: float, length: float, count: int
) -> Iterator[VideoFrame]:
    """Yield the frames shown at ``count`` times, each frame once."""
    frames = _timed(video.decode(stream))
    shown = following = next(frames, None)
    before: float | None = None
    for number in range(count):
        moment = start + length * (number + 0.5) / count
        if shown is None or moment - _time(shown) > SEEK_OVER:
            video.seek(int(moment / (stream.time_base or 1)), stream=stream)
            frames = _timed(video.decode(stream))
            shown = following = next(frames, shown)
        while following is not None and _time(following) <= moment:
            shown, following = following, next(frames, None)
        if shown is not None and (before is None or _time(shown) > before):
            before = _time(shown)
            yield shown


def _timed(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    return (frame for frame in frames if frame.time is not None)


def _time(frame: VideoFrame) -> float:
    assert frame.time is not None
    return frame.time


def _thinned(
    frames: Iterator[VideoFrame], taken: Callable[[VideoFrame], SampledFrame[T]], count: int
) -> list[SampledFrame[T]]:
    """Decode all frames and keep every n-th; n doubles whenever twice as many as wanted are kept."""
    kept: list[SampledFrame[T]] = []
    stride = 1
    for number, frame in enumerate(frames):
        if number % stride == 0:
            kept.append(taken(frame))
        if len(kept) > 2 * count:
            kept, stride = kept[::2], 2 * stride
    if len(kept) <= count:
        return kept
    return [kept[(2 * number + 1) * len(kept) // (2 * count)] for number in range(count)]


def _upright(frame: VideoFrame) -> Image.Image:
    """Rotate a frame by the video's rotation, which FFmpeg gives in degrees counter-clockwise."""
    image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    angle = int(getattr(frame, "rotation", 0)) % 360
    return image.rotate(angle, expand=True) if angle and angle % 90 == 0 else image
