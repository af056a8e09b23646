"""The cheap audit of a build: made once a revision from what the scan gathered, warned of, copied and repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from distil_cache.cache.maintenance.verify import verify
from distil_cache.cache.records.audit import HeaderAudit, parse_audit
from distil_cache.cache.records.builds import BuildRecord
from distil_cache.cache.records.image_audit import IMAGE_AUDIT, ImageAudit, parse_image_audit
from distil_cache.cache.store import Cache
from distil_cache.cli import app
from distil_cache.errors import IntegrityError
from distil_cache.pipeline.audit.summary import summarise, warning
from distil_cache.pipeline.build import run_build
from distil_cache.pipeline.config import BuildConfig
from distil_cache.pipeline.scan.scan import scan
from distil_cache.pipeline.sources.discover import discover
from distil_cache.progress import Silent
from distil_cache.report.write import write_report
from distil_cache.train.config import TrainConfig
from distil_cache.train.engine.loop import run_training
from distil_cache.train.evaluation.audits import renew_image_audits
from distil_cache.train.evaluation.evaluate import run_evaluation
from image_bytes import noise, saved
from recorded_progress import Recorded
from run_folders import rows as scored_rows
from run_folders import write_evaluation, write_run
from small_cache import make_cache, rows
from typer.testing import CliRunner

EACH = 24


def write_images(folder: Path, real: str = "JPEG") -> Path:
    for number in range(EACH):
        for label, (kind, form) in enumerate((("0_real", real), ("1_fake", "PNG"))):
            path = folder / "train" / "gen" / kind / f"{number:03}.{'jpg' if form == 'JPEG' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(saved(noise(16, 16, seed=100 * number + label), form))
    return folder


def build(images: Path, cache: Path, progress: Silent | None = None, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "image_size": 16,
        "features": ("image",),
        "adm": "demo",
        "device": "cpu",
        "decode_threads": 1,
    }
    config = BuildConfig.checked(sources=(images,), cache=cache, dataset="d", **{**values, **changes})
    return run_build(config, progress or Silent())


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """(folder with images and cache, result of the first build, what it said) of JPEG against PNG."""
    folder, progress = tmp_path_factory.mktemp("mixed"), Recorded()
    result = build(write_images(folder / "images"), folder / "c", progress)
    return folder, result, progress.said


def test_a_build_says_what_gives_the_label_away_and_what_to_do(mixed: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, result, said = mixed
    (sentence,) = [text for text in said if text.startswith("Warning")]
    assert "AUC of 1.00" in sentence
    assert "format: real jpeg 100 %, generated png 100 %" in sentence
    assert "--harmonize" in sentence
    assert result["audit"]["found"]
    assert f"Warning: {result['audit']['warning']}" == sentence
    assert (result["audit"]["real"], result["audit"]["fake"]) == (EACH, EACH)


def test_a_build_that_changes_nothing_opens_nothing_and_keeps_the_audit_of_the_revision(
    mixed: tuple[Path, dict[str, Any], list[str]],
) -> None:
    folder, first, _ = mixed
    path = folder / "c" / "datasets" / "d" / f"{first['revision']}.audit.json"
    before, progress = path.stat(), Recorded()
    again = build(folder / "images", folder / "c", progress)
    assert again["audit"] == first["audit"]
    assert (again["opened"], again["decoded"], progress.said) == (0, 0, [])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    path.unlink()
    assert build(folder / "images", folder / "c")["audit"] == first["audit"]
    assert path.exists()


def test_strict_is_about_rejects_and_a_finding_alone_ends_a_build_with_0(
    mixed: tuple[Path, dict[str, Any], list[str]],
) -> None:
    folder, _, _ = mixed
    arguments = ["build", str(folder / "images"), "--cache", str(folder / "c"), "--dataset", "d", "--adm", "demo"]
    done = CliRunner().invoke(app, [*arguments, "--features", "image", "--image-size", "16", "--strict", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["audit"]["found"]
    shown = CliRunner().invoke(app, [*arguments, "--features", "image", "--image-size", "16", "--strict"])
    assert "Warning: Real and generated images can be told apart" in shown.stdout


def test_a_dry_run_warns_too_and_nothing_is_found_where_nothing_differs(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", real="PNG")
    config = BuildConfig.checked(
        sources=(images,),
        cache=tmp_path / "c",
        dataset="d",
        adm="demo",
        image_size=16,
        features=("image",),
        device="cpu",
    )
    plan = run_build(config, Silent(), dry_run=True)
    assert plan["audit"]["found"] is False
    assert plan["audit"]["warning"] == ""
    assert [check["auc"] for check in plan["audit"]["checks"]] == [0.5]


def test_the_warning_knows_what_the_build_does_about_it(mixed: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, _, _ = mixed
    audit = summarise(scan(discover(folder / "images").files).rows)
    assert audit is not None
    assert "--harmonize jpeg:95 compresses all images alike" in warning(audit, "jpeg:95")
    assert "Compress all images alike with" in warning(audit, None)
    assert summarise([row._replace(traits="") for row in scan(discover(folder / "images").files).rows]) is None


def test_a_damaged_audit_is_reported_and_verify_finds_it(mixed: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, result, _ = mixed
    cache = Cache.open(folder / "c")
    path = folder / "c" / "datasets" / "d" / f"{result['revision']}.audit.json"
    whole = path.read_bytes()
    assert cache.datasets().audit("d") == parse_audit(whole, "a")
    for damaged in (b"", b"[]", whole.replace(b'"auc": 1.0', b'"auc": NaN'), whole.replace(b'"fake"', b'"fate"')):
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"audit\.json: is not a valid audit"):
            cache.datasets().audit("d")
        assert any(path.name in str(problem.path) for problem in verify(cache))
    path.write_bytes(whole)
    assert list(verify(cache)) == []


def example() -> HeaderAudit:
    carrier = {"feature": "format", "auc": 1.0, "words": "format: real jpeg 100 %, generated png 100 %"}
    check = {"part": "all", "features": "headers", "real": 40, "fake": 30, "auc": 1.0, "interval": (0.9, 1.0)}
    check |= {"level": 0.95, "found": True, "reason": "", "carried_by": [carrier]}
    return HeaderAudit.model_validate(
        {"real": 40, "fake": 30, "sample": 500, "found": True, "sentence": "By format.", "checks": [check], "told": []}
    )


def test_an_evaluation_copies_the_audit_of_its_dataset(tmp_path: Path) -> None:
    cache, record = make_cache(tmp_path / "c", rows("train", 12, {"adm": 12}) + rows("test", 6, {"adm": 6}))
    config = TrainConfig.checked(dataset="pictures", backbone="small", epochs=1, batch_size=16)
    run_training(config, cache.root, tmp_path / "run")
    run_evaluation(tmp_path / "run", cache.root, "pictures", transform="resize")
    cache.datasets().add_audit("pictures", record.revision, example())
    run_evaluation(tmp_path / "run", cache.root, "pictures")
    folder = tmp_path / "run" / "evaluations"
    assert parse_audit((folder / "pictures-test-crop" / "audit.json").read_bytes(), "a") == example()
    assert not (folder / "pictures-test-resize" / "audit.json").exists()


def test_an_evaluation_copies_the_audit_of_its_images_and_a_report_takes_over_a_newer_one(tmp_path: Path) -> None:
    cache, record = make_cache(tmp_path / "c", rows("train", 12, {"adm": 12}) + rows("test", 6, {"adm": 6}))
    config = TrainConfig.checked(dataset="pictures", backbone="small", epochs=1, batch_size=16)
    run_training(config, cache.root, tmp_path / "run")
    first, second = (image_audit_of(record, not_checked) for not_checked in ("One.", "Another."))
    cache.datasets().put_image_audit(first)
    run_evaluation(tmp_path / "run", cache.root, "pictures")
    copy = tmp_path / "run" / "evaluations" / "pictures-test-crop" / IMAGE_AUDIT
    assert parse_image_audit(copy.read_bytes(), "a") == first
    cache.datasets().put_image_audit(second)
    renew_image_audits([tmp_path / "run"])
    assert parse_image_audit(copy.read_bytes(), "a") == second
    shutil.rmtree(tmp_path / "c")
    renew_image_audits([tmp_path / "run"])  # the copy is all that is left
    assert parse_image_audit(copy.read_bytes(), "a") == second


def image_audit_of(record: BuildRecord, not_checked: str) -> ImageAudit:
    return ImageAudit(
        dataset=record.dataset, revision=record.revision, fingerprint=record.features["image"].fingerprint, size=32,
        harmonize="", real=6, fake=6, found=False, sentence="", checks=(), content=None, not_checked=(not_checked,),
    )  # fmt: skip


def test_the_report_repeats_the_audit_once_for_all_runs(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("one", "two")]
    for run in runs:
        evaluation = write_evaluation(run, scored_rows({"adm-a": 2.0}))
        (evaluation / "audit.json").write_bytes(example().as_json())
    content = write_report(runs, tmp_path / "report")
    (entry,) = content["extra"]["audit"]
    assert (entry["dataset"], entry["found"], entry["checks"][0]["auc"]) == ("photos", True, 1.0)
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Does the file give the label away?" in page
    assert "format: real jpeg 100 %, generated png 100 %" in page
    assert "Does the file give the label away?" in (tmp_path / "report" / "report.md").read_text()


def test_a_report_of_evaluations_without_audit_has_no_such_section(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    write_evaluation(run, scored_rows({"adm-a": 2.0}))
    assert "audit" not in write_report([run], tmp_path / "report")["extra"]
