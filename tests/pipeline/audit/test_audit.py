"""The audit: shortcuts that are there are found and named, and nothing is found where there are none."""

from __future__ import annotations

import random
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_pictures import EACH, picture, through_jpeg, write
from distil_cache.errors import UsageError, UserError
from distil_cache.pipeline.audit.checks import audit_parts, choose_evenly
from distil_cache.pipeline.audit.run import AuditRow, audit_rows, header_facts, run_audit
from distil_cache.pipeline.sources.file import SourceFile
from image_bytes import bad_files, saved
from PIL import Image


def check(result: dict[str, Any], features: str, part: str = "all") -> dict[str, Any]:
    return next(row for row in result["checks"] if row["features"] == features and row["part"] == part)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PNG of one size on both sides; the generated images are smoother, as far as content goes."""
    folder = tmp_path_factory.mktemp("plain")
    for number in range(EACH):
        write(folder, "0_real", number, saved(picture(number)))
        write(folder, "1_fake", number, saved(picture(1000 + number, smooth=0.5)))
    return folder


@pytest.fixture(scope="module")
def resaved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The audit of PNG files whose real half was JPEG once."""
    folder = tmp_path_factory.mktemp("resaved")
    for number in range(EACH):
        write(folder, "0_real", number, saved(through_jpeg(picture(number), 80 + number % 3 * 5)))
        write(folder, "1_fake", number, saved(picture(1000 + number)))
    return run_audit([folder])


def test_jpeg_against_png_is_found_in_the_headers_and_named(tmp_path: Path) -> None:
    for number in range(EACH):
        write(tmp_path, "0_real", number, saved(picture(number, 40), "JPEG", quality=90), "jpg")
        write(tmp_path, "1_fake", number, saved(picture(1000 + number, 40)))
    result = run_audit([tmp_path], sample=0)
    found = check(result, "headers")
    assert result["found"]
    assert found["found"]
    assert found["auc"] == 1.0
    words = [carrier["words"] for carrier in found["carried_by"]]
    assert "format: real jpeg 100 %, generated png 100 %" in words
    assert "JPEG quality: real 90, generated none" in words


def test_jpeg_history_is_found_in_files_that_were_saved_again_as_png(resaved: dict[str, Any]) -> None:
    assert not check(resaved, "headers")["found"]
    found = check(resaved, "pixels")
    assert found["found"]
    assert found["auc"] > 0.9
    assert "JPEG quality in the pixels: real 80 to 90 (median 85), generated none" in [
        carrier["words"] for carrier in found["carried_by"]
    ]


def test_images_that_differ_in_content_alone_are_not_told_apart(plain: Path) -> None:
    result = run_audit([plain])
    assert [row["found"] for row in result["checks"]] == [False, False]
    assert check(result, "headers")["auc"] == 0.5
    assert not result["found"]


def test_bytes_are_reported_but_not_judged_as_they_depend_on_the_content(plain: Path) -> None:
    result = run_audit([plain], sample=0)
    (entry,) = result["told"]
    assert entry["feature"] == "bytes per pixel"
    assert entry["auc"] > 0.9
    assert not result["found"]


def test_the_interval_of_an_obvious_case_lies_above_chance_and_holds_the_auc(resaved: dict[str, Any]) -> None:
    found = check(resaved, "pixels")
    low, high = found["interval"]
    assert 0.5 < low <= found["auc"] <= high <= 1.0
    assert found["level"] == 0.975


@pytest.mark.slow
def test_labels_that_are_drawn_at_random_are_seldom_found() -> None:
    rng = random.Random(0)
    facts = [
        header_facts(
            saved(np.zeros((16 + rng.randrange(8), 16 + rng.randrange(8), 3), np.uint8), "JPEG", quality=q), "a.jpg"
        )
        for q in rng.choices(range(70, 96), k=100)
    ]
    alarms = 0
    for _ in range(12):
        labels = [0, 1] * 50
        rng.shuffle(labels)
        rows = [
            AuditRow(SourceFile("r", f"{n}", label, "train", "g", "unknown", ""), f"{n:032x}", fact, n)
            for n, (label, fact) in enumerate(zip(labels, facts, strict=True))
        ]
        alarms += any(row["found"] for row in audit_rows(rows))
    assert alarms <= 2  # of 12, at an error of 1 in 40 each


@pytest.mark.slow
def test_one_generator_with_another_history_is_found_by_itself(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    for number in range(EACH):
        write(tmp_path, "0_real", number, saved(picture(2000 + number)), generator="other")
        data = saved(picture(3000 + number), "JPEG", quality=75)
        write(tmp_path, "1_fake", number, data, "jpg", generator="other")
    result = run_audit([tmp_path], sample=0)
    assert check(result, "headers", "generator other")["found"]
    assert not check(result, "headers", "generator gen")["found"]


def test_too_few_images_give_no_verdict_and_say_so(tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path, "0_real", number, saved(picture(number, 32), "JPEG"), "jpg")
        write(tmp_path, "1_fake", number, saved(picture(100 + number, 32)))
    result = run_audit([tmp_path])
    assert all(row["auc"] is None and "fewer than 20" in row["reason"] for row in result["checks"])
    assert not result["found"]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
def test_files_that_cannot_be_used_are_rejected_with_their_reason(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    reasons = {}
    for name, (data, reason, _) in bad_files().items():
        (tmp_path / "train" / "gen" / "0_real" / name).write_bytes(data)
        reasons[name] = reason
    result = run_audit([tmp_path])
    assert {Path(row["path"]).name: row["reason"] for row in result["set_aside"]} == reasons
    assert not check(result, "pixels")["found"]


def test_a_class_without_usable_images_is_a_mistake_and_says_why(tmp_path: Path) -> None:
    write(tmp_path, "0_real", 0, saved(picture(0)))
    write(tmp_path, "1_fake", 0, b"no picture")
    with pytest.raises(UserError, match=r"both classes.*000\.png: not-an-image"):
        run_audit([tmp_path])


@pytest.mark.parametrize(
    "arguments",
    [{}, {"cache": Path("c")}, {"sources": [Path("s")], "dataset": "d"}, {"sources": [Path("s")], "sample": -1}],
)
def test_arguments_that_do_not_fit_together_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run_audit(**arguments)


def test_duplicates_are_counted_across_labels_and_splits(plain: Path, tmp_path: Path) -> None:
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    real = (tmp_path / "train" / "gen" / "0_real" / "000.png").read_bytes()
    write(tmp_path, "1_fake", 900, real)
    test = tmp_path / "test" / "gen"
    for kind, number in (("0_real", 1), ("1_fake", 2)):
        (test / kind).mkdir(parents=True)
        shutil.copy(tmp_path / "train" / "gen" / kind / f"{number:03}.png", test / kind / "copy.png")
    smaller = Image.fromarray(picture(1007, smooth=0.5)).resize((60, 60))
    (test / "0_real" / "smaller.jpg").write_bytes(saved(smaller, "JPEG", quality=85))
    found = run_audit([tmp_path], sample=0)["duplicates"]
    assert found["same_bytes_both_labels"] == 2
    assert found["same_bytes_across_splits"] == 2
    assert (found["near_pairs"], found["near_across_labels"], found["near_across_splits"]) == (1, 1, 1)
    assert {Path(path).name for path in found["near_examples"][0]} == {"007.png", "smaller.jpg"}


def test_copies_of_one_image_count_as_one_and_cannot_carry_a_verdict(tmp_path: Path) -> None:
    for number in range(EACH):
        shown = picture(number % 4, 64)
        write(tmp_path, "0_real", number, saved(shown, "JPEG", quality=70 + number), "jpg")
        write(tmp_path, "1_fake", number, saved(picture(1000 + number, 64)))
    result = run_audit([tmp_path], sample=0)
    assert check(result, "headers")["auc"] is None


def test_a_sample_is_spread_over_splits_and_generators_and_does_not_depend_on_the_order() -> None:
    files = [SourceFile("r", f"a{n}", 1, "train", "big", "gan", "") for n in range(50)]
    files += [SourceFile("r", f"b{n}", 1, "test", "small", "gan", "") for n in range(5)]
    keys = [f"{(7919 * n) % 1009:032x}" for n in range(len(files))]
    chosen = {files[place].path for place in choose_evenly(files, keys, 20)}
    assert sum(path.startswith("b") for path in chosen) == 5
    assert len(chosen) == 20
    assert {files[::-1][place].path for place in choose_evenly(files[::-1], keys[::-1], 20)} == chosen


def test_a_generator_without_own_reals_is_compared_with_those_of_its_source_group() -> None:
    files = [
        SourceFile("r", "0", 0, "test", "real", "real", "imagenet"),
        SourceFile("r", "1", 0, "test", "real", "real", "lsun"),
        SourceFile("r", "2", 1, "test", "adm", "diffusion", "imagenet"),
        SourceFile("r", "3", 1, "test", "ldm", "diffusion", "lsun"),
    ]
    assert dict(audit_parts(files)) == {"all": [0, 1, 2, 3], "generator adm": [0, 2], "generator ldm": [1, 3]}


def test_the_rows_of_a_dataset_are_audited_where_their_files_still_are(plain: Path, tmp_path: Path) -> None:
    from distil_cache.cache.store import Cache
    from distil_cache.pipeline.scan.rows import to_table
    from distil_cache.pipeline.scan.scan import scan
    from distil_cache.pipeline.sources.discover import discover

    images = shutil.copytree(plain, tmp_path / "images")
    rows = scan(discover(images).files).rows
    Cache.create(tmp_path / "c").datasets().write("d", to_table(rows))
    (images / "train" / "gen" / "0_real" / "000.png").unlink()
    write(images, "0_real", 1, saved(picture(999)))
    result = run_audit(cache=tmp_path / "c", dataset="d", sample=0)
    assert (result["real"], result["fake"]) == (EACH - 2, EACH)
    assert sorted(row["reason"] for row in result["set_aside"]) == ["changed", "missing"]


@pytest.mark.slow
def test_photographs_against_latent_diffusion_are_found_also_after_saving_all_as_png(
    shared: Path, tmp_path: Path
) -> None:
    with tarfile.open(shared / "data" / "photos256.tar") as tar:
        members = [member for member in tar.getmembers() if member.isfile() and "/test/" in member.name]
        tar.extractall(tmp_path, members=members, filter="data")
    as_they_are = tmp_path / "photos256"
    result = run_audit([as_they_are], sample=0)
    assert check(result, "headers")["auc"] == 1.0
    assert result["found"]
    again = tmp_path / "again"
    for path in as_they_are.rglob("*.*"):
        if path.is_file():
            with Image.open(path) as image:
                middle = image.convert("RGB").crop((0, 0, 160, 160))  # of one size, and without a profile
            target = again / path.relative_to(as_they_are).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            middle.info.clear()
            middle.save(target)
    result = run_audit([again])
    assert not check(result, "headers")["found"]
    assert check(result, "pixels")["found"]
    assert check(result, "pixels")["auc"] > 0.9


def test_cifake_is_not_found(shared: Path, tmp_path: Path) -> None:
    with tarfile.open(shared / "data" / "cifake-train.tar") as tar:
        wanted = {"0_real": 150, "1_fake": 150}
        for member in tar:
            kind = member.name.split("/")[-2]
            if member.isfile() and "/val/" in member.name and wanted.get(kind, 0) > 0:
                wanted[kind] -= 1
                tar.extract(member, tmp_path, filter="data")
            if not any(wanted.values()):
                break
    result = run_audit([tmp_path / "cifake"], sample=100)
    assert result["pixels"]["measured"] == 200
    assert not result["found"]


def test_other_labels_of_the_same_rows_give_another_verdict() -> None:
    facts = [header_facts(saved(picture(n, 16), "PNG" if n % 2 else "BMP"), "a.png") for n in range(60)]
    file = SourceFile("r", "p", 0, "train", "g", "unknown", "")
    by_format = [AuditRow(replace(file, label=n % 2), f"{n:032x}", fact, n) for n, fact in enumerate(facts)]
    by_halves = [AuditRow(replace(file, label=n // 30), f"{n:032x}", fact, n) for n, fact in enumerate(facts)]
    assert audit_rows(by_format)[0]["found"]
    assert not audit_rows(by_halves)[0]["found"]
