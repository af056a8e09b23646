"""The demo's images: their content, their folders, and that file metadata does not give the label away."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from distil_cache.demo.controls import file_metadata, image_statistics, metadata_auc, read_pixels
from distil_cache.demo.dataset import BLURRED, DIRE, HELD_OUT, MAIN, SAMPLES, SEEN, encode, make_images
from distil_cache.demo.generate import Generator, noise_of
from distil_cache.demo.recipe import MANIFEST, Manifest, Recipe, read_manifest
from distil_cache.demo.scenes import SCENES, crops_of
from distil_cache.demo.spectrum import cosine_transform, filtered_like, ring_energy
from distil_cache.errors import UserError
from distil_cache.progress import Silent

pytest.importorskip("skimage")

RECIPE = Recipe(train_crops=3, test_crops=2, dire_crops=1, samples=2, dire_samples=1, strengths=(100,))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("demo") / "images"
    manifest, new = make_images(folder, RECIPE, Silent())
    assert new
    return folder, manifest


def test_no_scene_is_in_both_splits(made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    scenes = {split: {r.scene for r in manifest.images if r.split == split} - {None} for split in ("train", "test")}
    assert not scenes["train"] & scenes["test"]
    assert scenes["train"] | scenes["test"] == {scene.name for scene in SCENES}


def test_both_motorcycle_photographs_are_one_scene() -> None:
    crops = crops_of(next(scene for scene in SCENES if scene.name == "motorcycle"), 20, 0)
    assert {crop.photograph for crop in crops} == {"data/motorcycle_left.png", "data/motorcycle_right.png"}


def test_crops_follow_from_the_seed_and_come_from_windows_of_128_pixels_or_more() -> None:
    for scene in SCENES:
        first, again, other = (crops_of(scene, 4, seed) for seed in (0, 0, 1))
        assert [crop.window for crop in first] == [crop.window for crop in again]
        assert [crop.window for crop in first] != [crop.window for crop in other]
        assert all(crop.window[2] >= 128 and crop.pixels.shape == (3, 32, 32) for crop in first)


def test_the_manifest_names_every_file_with_its_content(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.png")}
    assert files.keys() == {record.path for record in manifest.images}
    assert len(files) == len(manifest.images)
    for record in manifest.images:
        assert record.key == hashlib.sha256(files[record.path].read_bytes()).hexdigest()[:32]
        assert (record.kind in ("twin", "sample")) == (record.label == 1) == (record.adm is not None)
        assert (record.strength is not None) == (record.kind == "twin")
    assert read_manifest(folder) == manifest


def test_every_test_set_has_the_same_reals_and_as_many_fakes(made: tuple[Path, Manifest]) -> None:
    _, manifest = made
    sets: dict[tuple[str, int], list[str]] = {}
    for record in manifest.of(MAIN, "test"):
        sets.setdefault((record.generator, record.label), []).append(record.key)
    assert {name for name, _ in sets} == {SEEN, HELD_OUT, SAMPLES}
    assert sets[SEEN, 0] == sets[HELD_OUT, 0] == sets[SAMPLES, 0]
    assert len(sets[SEEN, 0]) == len(sets[SEEN, 1]) == len(sets[HELD_OUT, 1]) == 8
    assert {r.generator for r in manifest.of(MAIN, "train")} == {SEEN}
    assert [r.key for r in manifest.of(BLURRED, kind="twin")] == sets[SEEN, 1]
    assert {r.kind for r in manifest.of(DIRE)} == {"real", "blurred", "twin", "sample"}


def test_twins_show_their_reals_but_are_not_copies(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    reals = {record.pair: record for record in manifest.of(MAIN, "train", "real")}
    twins = manifest.of(MAIN, "train", "twin")
    pixels = read_pixels(folder, [reals[twin.pair] for twin in twins]), read_pixels(folder, twins)
    for real, twin in zip(*pixels, strict=True):
        assert np.corrcoef(real.ravel(), twin.ravel())[0, 1] > 0.8
        assert (real != twin).mean() > 0.1


def test_all_files_have_one_size_and_metadata_is_at_chance(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    assert len({file_metadata(folder / record.path) for record in manifest.images}) == 1
    assert metadata_auc(folder, manifest.of(MAIN, "train")) == 0.5


def test_smooth_and_noisy_images_are_files_of_the_same_size() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    assert len(encode(noise)) == len(encode(np.zeros_like(noise)))


def test_images_that_exist_are_not_written_again(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    again, new = make_images(folder, RECIPE, Silent())
    assert (again, new) == (manifest, False)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_what_an_interrupted_run_left_is_replaced_and_the_images_are_the_same(
    made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    folder, manifest = made
    shutil.copytree(folder, tmp_path / "images.partial")
    (tmp_path / "images.partial" / MANIFEST).unlink()
    torch.manual_seed(99)  # the global generator has no influence
    again, new = make_images(tmp_path / "images", RECIPE, Silent())
    assert new
    assert again == manifest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images"]


def test_a_folder_of_another_recipe_is_refused(made: tuple[Path, Manifest]) -> None:
    folder, _ = made
    with pytest.raises(UserError, match="other settings or weights"):
        make_images(folder, RECIPE.model_copy(update={"seed": 1}), Silent())


def test_a_strength_that_no_step_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="strength 123 is not among the schedule's timesteps 0, 50"):
        make_images(tmp_path / "images", RECIPE.model_copy(update={"strengths": (123,)}), Silent())
    assert not (tmp_path / "images").exists()


def test_a_filtered_image_has_the_other_ones_spectrum_and_its_own_mean() -> None:
    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.normal(0, 6, (3, 32, 32)), axis=2)
    image = np.clip(128 + steps, 0, 255).astype(np.uint8)
    smooth = ((image.astype(int) + np.roll(image, 1, 1) + np.roll(image, 1, 2)) // 3).astype(np.uint8)
    filtered = filtered_like(image, smooth)
    wanted, found = (ring_energy(cosine_transform(image))[1:16] for image in (smooth, filtered))
    np.testing.assert_allclose(found, wanted, rtol=0.05)
    assert abs(filtered.mean() - image.mean()) < 1
    assert image_statistics(filtered[None])[0, 0] < image_statistics(image[None])[0, 0]


def test_the_noise_of_an_image_has_no_mean_and_unit_scale_in_each_channel_and_follows_from_its_name() -> None:
    noise = noise_of("demo 0 sample-001")
    assert noise.mean((1, 2)).abs().max() < 1e-6
    assert (noise.std((1, 2)) - 1).abs().max() < 1e-6
    assert noise.equal(noise_of("demo 0 sample-001"))
    assert not noise.equal(noise_of("demo 0 sample-002"))


def test_a_sample_takes_the_mean_colour_that_it_is_given() -> None:
    colours = np.array([[0.5, -0.3, 0.0], [-0.4, 0.2, 0.3]], np.float32)
    images = Generator("demo-b", "ddim10", Silent()).samples(["a", "b"], colours)
    means = images.mean((2, 3)) / 127.5 - 1
    assert np.abs(means - colours).max() < 0.2
    assert np.corrcoef(means.ravel(), colours.ravel())[0, 1] > 0.95
