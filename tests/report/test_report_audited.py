"""What a report says of shortcuts: source files and cached images are told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from distil_cache.report.write import write_report
from run_folders import rows, write_evaluation, write_run

SENTENCE = (
    "Real and generated images can be told apart by their files' headers alone, with an AUC of 1.00 (0.99 to 1.00)."
)
HEADERS = {"real": 40, "fake": 60, "sample": 500, "found": True, "sentence": SENTENCE, "checks": [], "told": []}
CHECK = {
    "part": "all", "features": "pixels", "real": 40, "fake": 60, "auc": 0.52, "interval": [0.4, 0.6], "level": 0.95,
    "found": False, "reason": "", "carried_by": [],
}  # fmt: skip
SUBJECT = "; subject matter alone reaches an AUC of 0.85"
TRACES = (
    "Real and generated images can be told apart by traces in the cached pixels, with an AUC of 0.72 (0.62 to 0.81)."
)
CONTENT = {
    "embedding": "e", "real": 40, "fake": 60, "across": "images", "auc": 0.85, "interval": [0.8, 0.9], "folds": [],
    "reason": "", "sentence": "Subject matter: an AUC of 0.85.",
}  # fmt: skip
IMAGES = {
    "dataset": "photos", "revision": "abcdef0123456789", "fingerprint": "1" * 64, "size": 32, "harmonize": "jpeg:95",
    "real": 40, "fake": 60, "found": False, "sentence": "", "checks": [CHECK], "content": CONTENT,
    "not_checked": ["The last image."],
}  # fmt: skip
AWAY = IMAGES | {
    "found": True,
    "sentence": TRACES,
    "checks": [CHECK | {"auc": 0.72, "interval": [0.62, 0.81], "found": True}],
}


def shortcuts(
    folder: Path, images: dict[str, Any] | None, harmonize: str = "jpeg:95"
) -> tuple[dict[str, Any], dict[str, str]]:
    """The content of a report on one run, and its answer about shortcuts."""
    run = write_run(folder / "run")
    record = json.loads((run / "config.json").read_text())
    image: dict[str, Any] = {"feature": "image", "size": 32}
    if harmonize:
        codec, _, quality = harmonize.partition(":")
        image["harmonize"] = {"codec": codec, "quality": int(quality)}
    (run / "config.json").write_text(json.dumps(record | {"specs": {"eps": {"feature": "eps", "image": image}}}))
    evaluation = write_evaluation(run, rows({"adm-a": 1.0}))
    (evaluation / "audit.json").write_text(json.dumps(HEADERS))
    if images is not None:
        (evaluation / "image_audit.json").write_text(json.dumps(images))
    content = write_report([run], folder / "out")
    return content, next(one for one in content["verdict"]["answers"] if one["question"] == "Shortcuts")


def test_a_harmonized_dataset_is_not_given_away_in_the_words_of_the_raw_one(tmp_path: Path) -> None:
    content, answer = shortcuts(tmp_path, None)
    assert (
        answer["answer"]
        == "The files of photos differ; all images were compressed alike, and what remains was not examined"
    )
    assert content["verdict"]["given_away"] == []
    assert (
        "photos: what remains in the images after --harmonize was not examined. Run: distil-cache audit --cache cache --dataset photos"
        in content["verdict"]["missing"]
    )
    assert not any("--swap" in sentence for sentence in content["verdict"]["missing"])


def test_what_remains_in_cached_images_is_told_apart_from_what_was_in_the_files(tmp_path: Path) -> None:
    content, answer = shortcuts(tmp_path, AWAY)
    assert (
        answer["answer"]
        == "The cached images of photos give the label away, although they were compressed alike" + SUBJECT
    )
    assert SENTENCE in answer["numbers"]
    assert "That is of the source files" in answer["numbers"]
    assert TRACES in answer["numbers"]
    assert content["verdict"]["given_away"] == ["photos"]
    assert content["extra"]["audit"][0]["images"]["found"]
    assert content["extra"]["audit"][0]["harmonize"] == "jpeg:95"


def test_a_quiet_audit_says_what_subject_matter_tells_and_what_was_not_checked(tmp_path: Path) -> None:
    content, answer = shortcuts(tmp_path, IMAGES)
    assert (
        answer["answer"]
        == "The files of photos differ; in the images, compressed alike, the checks of pixels found no sign" + SUBJECT
    )
    assert (
        "The cached images show no sign in 1 check of their pixels. Subject matter: an AUC of 0.85."
        in answer["numbers"]
    )
    assert content["verdict"]["given_away"] == []
    page = (tmp_path / "out" / "report.md").read_text().partition("Does the file give the label away")[2]
    assert "Not checked in photos: The last image." in page
    assert "cached images: subject matter" in page
    assert "cached images: pixels" in page


def test_sizes_outlive_a_common_compression(tmp_path: Path) -> None:
    carried = [{"feature": "width", "auc": 0.97, "words": "width: real 80 to 1699, generated 256"}]
    size = CHECK | {"features": "size", "auc": 0.98, "interval": [0.9, 1.0], "found": True, "carried_by": carried}
    content, answer = shortcuts(tmp_path, IMAGES | {"sizes": [size]})
    assert answer["answer"].startswith("The sizes of the files of photos give the label away, although")
    assert "with an AUC of 0.98, by width: real 80 to 1699, generated 256" in answer["numbers"]
    assert content["verdict"]["given_away"] == ["photos"]


def test_files_that_differ_count_where_nothing_was_compressed_alike(tmp_path: Path) -> None:
    content, answer = shortcuts(tmp_path, IMAGES | {"harmonize": ""}, harmonize="")
    assert answer["answer"] == "The files of photos give the label away" + SUBJECT
    assert content["verdict"]["given_away"] == ["photos"]


def test_the_test_on_one_history_is_told_with_the_swap_test(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation(run, rows({"adm-a": 1.0}))
    swap = {
        "dataset": "photos", "revision": "abcdef", "split": "test", "checkpoint_sha256": "4" * 64, "real": 40, "fake": 60,
        "moved_real": 0, "moved_fake": 60, "histories": [], "carried": 0.62, "interval": [0.51, 0.7], "reason": "",
        "auc_own": 0.99, "auc_again": 0.99, "auc_swapped": 0.7,
        "one_history": {
            "history": "jpeg:95", "auc": 0.75, "interval": [0.7, 0.8], "change": [-0.3, -0.18], "threshold": 0.5,
            "accuracy_own": 0.9, "accuracy": 0.6,
        },
    }  # fmt: skip
    (run / "swap.json").write_text(json.dumps(swap))
    content = write_report([run], tmp_path / "out")
    answer = next(one for one in content["verdict"]["answers"] if one["question"] == "Shortcuts")
    assert "With all images compressed as jpeg:95, the AUC is 75.0 (a change of" in answer["numbers"]


def test_a_damaged_audit_of_images_is_refused_with_its_name(tmp_path: Path) -> None:
    from distil_cache.errors import IntegrityError

    with pytest.raises(IntegrityError, match=r"image_audit\.json: is not a valid audit of images"):
        shortcuts(tmp_path, IMAGES | {"size": -1})
