"""The command ``predict`` from arguments to exit code, also with videos."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import Result
from distil_cache.cli import app
from distil_cache.inference import Detector
from image_bytes import bad_files, noise, saved
from predict_runs import build, evaluated, train
from small_models import write_adm, write_images
from typer.testing import CliRunner

SOUND = "0001-é.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of eps and of cnndet, images of the test split, and in ``mixed`` sound and bad files."""
    folder = tmp_path_factory.mktemp("command")
    write_adm(folder / "adm.safetensors")
    build(folder, write_images(folder / "images", {"train": 8, "test": 4}), "image,eps")
    for method in ("eps", "cnndet"):
        train(folder, method)
    (folder / "mixed" / "in").mkdir(parents=True)
    for name in (SOUND, "in/0002.png"):
        (folder / "mixed" / name).write_bytes(saved(noise(20, 20, len(name))))
    (folder / "mixed" / "cut.jpg").write_bytes(bad_files()["cut.jpg"][0])
    return folder


def run(*arguments: str | Path, stdin: bytes = b"", code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)], input=stdin)
    assert result.exit_code == code, (result.output, result.exception)
    return result


def parsed(*arguments: str | Path, **options: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*arguments, "--json", **options).stdout)
    return found


def test_one_json_object_says_what_was_scored_and_how(folder: Path) -> None:
    rows = evaluated(folder / "eps")
    files = [row["file"] for row in rows]
    adm = folder / "adm.safetensors"
    found = parsed(*files, "--run", folder / "eps", "--adm", adm, "--device", "cpu", "--batch-size", 4)
    assert [row["path"] for row in found["predictions"]] == files
    np.testing.assert_allclose([p["score"] for p in found["predictions"]], [row["score"] for row in rows], atol=1e-6)
    assert (found["kind"], found["version"], found["method"]) == ("distil-cache-predictions", 1, "eps")
    assert (found["adm_calls_per_image"], found["threshold_from"], found["transform"]) == (1, "validation", "crop")
    assert found["adm"]["name"] == str(adm)
    record = json.loads((folder / "eps" / "config.json").read_text())
    assert found["features"] == {"eps": record["fingerprints"]["eps"]}
    counts = found["counts"]
    assert counts["files"] == counts["generated"] + counts["real"] == len(files)


def test_a_bad_file_is_skipped_and_changes_the_exit_code_only_with_strict(folder: Path) -> None:
    arguments = (folder / "mixed", "--run", folder / "cnndet", "--threshold", "1")
    found = parsed(*arguments)
    assert [Path(row["path"]).name for row in found["predictions"]] == [SOUND, "cut.jpg", "0002.png"]
    assert [row["verdict"] for row in found["predictions"]] == ["real", None, "real"]
    assert found["predictions"][1]["reason"] == "truncated"
    assert found["counts"] == {"files": 3, "generated": 0, "real": 2, "set_aside": 1}
    assert parsed(*arguments, "--strict", code=3)["predictions"] == found["predictions"]
    people = run(*arguments).stdout
    assert "3 files: 0 generated, 2 real, 1 skipped" in people
    assert "threshold 1, as given" in people


def test_lines_and_csv_go_to_stdout_or_a_file_and_say_the_same(folder: Path, tmp_path: Path) -> None:
    arguments = (folder / "mixed", "--run", folder / "cnndet", "--device", "cpu")
    expected = parsed(*arguments)["predictions"]
    lines = run(*arguments, "--format", "jsonl", "--out", tmp_path / "a.csv").stdout
    assert [json.loads(line) for line in lines.splitlines()] == expected
    table = (tmp_path / "a.csv").read_text("utf-8")
    assert run(*arguments, "--format", "csv", "--out", tmp_path / "a.json").stdout == table
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [float(row["score"] or "nan") for row in rows] == pytest.approx(
        [row["score"] or np.nan for row in expected], nan_ok=True
    )
    assert json.loads((tmp_path / "a.json").read_text("utf-8"))["predictions"] == expected
    assert "Written to" in run(*arguments, "--out", tmp_path / "b.jsonl").stdout
    assert (tmp_path / "b.jsonl").read_text("utf-8") == lines


def test_a_list_on_stdin_and_a_quoted_pattern_name_the_same_files(folder: Path) -> None:
    mixed = folder / "mixed"
    names = [mixed / SOUND, mixed / "in" / "0002.png"]
    listed = parsed("-", "--run", folder / "cnndet", stdin="\n".join(map(str, names)).encode())
    assert [row["path"] for row in listed["predictions"]] == list(map(str, names))
    assert parsed(f"{mixed}/**/*.png", "--run", folder / "cnndet")["predictions"] == listed["predictions"]


def test_a_file_whose_name_is_not_utf8_is_scored_and_printed(folder: Path, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.png"))
    path.write_bytes(saved(noise(20, 20)))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "cafe.png").write_bytes(path.read_bytes())
    (plain,) = parsed(tmp_path / "plain", "--run", folder / "cnndet")["predictions"]
    shutil.rmtree(tmp_path / "plain")
    for arguments in ((str(path),), (str(tmp_path),)):
        (row,) = csv.DictReader(io.StringIO(run(*arguments, "--run", folder / "cnndet", "--format", "csv").stdout))
        assert row["path"] == f"{tmp_path}/caf\\xe9\\n.png"
        assert float(row["score"]) == pytest.approx(plain["score"])


def test_a_video_has_the_scores_of_its_frames_their_mean_and_the_highest(folder: Path, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for number in range(10):
            pixels = np.full((32, 32, 3), 25 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    with av.open(str(tmp_path / "a.mp4")) as container:
        images = [frame.to_image() for frame in container.decode(video=0)]
    expected = [
        p.score for p in Detector.from_run(folder / "cnndet").predict([images[number] for number in (1, 3, 6, 8)])
    ]
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    found = parsed(tmp_path, "--run", folder / "cnndet", "--frames", "4")
    video, bad = found["predictions"]
    assert [frame["seconds"] for frame in video["frames"]] == pytest.approx([0.2, 0.6, 1.2, 1.6])
    np.testing.assert_allclose([frame["score"] for frame in video["frames"]], expected, atol=1e-6)
    assert video["score"] == pytest.approx(np.mean(expected))
    assert video["highest"] == pytest.approx(max(score for score in expected if score))
    assert (bad["kind"], bad["reason"]) == ("video", "damaged")
    explained = parsed(
        tmp_path / "a.mp4",
        "--run",
        folder / "eps",
        "--adm",
        folder / "adm.safetensors",
        "--frames",
        "2",
        "--explain",
        tmp_path / "why",
    )
    assert sorted(path.name for path in (tmp_path / "why").iterdir()) == [
        "000001-a.mp4-frame000.png",
        "000001-a.mp4-frame001.png",
    ]
    assert explained["adm_calls_per_image"] == 40
    assert Path(explained["predictions"][0]["frames"][1]["explained"]).is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either --run or --weights"),
        (["--run", "r", "--weights", "w"], "either --run or --weights"),
        (["--run", "r", "--json", "--format", "csv"], "both write to stdout"),
        (["--run", "r", "--out", "a.xlsx"], "must end with"),
        (["--run", "r"], "is not a run"),
        (["--weights", "w.pth"], "weights file not found"),
        (["--run", "r", "--threshold", "2"], "--threshold 2"),
    ],
)
def test_invalid_arguments_end_with_one_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(saved(noise(20, 20)))
    result = CliRunner().invoke(app, ["predict", str(tmp_path / "a.png"), *arguments])
    assert result.exit_code != 0
    assert message in str(result.exception) + result.output
    assert "\n" not in str(result.exception)
