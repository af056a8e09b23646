"""Inputs and outputs of ``predict``: arguments, patterns, lists, odd names, link cycles, video frames, formats."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from distil_cache.choices import FileForm
from distil_cache.commands.show.predict import show_predictions
from distil_cache.errors import UsageError, UserError
from distil_cache.images.file import ImageRejected, Limits
from distil_cache.images.spec import ImageSpec
from distil_cache.inference.arguments import expand_arguments, is_video, read_list
from distil_cache.inference.decode import InputDecoder, InputItem
from distil_cache.inference.prediction import COLUMNS, Frame, Prediction, form_of, line_writer, opened, write_object
from distil_cache.inference.video import SampledFrame, sample
from distil_cache.storage import AnyPath, RemotePath
from distil_cache.storage.text import harmless, visible
from image_bytes import noise, saved
from PIL import Image

RATE = 10
IMAGE = saved(noise(16, 16))


def write(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGE)


def named(folder: Path, *arguments: str) -> list[str]:
    return [path.removeprefix(f"{folder}/") for path in expand_arguments([f"{folder}/{name}" for name in arguments])]


def test_names_keep_their_order_and_folders_are_read_by_path(tmp_path: Path) -> None:
    write(tmp_path, "z.png", "photos/b.jpg", "photos/A.JPG", "photos/in/c.mp4", "photos/.hidden.png", "photos/note.txt")
    expected = ["z.png", "photos/A.JPG", "photos/b.jpg", "photos/in/c.mp4", "note.odd", "z.png"]
    assert named(tmp_path, "z.png", "photos", "note.odd", "z.png") == expected
    assert [is_video(path) for path in expected] == [False, False, False, True, False, False]


def test_links_are_followed_inside_a_folder_without_cycles(tmp_path: Path) -> None:
    write(tmp_path, "photos/in/a.png", "outside/b.png")
    (tmp_path / "photos" / "in" / "up").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos" / "in")
    (tmp_path / "photos" / "out").symlink_to(tmp_path / "outside")
    found = named(tmp_path, "photos")
    assert found == ["photos/again/a.png", "photos/in/a.png"]
    assert named(tmp_path, "photos/**/*.png") == ["photos/in/a.png"]
    assert named(tmp_path, "photos/*/*.png") == ["photos/again/a.png", "photos/in/a.png", "photos/out/b.png"]


def test_a_pattern_stands_for_the_files_that_it_matches(tmp_path: Path) -> None:
    write(tmp_path, "p/1.png", "p/2.jpg", "p/in/3.png", "p/.4.png", "p/x[1].png", "p/notes.txt")
    assert named(tmp_path, "p/**/*.png") == ["p/1.png", "p/in/3.png", "p/x[1].png"]
    assert named(tmp_path, "p/*") == ["p/1.png", "p/2.jpg", "p/notes.txt", "p/x[1].png"]
    assert named(tmp_path, "p/x[1].png") == ["p/x[1].png"]
    assert named(tmp_path, "p/[12].*") == ["p/1.png", "p/2.jpg"]
    assert named(tmp_path, "p/**") == ["p/1.png", "p/2.jpg", "p/in/3.png", "p/notes.txt", "p/x[1].png"]
    with pytest.raises(UserError, match="matches it as a pattern"):
        named(tmp_path, "p/*.webp")
    with pytest.raises(UsageError, match="is not a valid pattern"):
        named(tmp_path, "p/**x/*.png")


def test_a_pattern_is_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "p/1.png", "2.png")
    monkeypatch.chdir(tmp_path / "p")
    assert expand_arguments(["*.png", "../*.png"]) == ["1.png", "../2.png"]


def test_a_list_has_one_name_per_line_or_names_that_end_in_nul(tmp_path: Path) -> None:
    write(tmp_path, "in/a.png")
    listed = io.BytesIO(f"{tmp_path}/in\n\nx.png\n".encode() + b"caf\xe9 \n")
    assert expand_arguments(["first.png", "-", "last.png"], listed) == [
        "first.png", f"{tmp_path}/in/a.png", "x.png", os.fsdecode(b"caf\xe9 "), "last.png"
    ]  # fmt: skip
    assert read_list(io.BytesIO(b"two\nlines.png\0b.png\0")) == ["two\nlines.png", "b.png"]
    with pytest.raises(UserError, match="the list on stdin is empty"):
        expand_arguments(["-"], io.BytesIO(b"\n"))


NAMES = ["im/0.png", "größe 1.png", "日本.png"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_list_that_windows_wrote_names_the_same_files(encoding: str, end: str) -> None:
    for names in (NAMES[:2], NAMES[:1], NAMES if not encoding.endswith(("le", "be")) else NAMES[:2]):
        assert read_list(io.BytesIO("".join(name + end for name in names).encode(encoding))) == names
        assert read_list(io.BytesIO(end.join(names).encode(encoding))) == names


def test_a_list_in_utf16_with_a_byte_too_many_is_refused_and_nul_still_separates() -> None:
    with pytest.raises(UserError, match="damaged UTF-16"):
        read_list(io.BytesIO("a.png\n".encode("utf-16") + b"x"))
    for names in (["a", "b/c.png"], ["im/0.png", "im/11.png"], ["a\nb", "c"], ["é.png", "ab.png"]):
        assert read_list(io.BytesIO("".join(f"{name}\0" for name in names).encode())) == names


def test_a_name_that_ends_in_a_carriage_return_is_kept_if_there_is_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd\r").write_bytes(b"x")
    assert read_list(io.BytesIO(b"odd\r\nplain\r\n")) == ["odd\r", "plain"]


def test_a_folder_without_an_image_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "in/notes.txt", "out/a.png")
    (tmp_path / "in" / "out").symlink_to(tmp_path / "out")
    with pytest.raises(UserError, match=r"no image and no video \(1 other files; links that lead out"):
        named(tmp_path, "in")


def write_video(
    path: Path,
    greys: Sequence[int],
    codec: str = "mpeg4",
    kind: str | None = None,
    gop: int = 12,
    title: str = "grey",
) -> Path:
    """Write a video with one grey level per frame, 48 x 32 pixels."""
    with av.open(str(path), "w", format=kind) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 48, 32, "yuv420p", gop
        stream.bit_rate = 4_000_000
        for grey in greys:
            pixels = np.full((32, 48, 3), grey, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def greys_of(path: AnyPath, count: int) -> tuple[list[float | None], list[int]]:
    found: list[SampledFrame[int]] = sample(
        str(path), count, lambda image: round(float(np.mean(np.asarray(image)))), Limits()
    )
    return [frame.seconds for frame in found], [frame.value for frame in found]


@pytest.mark.parametrize(("frames", "gop"), [(40, 12), (200, 50), (200, 200)])
def test_frames_come_from_the_middles_of_equal_intervals(tmp_path: Path, frames: int, gop: int) -> None:
    levels = [20 + number for number in range(frames)]
    seconds, greys = greys_of(write_video(tmp_path / "a.mp4", levels, gop=gop), 4)
    indices = [frames // 8 + number * frames // 4 for number in range(4)]
    assert seconds == pytest.approx([index / RATE for index in indices])
    assert np.abs(np.subtract(greys, [levels[index] for index in indices])).max() <= 3


def test_a_short_video_gives_each_frame_once(tmp_path: Path) -> None:
    seconds, greys = greys_of(write_video(tmp_path / "a.mkv", [40, 120, 200]), 16)
    assert seconds == pytest.approx([0, 0.1, 0.2], abs=0.01)
    assert np.abs(np.subtract(greys, [40, 120, 200])).max() <= 3


def test_a_video_in_an_object_store_gives_the_frames_of_the_file(tmp_path: Path, memory_bucket: RemotePath) -> None:
    video = write_video(tmp_path / "a.mp4", [20 + number for number in range(40)])
    (memory_bucket / "a.mp4").write(video.read_bytes())
    assert greys_of(memory_bucket / "a.mp4", 4) == greys_of(video, 4)
    with pytest.raises(ImageRejected, match="missing"):
        greys_of(memory_bucket / "b.mp4", 4)


def test_a_video_without_a_length_is_counted_first_and_keeps_no_more_than_the_sampled_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.m4v", [20 + number for number in range(100)], kind="m4v")
    alive: list[weakref.ref[Image.Image]] = []
    most = 0

    def take(image: Image.Image) -> Image.Image:
        nonlocal most
        alive.append(weakref.ref(image))
        most = max(most, sum(one() is not None for one in alive))
        return image

    found = sample(str(path), 4, take, Limits())
    greys = [float(np.mean(np.asarray(frame.value))) for frame in found]
    assert np.allclose(np.diff(greys), np.diff(greys)[0], atol=10)
    assert greys[0] < 40
    assert greys[-1] > 90
    assert most <= 4 + 2


@pytest.mark.parametrize(
    ("name", "kind", "codec"),
    [
        ("a.ts", "mpegts", "mpeg2video"),
        ("a.mpg", "mpeg", "mpeg2video"),
        ("a.vob", "vob", "mpeg2video"),
        ("a.mkv", "matroska", "mpeg4"),
        ("a.avi", "avi", "mpeg4"),
        ("a.flv", "flv", "flv"),
        ("a.mp4", "mp4", "mpeg4"),
        ("a.m4v", "m4v", "mpeg4"),
        ("a.m2v", "mpeg2video", "mpeg2video"),
    ],
)
@pytest.mark.parametrize(("gop", "count"), [(60, 4), (150, 4), (25, 16)])
def test_every_container_gives_the_frames_in_the_middles_of_the_intervals(
    tmp_path: Path, name: str, kind: str, codec: str, gop: int, count: int
) -> None:
    rate, total = 25, 900
    path = tmp_path / name
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 48, 32, "yuv420p", gop
        stream.codec_context.max_b_frames = 0
        stream.bit_rate = 2_000_000
        for number in range(total):
            pixels = np.full((32, 48, 3), 20, np.uint8)
            pixels[:, :24] += np.uint8(number // 30 * 7)  # which 30 frames, and which of them
            pixels[:, 24:] += np.uint8(number % 30 * 7)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())

    def number_of(image: Image.Image) -> int:
        pixels = np.asarray(image, dtype=float)
        return round((pixels[:, 4:20].mean() - 20) / 7) * 30 + round((pixels[:, 28:44].mean() - 20) / 7)

    found = sample(str(path), count, number_of, Limits())
    middles = [(2 * number + 1) * total // (2 * count) for number in range(count)]
    assert len(found) == count
    assert np.abs(np.subtract([frame.value for frame in found], middles)).max() <= 1
    seconds = [frame.seconds for frame in found if frame.seconds is not None]
    if seconds:
        assert np.diff(seconds) == pytest.approx(np.diff([frame.value for frame in found]) / rate, abs=0.05)


def test_a_video_is_rotated_as_its_metadata_says(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [90] * 5)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    turn = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in turn)
    path.write_bytes(data)
    assert [frame.value for frame in sample(str(path), 1, lambda image: image.size, Limits())] == [(32, 48)]


def test_a_title_that_is_not_utf8_does_not_stop_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [90] * 5, title="cafe")
    data = path.read_bytes()
    assert data.count(b"cafe") == 1
    path.write_bytes(data.replace(b"cafe", b"caf\xe9"))
    assert greys_of(path, 1)[1] == [pytest.approx(90, abs=3)]


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "empty"), (b"no video" * 99, "damaged"), (IMAGE, "damaged"), (None, "missing")]
)
def test_a_file_that_is_not_a_video_is_rejected(tmp_path: Path, data: bytes | None, reason: str) -> None:
    if data is not None:
        (tmp_path / "a.mp4").write_bytes(data)
    with pytest.raises(ImageRejected) as refused:
        sample(str(tmp_path / "a.mp4"), 2, lambda image: image, Limits())
    assert refused.value.reason == reason


def test_a_video_in_an_unknown_codec_is_set_aside_and_the_list_goes_on(tmp_path: Path) -> None:
    data = write_video(tmp_path / "a.mkv", [90] * 5).read_bytes()
    assert data.count(b"V_MPEG4/ISO/ASP") == 1
    (tmp_path / "a.mkv").write_bytes(data.replace(b"V_MPEG4/ISO/ASP", b"V_NOTHING/KNOWN"))
    decoder = InputDecoder(ImageSpec(size=16), Limits(), 2, 1)
    items = [InputItem.of(1, str(tmp_path / "a.mkv")), InputItem.of(2, np.zeros((20, 20, 3), np.uint8))]
    first, second = decoder.decode(items, 8)
    assert first.rejected is not None
    assert first.rejected.reason == "unsupported-format"
    assert second.rejected is None


def test_whatever_a_decoder_raises_sets_one_item_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AttributeError("none of its own")

    decoder = InputDecoder(ImageSpec(size=16), Limits(), 2, 1)
    monkeypatch.setattr(InputDecoder, "_from_source", fail)
    (found,) = decoder.decode([InputItem.of(1, "a.png")], 8)
    assert found.rejected is not None
    assert found.rejected.detail == "file: AttributeError: none of its own"


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    write_video(tmp_path / "a.ts", [90] * 5, kind="mpegts", codec="mpeg2video")
    assert greys_of(tmp_path / "a.ts", 1)[1] == [pytest.approx(90, abs=3)]
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/a.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.mp4").write_text(text)
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/a.ts\n")
    for name in ("list.mp4", "concat.mp4"):
        with pytest.raises(ImageRejected, match="damaged"):
            sample(str(tmp_path / name), 2, lambda image: image, Limits())


def test_a_pipe_or_a_huge_video_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ImageRejected, match="not-a-file"):
        sample(str(tmp_path / "pipe.mp4"), 1, lambda image: image, Limits())
    path = write_video(tmp_path / "a.mp4", [90] * 3)
    with pytest.raises(ImageRejected, match="too-large"):
        sample(str(path), 1, lambda image: image, Limits(max_pixels=48 * 31))


def test_without_the_optional_package_a_video_is_rejected_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImageRejected, match=r'no-video-support: .*pip install "distil-cache\[video\]"'):
        sample("a.mp4", 1, lambda image: image, Limits())


ODD = ['a,"b"\n=1.png', "caf\\xe9.png", "é 图\x1b[31m.png"]
PREDICTIONS = [
    Prediction(ODD[0], "image", 0.75, 1.0986, True),
    Prediction(ODD[1], "image", reason="empty", detail="0 bytes"),
    Prediction(ODD[2], "video", 0.25, None, False, 0.5, (Frame(0.5, 0.5, 0.0), Frame(None, 0.0, -9.0, "why.png"))),
]


def test_odd_names_survive_lines_of_json_and_csv() -> None:
    written = {}
    for form in ("jsonl", "csv"):
        stream = io.StringIO(newline="")
        write = line_writer(stream, form)
        for prediction in PREDICTIONS:
            write(prediction)
        written[form] = stream.getvalue()
        written[form].encode()
    assert [json.loads(line) for line in written["jsonl"].splitlines()] == [p.as_json() for p in PREDICTIONS]
    rows = list(csv.DictReader(io.StringIO(written["csv"], newline="")))
    assert tuple(rows[0]) == COLUMNS
    assert [row["path"] for row in rows] == [visible(ODD[index]) for index in (0, 1, 2, 2, 2)]
    assert [row["kind"] for row in rows] == ["image", "image", "video", "frame", "frame"]
    assert (rows[0]["score"], rows[0]["verdict"], rows[1]["reason"]) == ("0.75", "generated", "empty")
    assert (rows[2]["highest"], rows[3]["seconds"], rows[4]["seconds"]) == ("0.5", "0.5", "")


def test_lines_are_written_at_once_and_an_object_only_when_it_is_complete(tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("old")

    def interrupted(path: Path, form: FileForm) -> None:
        with opened(path, form) as stream:
            print("{}", file=stream, flush=True)
            raise KeyboardInterrupt

    for name, form in (("new.jsonl", "jsonl"), ("old.json", "json")):
        with pytest.raises(KeyboardInterrupt):
            interrupted(tmp_path / name, form)
    assert (tmp_path / "new.jsonl").read_text() == "{}\n"
    assert (tmp_path / "old.json").read_text() == "old"
    with opened(tmp_path / "old.json", "json") as stream:
        write_object(stream, {"a": "é"})
    assert json.loads((tmp_path / "old.json").read_text("utf-8")) == {"a": "é"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.jsonl", "old.json"]
    with pytest.raises(UserError, match="cannot be written"), opened(tmp_path / "no" / "a.csv", "csv"):
        pass


@pytest.mark.parametrize("name", ["a.txt", "a", "a.parquet"])
def test_the_suffix_decides_on_the_format(name: str) -> None:
    assert [form_of(Path(f"a{suffix}")) for suffix in (".json", ".JSONL", ".csv")] == ["json", "jsonl", "csv"]
    with pytest.raises(UsageError, match="must end with"):
        form_of(Path(name))


def test_no_name_can_move_the_cursor_of_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert visible("é\x1b[31m\n\u202e\udcff") == "é\\x1b[31m\\n\\u202e\\udcff"
    counts = {"files": 3, "generated": 1, "real": 1, "set_aside": 1}
    result = {
        "predictions": [p.as_json() for p in PREDICTIONS],
        "counts": counts,
        "adm_calls_per_image": 1,
        "seconds": 1.0,
    }
    show_predictions(harmless({**result, "notes": ["threshold 0.5"]}), None)
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "0.7500" in printed
    assert "skipped caf\\xe9.png: empty (0 bytes)" in printed
    assert "Note: threshold 0.5." in printed


def test_a_folder_inside_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").write_bytes(b"x")
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(UserError, match=r"closed: cannot be listed \(Permission denied\)"):
        expand_arguments([str(tmp_path)])
