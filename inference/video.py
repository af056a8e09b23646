"""Sample frames evenly over a video with the optional package ``av`` (PyAV, which includes FFmpeg).

Memory holds one full frame and what the caller makes of the sampled ones, whatever the length of the video. FFmpeg may
open only video containers: a playlist could name other files or addresses to open.

A seek is trusted only if the first frame after it is not later than the wanted one. In MPEG-TS and MPEG-PS, which have
no index, FFmpeg lands in the middle of a group of frames, and the first one to be decoded belongs to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, BinaryIO, Generic, TypeVar

from PIL import Image

from ..images.file import ImageRejected, Limits
from ..pipeline.sources.read import file_status, path_of_source
from ..storage.regular import open_regular

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

T = TypeVar("T")

CONTAINERS = "mov,mp4,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,m4v,h264,hevc"
SEEK_OVER = 4.0
"""Seconds beyond which to seek to the keyframe before the next wanted frame instead of decoding up to it."""
BACK_BY = (0.0, 4.0, 16.0, 64.0, 256.0)
"""Seconds before the wanted frame at which a seek is tried, before decoding starts over from the beginning."""
MOST_FRAMES = 2_000_000
"""Most frames of a video that does not say how long it is: 22 hours at 25 a second."""
PROGRAM_STREAM = "mpeg"
"""FFmpeg's name of MPEG-PS, whose length FFmpeg estimates, off by some percent."""
INSTALL = 'videos need the package av: pip install "distil-cache[video]"'


@dataclass(frozen=True, slots=True)
class SampledFrame(Generic[T]):
    """One frame: its time in seconds (None if the video has no times), and what the caller made of it."""

    seconds: float | None
    value: T


def sample(path: str, count: int, take: Callable[[Image.Image], T], limits: Limits) -> list[SampledFrame[T]]:
    """Sample up to ``count`` frames: those shown in the middle of ``count`` intervals of equal length.

    A video of unknown length is decoded twice: its frames are counted first.

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
        ``no-video-support`` without the package, ``unsupported-format`` for an unknown codec, ``too-large``, ``empty``,
        ``missing``, ``not-a-file``, ``unreadable``, or ``damaged`` if FFmpeg cannot read it.
    """
    if find_spec("av") is None:
        raise ImageRejected("no-video-support", INSTALL)
    import av

    source = path_of_source(path)
    if not file_status(str(source)).st_size:
        raise ImageRejected("empty", "0 bytes")
    try:
        with open_regular(source) as file:
            found = _frames(file, count, take, limits)
    except av.error.FFmpegError as error:
        raise ImageRejected("damaged", f"FFmpeg: {error.strerror}") from None
    except OSError as error:
        raise ImageRejected("unreadable", error.strerror or str(error)) from None
    if not found:
        raise ImageRejected("damaged", "it has no frame that can be decoded")
    return found


def _opened(file: BinaryIO) -> AbstractContextManager[InputContainer]:
    """Open a video from its beginning."""
    import av

    file.seek(0)
    options = {"format_whitelist": CONTAINERS}
    video: InputContainer = av.open(file, mode="r", options=options, **_any_titles(av.__version__))
    return video


def _any_titles(version: str) -> dict[str, Any]:
    """Return the options with which PyAV opens a video whose titles are not UTF-8; from version 19 on it needs none."""
    return {"metadata_errors": "replace"} if int(version.partition(".")[0]) < 19 else {}


def _frames(file: BinaryIO, count: int, take: Callable[[Image.Image], T], limits: Limits) -> list[SampledFrame[T]]:
    def taken(frame: VideoFrame) -> SampledFrame[T]:
        limits.check(frame.width, frame.height)
        return SampledFrame(frame.time, take(_upright(frame)))

    with _opened(file) as video:
        stream = _stream(video, limits)
        start = float((stream.start_time or 0) * (stream.time_base or 0))
        length = _length(video, stream)
        if length is not None and video.format.name != PROGRAM_STREAM:
            return [taken(frame) for frame in _at_times(file, video, start, length, count)]
        if length is not None:
            length = _packets_end(video, stream, start + length) - start
        else:
            total, first, last = _counted(video.decode(stream))
    with _opened(file) as video:
        if length is not None:
            return [taken(frame) for frame in _at_times(file, video, start, length, count)]
        if first is None or last is None:
            return [taken(frame) for frame in _at_positions(video.decode(video.streams.video[0]), total, count)]
        length = (last - first) * total / (total - 1) if total > 1 else 1.0
        return [taken(frame) for frame in _at_times(file, video, first, length, count, can_seek=False)]


def _stream(video: InputContainer, limits: Limits) -> VideoStream:
    """Return the first video stream. Raises ImageRejected if there is none, or if it cannot be decoded."""
    if not video.streams.video:
        raise ImageRejected("damaged", "it has no video stream")
    stream = video.streams.video[0]
    if stream.codec_context is None:
        raise ImageRejected("unsupported-format", "a video in a codec that FFmpeg does not know")
    limits.check(stream.width, stream.height)
    return stream


def _packets_end(video: InputContainer, stream: VideoStream, otherwise: float) -> float:
    """Read all packets without decoding them; return the time in seconds at which the last frame ends."""
    ends = [packet.pts + (packet.duration or 0) for packet in video.demux(stream) if packet.pts is not None]
    return float(max(ends) * stream.time_base) if ends and stream.time_base else otherwise


def _counted(frames: Iterator[VideoFrame]) -> tuple[int, float | None, float | None]:
    """Decode all frames; return their number, and the times of the first and last, None if a frame has no time."""
    total, first, last, timed = 0, None, None, True
    for frame in frames:
        total += 1
        if total > MOST_FRAMES:
            raise ImageRejected("too-large", f"a video of unknown length with more than {MOST_FRAMES:,} frames")
        timed = timed and frame.time is not None and (last is None or frame.time > last)
        first, last = (frame.time if total == 1 else first), frame.time
    return (total, first, last) if timed else (total, None, None)


def _at_positions(frames: Iterator[VideoFrame], total: int, count: int) -> Iterator[VideoFrame]:
    """Yield the frames in the middles of ``count`` equal runs of frames."""
    wanted = {(2 * number + 1) * total // (2 * count) for number in range(count)}
    return (frame for number, frame in enumerate(frames) if number in wanted)


def _length(video: InputContainer, stream: VideoStream) -> float | None:
    """Return the length of a video in seconds, from its stream or its container; None if neither has it."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return video.duration / 1_000_000 if video.duration else None  # FFmpeg's AV_TIME_BASE


def _at_times(
    file: BinaryIO, video: InputContainer, start: float, length: float, count: int, *, can_seek: bool = True
) -> Iterator[VideoFrame]:
    """Yield the frames shown at ``count`` times, each frame once."""
    frames = _timed(video.decode(video.streams.video[0]))
    shown = following = next(frames, None)
    before: float | None = None
    for number in range(count):
        moment = start + length * (number + 0.5) / count
        if can_seek and shown is not None and moment - _time(shown) > SEEK_OVER:
            shown, frames = _landed(file, video, moment)
            following = shown
        while following is not None and _time(following) <= moment:
            shown, following = following, next(frames, None)
        if shown is not None and (before is None or _time(shown) > before):
            before = _time(shown)
            yield shown


def _landed(file: BinaryIO, video: InputContainer, moment: float) -> tuple[VideoFrame | None, Iterator[VideoFrame]]:
    """Seek to a keyframe before a moment; return the first frame and those after it.

    Where every seek lands too late, the frames are those from the beginning of the video.
    """
    import av

    stream = video.streams.video[0]
    for back in BACK_BY:
        try:
            video.seek(int((moment - back) / (stream.time_base or 1)), stream=stream)
            frames = _timed(video.decode(stream))
            first = next(frames, None)
        except av.error.FFmpegError:
            continue
        if first is not None and _time(first) <= moment:
            return first, frames
    frames = _from_beginning(file)
    return next(frames, None), frames


def _from_beginning(file: BinaryIO) -> Iterator[VideoFrame]:
    """Yield the frames of a video that is opened anew: it cannot be wound back."""
    with _opened(file) as video:
        yield from _timed(video.decode(video.streams.video[0]))


def _timed(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    return (frame for frame in frames if frame.time is not None)


def _time(frame: VideoFrame) -> float:
    assert frame.time is not None
    return frame.time


def _upright(frame: VideoFrame) -> Image.Image:
    """Rotate a frame by the video's rotation, which FFmpeg gives in degrees counter-clockwise."""
    image: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    angle = int(getattr(frame, "rotation", 0)) % 360
    return image.rotate(angle, expand=True) if angle and angle % 90 == 0 else image
