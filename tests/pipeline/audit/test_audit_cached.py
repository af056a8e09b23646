"""The audit of cached images: it needs no sources, says what a common compression took away, and is kept for reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from audit_pictures import picture, through_jpeg
from distil_cache.cache.records.image_audit import parse_image_audit
from distil_cache.cache.store import Cache
from distil_cache.cli import app
from distil_cache.errors import IntegrityError, UserError
from distil_cache.images.spec import ImageSpec, parse_harmonization
from distil_cache.pipeline.audit.checks import AuditRow, settled_qualities
from distil_cache.pipeline.audit.pixel_features import PixelFacts
from distil_cache.pipeline.audit.run import run_audit
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.sources.file import SourceFile
from distil_cache.progress import Silent
from image_bytes import saved
from plain_cache import rows, write_cache
from typer.testing import CliRunner

EACH, SIDE = 24, 72


def cached(root: Path, *, quality: int | None, harmonize: str | None = None, name: str = "pictures") -> Cache:
    """A cache whose sources are gone; the real images were a JPEG of this quality once."""

    def value_of(_feature: str, key: str, label: int) -> np.ndarray:
        pixels = picture(int(key[:8], 16), SIDE)
        past = pixels if label or quality is None else through_jpeg(pixels, quality)
        return past.transpose(2, 0, 1)

    specs = {"image": ImageSpec(size=SIDE, harmonize=parse_harmonization(harmonize))}
    table = rows("train", EACH, {"adm": EACH})
    return write_cache(root, table, specs, value_of, features={"image": ["train"]}, name=name)[0]


def examined(result: dict[str, Any]) -> dict[str, Any]:
    return next(check for check in result["images"]["checks"] if check["part"] == "all")


def test_traces_in_cached_images_are_found_when_the_sources_are_gone(tmp_path: Path) -> None:
    cache = cached(tmp_path / "c", quality=80)
    result = run_audit(cache=tmp_path / "c", dataset="pictures")
    assert result["found"]
    assert examined(result)["carried_by"][0]["words"] == "JPEG quality in the pixels: real 80, generated none"
    assert (result["checks"], result["pixels"], result["duplicates"]) == ([], None, None)
    assert result["not_checked"][0].startswith("Headers, pixels and duplicates of the source files: 0 of 48 are there")
    record = cache.builds().find("pictures")[0]
    stored = cache.datasets().image_audit("pictures", record.revision, record.features["image"].fingerprint)
    assert stored is not None
    assert stored.model_dump(mode="json") == result["images"]
    assert "by traces in the cached pixels, with an AUC of 1.00" in stored.sentence


def test_cached_images_without_a_past_show_no_sign(tmp_path: Path) -> None:
    cached(tmp_path / "c", quality=None)
    result = run_audit(cache=tmp_path / "c", dataset="pictures", sample=20)
    assert not result["found"]
    assert (result["images"]["real"], result["images"]["fake"]) == (20, 20)
    assert "8 of 48 cached images, which were not drawn." in result["not_checked"]


def test_an_audit_that_cannot_be_used_is_named_and_one_of_another_revision_is_not_taken(tmp_path: Path) -> None:
    cache = cached(tmp_path / "c", quality=None)
    run_audit(cache=tmp_path / "c", dataset="pictures")
    record = cache.builds().find("pictures")[0]
    fingerprint = record.features["image"].fingerprint
    assert cache.datasets().image_audit("pictures", "0" * 16, fingerprint) is None
    (path,) = (tmp_path / "c" / "datasets" / "pictures").glob("image-*.audit.json")
    assert parse_image_audit(path.read_bytes(), "a").fingerprint == fingerprint
    path.write_bytes(path.read_bytes().replace(b'"size"', b'"side"'))
    with pytest.raises(IntegrityError, match=r"image-.*audit\.json: is not a valid audit of images"):
        cache.datasets().image_audit("pictures", record.revision, fingerprint)


def test_a_build_is_named_where_there_are_several(tmp_path: Path) -> None:
    cache = cached(tmp_path / "c", quality=80)
    cached(tmp_path / "c", quality=None, harmonize="jpeg:95")
    raw = next(one for one in cache.builds().find("pictures") if "harmonize" not in spec_of(cache, one))
    result = run_audit(cache=tmp_path / "c", dataset="pictures", build=raw.id)
    assert (result["images"]["harmonize"], result["found"]) == ("", True)
    cached(tmp_path / "c", quality=None, name="other")
    with pytest.raises(UserError, match="is a build of pictures, not of other"):
        run_audit(cache=tmp_path / "c", dataset="other", build=raw.id)


def spec_of(cache: Cache, record: Any) -> str:
    return json.dumps(cache.open_feature(record.features["image"].folder).spec)


@pytest.fixture(scope="module")
def harmonized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG against PNG of one size, built with --harmonize into images that were not resized."""
    folder = tmp_path_factory.mktemp("harmonized")
    for number in range(EACH):
        for kind, form, suffix in (("0_real", "JPEG", "jpg"), ("1_fake", "PNG", "png")):
            path = folder / "images" / "train" / "gen" / kind / f"{number:03}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            seed = number if form == "JPEG" else 1000 + number
            path.write_bytes(saved(picture(seed, 32), form, **({"quality": 92} if form == "JPEG" else {})))
    config = BuildConfig.checked(
        sources=(folder / "images",), cache=folder / "c", dataset="d", image_size=32, features=("image",), adm="demo",
        device="cpu", decode_threads=1, harmonize="jpeg:75",
    )  # fmt: skip
    run_build(config, Silent())
    return folder


def test_what_a_common_compression_took_away_does_not_count_and_is_told(harmonized: Path) -> None:
    result = run_audit(cache=harmonized / "c", dataset="d")
    headers = next(check for check in result["checks"] if (check["features"], check["part"]) == ("headers", "all"))
    assert headers["found"]
    assert "format" in result["removed"]
    assert not any(check["found"] for check in result["checks"] if check["features"] == "size")
    assert (result["images"]["harmonize"], result["images"]["found"]) == ("jpeg:75", False)
    assert not result["found"]


def test_without_pixels_nothing_is_claimed_of_the_images(harmonized: Path) -> None:
    done = CliRunner().invoke(app, ["audit", "--cache", str(harmonized / "c"), "--dataset", "d", "--sample", "0"])
    shown = " ".join(done.stdout.split())
    assert "What remains: the cached images were not examined." in shown
    assert "Cached images (--sample 0)." in shown


def test_the_summary_of_a_harmonized_dataset_tells_files_and_images_apart(harmonized: Path) -> None:
    done = CliRunner().invoke(
        app, ["audit", "--cache", str(harmonized / "c"), "--dataset", "d", "--strict"], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    assert (
        "Cached images of 32 pixels, all compressed alike (jpeg:75): 24 real and 24 generated were drawn."
        in done.stdout
    )
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(line.startswith("files all headers 24 24") and line.endswith("given away") for line in lines)
    assert any(line.startswith("cache all pixels 24 24") and line.endswith("not given away") for line in lines)
    assert "--harmonize jpeg:75 took away: format, " in done.stdout
    assert "What remains: no sign in 1 check of the pixels of the cached images." in done.stdout
    assert "Not checked:" in done.stdout
    assert "Subject matter: a linear classifier of thumbnails" in done.stdout


def test_the_images_are_examined_alike_without_their_sources(harmonized: Path, tmp_path: Path) -> None:
    before = run_audit(cache=harmonized / "c", dataset="d")["images"]
    shutil.move(harmonized / "images", tmp_path / "away")
    try:
        without = run_audit(cache=harmonized / "c", dataset="d")
        assert [check["features"] for check in before["sizes"]] == ["size"]
        assert without["images"] == before | {"sizes": []}
        assert (
            "Its build found: Real and generated images can be told apart by their files' headers"
            in without["not_checked"][0]
        )
    finally:
        shutil.move(tmp_path / "away", harmonized / "images")


def twice(number: int, label: int, earlier: int | None) -> AuditRow:
    facts = PixelFacts(own_quality=90, earlier_quality=earlier, grid=None, peak=None)
    return AuditRow(SourceFile("r", str(number), label, "train", "g", "", ""), f"{number:032x}", None, number, facts)


def test_images_that_were_all_compressed_twice_are_not_told_apart_by_how_often_that_is_found() -> None:
    found = [twice(n, n % 2, (75, 74, None, None)[n // 2 % 4] if n % 2 else 75) for n in range(40)]
    assert {row.pixels.earlier_quality for row in settled_qualities(found)} == {75}
    one_class = [twice(n, n % 2, None if n % 2 else 75) for n in range(40)]
    assert settled_qualities(one_class) == one_class
    far_apart = settled_qualities([twice(n, n % 2, 60 if n % 2 else 75) for n in range(40)])
    assert {row.pixels.earlier_quality for row in far_apart} == {60, 75}
