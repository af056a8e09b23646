"""The detector: its scores equal those of an evaluation for every method, and it refuses models that are not the run's."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from distil_cache.cache.gather import gather
from distil_cache.cache.store import Cache
from distil_cache.errors import UsageError, UserError
from distil_cache.features.adm import AdmIdentity
from distil_cache.images.decode import decode
from distil_cache.inference import Detector
from distil_cache.inference.explain import SMALLEST, STRIP
from distil_cache.inference.find_adm import matching_adm
from distil_cache.models import transfer
from distil_cache.models.diffusion.checkpoints import find_adm
from distil_cache.models.diffusion.unet import Adm, AdmConfig
from distil_cache.models.weights import read_state_dict
from distil_cache.train.evaluation.evaluate import run_evaluation
from distil_cache.train.runs.forms import BEST
from distil_cache.train.runs.reference_checkpoint import import_checkpoint
from distil_cache.train.students.pixels import PixelStudent
from image_bytes import bad_files, noise, saved
from old_builds import earlier_version
from PIL import Image
from predict_runs import believe, build, decoded_image, detector, evaluated, train
from run_state import as_of_before, best, best_file
from safetensors.torch import load_file, save_file
from small_models import SIDE, write_adm, write_images

CALLS = {"distildire": 1, "eps": 1, "dire": 8, "dnf": 4, "cnndet": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built cache, and a run of each method with its evaluation, in folders of the methods' names."""
    folder = tmp_path_factory.mktemp("predict")
    write_adm(folder / "adm.safetensors")
    build(folder, write_images(folder / "images", {"train": 10, "test": 7}), "image,eps,dire,noise")
    for method in CALLS:
        train(folder, method)
    return folder


@pytest.mark.parametrize("method", CALLS)
def test_each_method_gives_the_scores_that_evaluate_gave_from_the_cache(folder: Path, method: str) -> None:
    rows = evaluated(folder / method)
    one = detector(folder, method)
    found = one.predict([row["file"] for row in rows])
    logits = np.array([row["logit"] for row in rows])
    assert np.std(logits) > 1e-3
    assert one.maker.calls == CALLS[method]
    np.testing.assert_allclose([p.logit for p in found], logits, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose([p.score for p in found], [row["score"] for row in rows], atol=1e-6)
    assert [p.path for p in found] == [row["file"] for row in rows]
    assert [p.generated for p in found] == [row["score"] > one.threshold.value for row in rows]


@pytest.mark.parametrize(("method", "feature"), [("distildire", "eps"), ("dire", "dire"), ("dnf", "noise")])
def test_features_are_those_of_the_cache_to_the_bit(folder: Path, method: str, feature: str) -> None:
    rows = evaluated(folder / method)
    one = detector(folder, method)
    images = np.stack([decoded_image(one, row["file"]) for row in rows])
    cache = Cache.open(folder / "cache")
    stored = gather(cache.open_feature(one.record.fingerprints[feature]), [row["key"] for row in rows])
    made = one.maker.make(images, [""] * len(images))[feature]
    assert made.dtype == stored.dtype
    np.testing.assert_array_equal(made, stored)


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_the_batch_size_changes_scores_only_by_rounding(folder: Path, batch_size: int | str) -> None:
    rows = evaluated(folder / "distildire")
    found = detector(folder, batch_size=batch_size).predict([row["file"] for row in rows])
    np.testing.assert_allclose([p.logit for p in found], [row["logit"] for row in rows], atol=1e-4)


def test_on_a_card_a_group_is_queued_before_the_scores_of_the_last_one_are_waited_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [row["file"] for row in evaluated(folder / "dire")][:10]
    plain = detector(folder, "dire").predict(files)
    monkeypatch.setitem(transfer.BEHIND, "cpu", 1)
    events: list[str] = []
    started, scored = Detector._started, Detector._scored

    def starting(self: Detector, group: Any) -> Any:
        events.append("queued")
        return started(self, group)

    def scoring(self: Detector, group: Any) -> Any:
        events.append("waited")
        return scored(self, group)

    monkeypatch.setattr(Detector, "_started", starting)
    monkeypatch.setattr(Detector, "_scored", scoring)
    assert detector(folder, "dire").predict(files) == plain
    assert events == ["queued", "queued", "waited", "queued", "waited", "waited"]


def test_bad_files_are_skipped_and_the_order_is_kept(folder: Path, tmp_path: Path) -> None:
    good = [row["file"] for row in evaluated(folder / "distildire")][:6]
    bad = bad_files()
    paths = []
    for number, (name, (data, _, _)) in enumerate(bad.items()):
        (tmp_path / name).write_bytes(data)
        paths += [str(tmp_path / name), good[number % len(good)]]
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    paths += [str(tmp_path / "absent.png"), str(tmp_path / "loop.png"), str(tmp_path / "pipe.png"), "a\0b.png"]
    os.mkfifo(tmp_path / "pipe.png")
    found = detector(folder).predict(paths)
    assert [p.path for p in found] == paths
    assert [p.reason for p in found[: 2 * len(bad) : 2]] == [reason for _, reason, _ in bad.values()]
    assert all(p.reason is None and p.score is not None for p in found[1 : 2 * len(bad) : 2])
    assert [p.reason for p in found[-4:]] == ["missing", "unreadable", "not-a-file", "missing"]
    assert all(p.score is None and p.verdict is None for p in found[-4:])


def test_a_path_its_image_and_its_pixels_have_one_score(folder: Path) -> None:
    file = evaluated(folder / "distildire")[0]["file"]
    with Image.open(file) as image:
        pixels = np.asarray(image)
        found = detector(folder).predict([file, Path(file), image, pixels])
    assert len({p.logit for p in found}) == 1
    assert [p.path for p in found] == [file, file, file, "input 4"]
    one = detector(folder, batch_size=1)
    assert one.predict(file)[0].logit == one.predict(pixels)[0].logit
    assert len(one.predict(np.stack([pixels, pixels]))) == 2
    assert [p.path for p in one.stream(iter([file, pixels]))] == [file, "input 2"]
    assert one.predict([]) == []


@pytest.mark.parametrize("wrong", [np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 8), np.uint8), 7])
def test_an_input_that_is_not_an_image_is_a_usage_error(folder: Path, wrong: Any) -> None:
    with pytest.raises(UsageError, match="input 1"):
        detector(folder).predict([wrong])


def test_a_run_needs_no_cache_and_an_older_one_looks_there(folder: Path, tmp_path: Path) -> None:
    file = evaluated(folder / "distildire")[0]["file"]
    expected = detector(folder).predict(file)
    shutil.copytree(folder / "distildire", tmp_path / "distildire")
    shutil.copy(folder / "adm.safetensors", tmp_path)
    record = json.loads((tmp_path / "distildire" / "config.json").read_text())
    (tmp_path / "distildire" / "config.json").write_text(json.dumps({**record, "cache": "gone"}))
    assert detector(tmp_path).predict(file) == expected
    older = {name: value for name, value in record.items() if name != "specs"}
    (tmp_path / "distildire" / "config.json").write_text(json.dumps({**older, "cache": "gone"}))
    with pytest.raises(UserError, match="Name the cache of the run with --cache"):
        detector(tmp_path)
    assert detector(tmp_path, cache=folder / "cache").predict(file) == expected
    record["specs"]["eps"]["clip"] = False
    (tmp_path / "distildire" / "config.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"recorded spec of eps does not match"):
        detector(tmp_path)


def test_another_diffusion_model_is_refused_and_an_unknown_one_asked_for(folder: Path, tmp_path: Path) -> None:
    other = write_adm(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(UserError, match=r"not the model of the student's training: .* digest"):
        detector(folder, adm=str(other))
    with pytest.raises(UserError, match=r"weights have the digest .* Name its file with --adm"):
        detector(folder, adm=None)
    with pytest.raises(UserError, match="no such file"):
        detector(folder, adm="nowhere.pt")
    assert detector(folder, "cnndet", adm=None).maker.calls == 0


def test_the_runs_record_knows_the_flags_of_a_file_that_says_nothing(folder: Path, tmp_path: Path) -> None:
    torch.save(load_file(folder / "adm.safetensors"), tmp_path / "bare.pt")
    file = evaluated(folder / "eps")[0]["file"]
    assert detector(folder, "eps", adm=str(tmp_path / "bare.pt")).predict(file) == detector(folder, "eps").predict(file)


@pytest.mark.parametrize("name", ["demo", "demo-b"])
def test_shipped_models_are_found_by_their_weights(name: str) -> None:
    shipped = find_adm(name)
    identity = AdmIdentity.of(shipped.digest, shipped.config)
    assert (found := matching_adm(None, identity)).name == name
    assert found.load().state_dict().keys() == read_state_dict(shipped.path).keys()


def test_a_run_of_an_earlier_version_is_evaluated_on_its_rows_and_predicts_by_todays_rules_with_a_note(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "adm.safetensors", tmp_path)
    with earlier_version():
        build(tmp_path, folder / "images", "image,eps,dire")
    run = train(tmp_path, "eps")
    build(tmp_path, folder / "images", "image,eps,dire")
    rows = evaluated(run)
    run_evaluation(run, tmp_path / "cache", "d")  # both builds serve it, and its own is taken
    assert evaluated(run) == rows
    one = detector(tmp_path, "eps")
    assert any("images decoded by the rules of algorithm 1" in note for note in one.notes)
    logits = [row["logit"] for row in rows]
    np.testing.assert_allclose([p.logit for p in one.predict([row["file"] for row in rows])], logits, atol=1e-6)
    assert not any("algorithm" in note for note in detector(folder, "eps").notes)


def test_a_run_of_an_earlier_version_is_evaluated_on_a_new_data_set_with_a_note(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "adm.safetensors", tmp_path)
    with earlier_version():
        build(tmp_path, folder / "images", "image,eps")
    run = train(tmp_path, "eps")
    build(tmp_path, write_images(tmp_path / "images", {"test": 3}, seed=9), "image,eps", dataset="new")
    found = run_evaluation(run, tmp_path / "cache", "new")
    assert any("decoded by the rules of another version" in note for note in found["notes"])
    own = json.loads((run / "evaluations" / "d-test-crop" / "evaluation.json").read_text())
    assert not any("decoded by" in note for note in own["notes"])
    build(tmp_path, tmp_path / "images", "image,eps", dataset="other", image_preset="dnf")
    with pytest.raises(UserError, match="with other settings"):
        run_evaluation(run, tmp_path / "cache", "other")


def test_the_threshold_is_the_given_one_else_the_calibrated_one_else_a_half(folder: Path, tmp_path: Path) -> None:
    calibrated = detector(folder)
    chosen = best(folder / "distildire").calibration.threshold
    assert (calibrated.threshold.value, calibrated.threshold.origin) == (chosen, "validation")
    assert "chosen on" in calibrated.notes[0]
    assert any("transform" in note for note in detector(folder, transform="resize").notes)
    shutil.copytree(folder / "distildire", tmp_path / "distildire")
    as_of_before(tmp_path / "distildire")
    (tmp_path / "distildire" / "calibration.json").unlink()
    shutil.copy(folder / "adm.safetensors", tmp_path)
    plain = detector(tmp_path)
    assert (plain.threshold.value, plain.notes) == (0.5, ("threshold 0.5: the run has no calibrated one",))
    file = evaluated(folder / "distildire")[0]["file"]
    assert [detector(folder, threshold=t).predict(file)[0].verdict for t in (0, 1)] == ["generated", "real"]
    with pytest.raises(UsageError, match="--threshold"):
        detector(folder, threshold=float("nan"))


def test_a_student_no_better_than_chance_on_its_validation_gives_scores_without_a_verdict(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "distildire", tmp_path / "distildire")
    shutil.copy(folder / "adm.safetensors", tmp_path)
    file = evaluated(folder / "distildire")[0]["file"]
    assert "balanced accuracy 90.0% there" in detector(folder).notes[0]
    believe(tmp_path / "distildire", 0.56)
    weak = detector(tmp_path)
    (found,) = weak.predict(file)
    assert (found.verdict, found.generated) == (None, None)
    assert found.score == detector(folder).predict(file)[0].score
    assert "images of the smaller class that may be chance, so no verdict is given" in weak.notes[0]
    assert detector(tmp_path, threshold=0).predict(file)[0].verdict == "generated"


def test_the_resize_of_an_evaluation_is_that_of_a_prediction(folder: Path) -> None:
    run_evaluation(folder / "distildire", folder / "cache", "d", transform="resize")
    scores = pq.read_table(folder / "distildire" / "evaluations" / "d-test-resize" / "scores.parquet").to_pylist()
    files = {row["key"]: row["file"] for row in evaluated(folder / "distildire")}
    found = detector(folder, transform="resize").predict([files[row["key"]] for row in scores])
    np.testing.assert_allclose([p.logit for p in found], [row["logit"] for row in scores], atol=1e-6)


def test_an_explanation_shows_image_eps_and_dire(folder: Path, tmp_path: Path) -> None:
    file = evaluated(folder / "distildire")[0]["file"]
    plain = detector(folder, "dire").predict(file)[0]
    one = detector(folder, "distildire", explain=tmp_path / "why")
    assert one.maker.calls == 40  # this run saw no DIRE, so nothing says how many steps it had
    assert any("takes 40 ADM calls" in note for note in one.notes)
    known = detector(folder, "dire", explain=tmp_path / "dire")
    assert (known.maker.calls, known.predict(file)[0].score) == (8, plain.score)
    prediction = one.predict(file)[0]
    assert prediction.explained is not None
    with Image.open(prediction.explained) as image:
        pixels = np.asarray(image)
    factor = -(-SMALLEST // SIDE)  # small images are enlarged by whole pixels
    side = factor * SIDE
    assert pixels.shape == (side + STRIP, 3 * side + 8, 3)
    shown = pixels[STRIP:, :side]
    np.testing.assert_array_equal(shown[::factor, ::factor].transpose(2, 0, 1), decoded_image(one, file))
    np.testing.assert_array_equal(shown, shown[::factor, ::factor].repeat(factor, 0).repeat(factor, 1))
    labels = [pixels[:STRIP, place * (side + 4) :][:, :side] for place in range(3)]
    assert all((label < 128).any() for label in labels)
    with pytest.raises(UserError, match="is not empty"):
        detector(folder, explain=tmp_path / "why")
    with pytest.raises(UsageError, match="uses only the image"):
        detector(folder, "cnndet", adm=None, explain=tmp_path / "new")


def test_another_precision_is_another_eps_and_one_that_the_device_lacks_is_refused(folder: Path) -> None:
    file = evaluated(folder / "eps")[0]["file"]
    exact, coarse = (detector(folder, "eps", precision=p).predict(file)[0].logit for p in (None, "bf16"))
    assert (
        detector(folder, "eps", precision="bf16").notes[-1]
        == "features are computed in bf16; those of the training in fp32"
    )
    assert exact is not None
    assert coarse is not None
    assert 0 < abs(exact - coarse) < 0.1
    with pytest.raises(UsageError, match="tf32 needs a CUDA device"):
        detector(folder, "eps", precision="tf32")


def test_a_harmonised_run_harmonises_what_it_predicts(tmp_path: Path) -> None:
    write_adm(tmp_path / "adm.safetensors")
    build(tmp_path, write_images(tmp_path / "images", {"train": 6, "test": 4}), "image", harmonize="jpeg:30")
    rows = evaluated(train(tmp_path, "cnndet"))
    found = detector(tmp_path, "cnndet").predict([row["file"] for row in rows])
    np.testing.assert_allclose([p.logit for p in found], [row["logit"] for row in rows], atol=1e-6)
    spec, data = detector(tmp_path, "cnndet").decoder.spec, Path(rows[0]["file"]).read_bytes()
    assert not np.array_equal(decode(data, spec), decode(data, spec.model_copy(update={"harmonize": None})))


def test_a_reference_checkpoint_predicts_with_and_without_a_run(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = PixelStudent.of("resnet50", 6).state_dict()
    torch.save({"model": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}}, tmp_path / "official.pth")
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "official.safetensors")
    flags = AdmConfig(
        image_size=256, num_channels=32, num_res_blocks=1, channel_mult="1,1,1,1,1,1", attention_resolutions=""
    )
    weights = {name: torch.randn(value.shape) * 0.05 for name, value in Adm(flags).state_dict().items()}
    save_file(weights, tmp_path / "adm.safetensors", {"flags": json.dumps(flags.model_dump())})
    (tmp_path / "image.png").write_bytes(saved(noise(40, 50)))
    import_checkpoint(tmp_path / "official.pth", tmp_path / "run")
    options = {"adm": str(tmp_path / "adm.safetensors"), "device": "cpu"}
    found = [
        Detector.from_weights(tmp_path / "official.safetensors", **options),
        Detector.from_run(tmp_path / "run", **options),
    ]
    assert len({one.predict(tmp_path / "image.png")[0].score for one in found}) == 1
    assert all("no calibrated" in one.notes[0] and "this ADM is assumed" in one.notes[1] for one in found)
    assert found[0].maker.specs["eps"].image.size == 256
    with pytest.raises(UsageError, match="--method dire"):
        Detector.from_weights(tmp_path / "official.pth", "dire", **options)
    with pytest.raises(UserError, match="has no"):
        Detector.from_weights(best_file(folder / "distildire"), **options)


def test_a_student_that_returns_nan_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "cnndet", tmp_path / "cnndet")
    as_of_before(tmp_path / "cnndet")
    path = tmp_path / "cnndet" / "checkpoints" / BEST
    state = {
        name: torch.full_like(value, torch.nan) if value.is_floating_point() else value
        for name, value in load_file(path).items()
    }
    save_file(state, path, {"epoch": "1"})
    with pytest.raises(UserError, match="NaN or Inf"):
        Detector.from_run(tmp_path / "cnndet", device="cpu").predict(noise(20, 20))


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"transform": "pad"}, "transform"),
        ({"batch_size": 0}, "batch-size"),
        ({"frames": 0}, "frames"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_wrong_option_is_named(folder: Path, options: dict[str, object], option: str) -> None:
    with pytest.raises(UsageError, match=f"--{option}"):
        detector(folder, **options)


@pytest.mark.parametrize("method", ["eps", "dnf"])
def test_a_student_of_rounded_features_gets_features_rounded_in_the_same_way(tmp_path: Path, method: str) -> None:
    write_adm(tmp_path / "adm.safetensors")
    images = write_images(tmp_path / "images", {"train": 6, "test": 4})
    build(tmp_path, images, "image,eps,noise", storage="int4")
    rows = evaluated(train(tmp_path, method))
    one = detector(tmp_path, method)
    found = one.predict([row["file"] for row in rows])
    np.testing.assert_allclose([p.logit for p in found], [row["logit"] for row in rows], atol=1e-6, rtol=1e-6)
    (feature,) = one.record.fingerprints.keys() - {"image"}
    made = one.maker.make(np.stack([decoded_image(one, row["file"]) for row in rows]), [""] * len(rows))[feature]
    stored = Cache.open(tmp_path / "cache").open_feature(one.record.fingerprints[feature])
    np.testing.assert_array_equal(made, gather(stored, [row["key"] for row in rows]))
    assert len(np.unique(made[0].reshape(-1, 32)[0])) <= 15
