"""Augmentation: its effect on every feature is known, and it depends on (seed, epoch, row) alone."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from distil_cache.errors import UsageError
from distil_cache.models.backbones import IMAGENET_MEAN, IMAGENET_STD
from distil_cache.train.data.augment import (
    VALIDATION,
    Degrader,
    MixDraws,
    check_augmentations,
    cutmix,
    gaussian_blur,
    mix_draws,
    sample_draws,
)
from distil_cache.train.data.dataset import Batch
from distil_cache.train.data.examples import ExampleBuilder
from distil_cache.train.methods.method import Degradation, Method, MethodDefaults
from distil_cache.train.methods.registry import METHODS, find_method
from joined_input import test_input, train_input
from PIL import Image
from torch import Tensor

ROWS = np.arange(400)


def random_images(count: int, side: int = 32, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )


def jpeg(image: Tensor, quality: int) -> Tensor:
    stream = io.BytesIO()
    Image.fromarray(image.numpy().transpose(1, 2, 0)).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
    return torch.from_numpy(np.asarray(Image.open(stream)).transpose(2, 0, 1).copy())


def coordinates(count: int, side: int) -> Tensor:
    """Images whose channels contain the row, the column and zero of each pixel."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return torch.stack([y, x, torch.zeros_like(x)]).float().expand(count, 3, side, side).contiguous()


def cropping(**changes: object) -> Method:
    """A method that crops eps and nothing else, so that values can be followed."""
    settings = {"scales": {"eps": "stored"}, "window": "random-crop", "defaults": MethodDefaults(epochs=1)}
    return Method("test", **(settings | changes))  # type: ignore[arg-type]


def test_what_is_drawn_depends_on_seed_epoch_and_row_alone() -> None:
    together = sample_draws(3, 2, ROWS)
    alone = sample_draws(3, 2, ROWS[17:18])
    assert [float(column[17]) for column in together] == [float(column[0]) for column in alone]
    for other in (sample_draws(4, 2, ROWS), sample_draws(3, 3, ROWS)):
        assert not np.any(other.top == together.top)
    assert len(np.unique(np.concatenate(together))) == 6 * len(ROWS)
    assert all(abs(column.mean() - 0.5) < 0.06 for column in together)


def test_the_order_of_rows_and_their_augmentation_share_no_random_numbers() -> None:
    assert np.random.default_rng([5, 1]).random() not in sample_draws(5, 1, np.array([0]))
    assert mix_draws(5, 1, 0).mix not in sample_draws(5, 1, np.array([0]))


def test_a_random_crop_is_a_square_of_the_image_at_any_position_and_the_same_for_all_features() -> None:
    flip = torch.zeros(len(ROWS), dtype=torch.bool)
    both = cropping(scales={"eps": "stored", "noise": "stored"})
    features = {"eps": coordinates(len(ROWS), 32), "noise": coordinates(len(ROWS), 32) + 100}
    x = train_input(features, flip, both, 28, sample_draws(0, 1, ROWS))
    assert x.shape == (len(ROWS), 6, 28, 28)
    top, left = x[:, 0, 0, 0].long(), x[:, 1, 0, 0].long()
    assert torch.equal(x[:, 0], top[:, None, None] + torch.arange(28.0)[None, :, None].expand(len(ROWS), 28, 28))
    assert torch.equal(x[:, 1], left[:, None, None] + torch.arange(28.0)[None, None, :].expand(len(ROWS), 28, 28))
    assert torch.equal(x[:, 3:], x[:, :3] + 100)
    assert set(zip(top.tolist(), left.tolist(), strict=True)) == {(y, z) for y in range(5) for z in range(5)}


def test_a_crop_is_mirrored_after_it_is_cut() -> None:
    features = {"eps": coordinates(20, 32)}
    plain = train_input(features, torch.zeros(20, dtype=torch.bool), cropping(), 28, sample_draws(0, 1, ROWS[:20]))
    turned = train_input(features, torch.ones(20, dtype=torch.bool), cropping(), 28, sample_draws(0, 1, ROWS[:20]))
    assert torch.equal(turned, plain.flip(-1))
    never = cropping(flips=False)
    assert torch.equal(
        train_input(features, torch.ones(20, dtype=torch.bool), never, 28, sample_draws(0, 1, ROWS[:20])), plain
    )


def test_dire_sees_a_crop_normalised_like_a_photograph() -> None:
    dire = random_images(4)
    drawn = sample_draws(0, 1, ROWS[:4])
    x = train_input({"dire": dire}, torch.zeros(4, dtype=torch.bool), METHODS["dire"], 28, drawn)
    for index in range(4):
        top, left = int(drawn.top[index] * 5), int(drawn.left[index] * 5)
        window = dire[index, :, top : top + 28, left : left + 28].float() / 255
        expected = (window - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
        torch.testing.assert_close(x[index], expected)


def test_dnf_sees_the_whole_noise_as_it_is_stored() -> None:
    noise = torch.randn(2, 3, 32, 32).half()
    method = METHODS["dnf"]
    x = train_input({"noise": noise}, torch.tensor([False, True]), method, method.side(32, 28))
    assert torch.equal(x, torch.stack([noise[0], noise[1].flip(-1)]).float())


def test_official_code_scales_the_image_to_minus_one_to_one_and_mirrors_nothing() -> None:
    method = find_method("distildire", "official-code")
    image, eps = random_images(2), torch.randn(2, 3, 32, 32).half()
    x = train_input({"image": image, "eps": eps}, torch.ones(2, dtype=torch.bool), method, method.side(32, 28))
    torch.testing.assert_close(x[:, :3], image.float() / 127.5 - 1)
    assert torch.equal(x[:, 3:], eps.float())


def test_cutmix_pastes_the_first_sample_into_all_features_and_mixes_the_labels() -> None:
    features = {"image": random_images(5), "eps": torch.randn(5, 3, 32, 32).half(), "dire": random_images(5, seed=1)}
    label = torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0])
    found, labels = cutmix(features, label, MixDraws(mix=0.0, keep=0.75, top=0.25, left=0.9))
    # The square has sqrt(1 - 0.75) = half the side, 16 pixels, from (8, 28) on: four columns are left of it.
    for name, x in features.items():
        expected = x.clone()
        expected[:, :, 8:24, 28:32] = x[0, :, 8:24, 28:32]
        assert torch.equal(found[name], expected)
        assert torch.equal(found[name][0], x[0])
    torch.testing.assert_close(labels, torch.tensor([1.0, 0.25, 1.0, 0.25, 0.25]))


def test_cutmix_labels_count_more_than_was_pasted_as_in_the_published_code() -> None:
    pasted, weight = [], []
    blank = torch.stack([torch.ones(1, 64, 64), torch.zeros(1, 64, 64)])
    for row in range(1500):
        drawn = mix_draws(0, 1, row)
        found, label = cutmix({"image": blank}, torch.tensor([1.0, 0.0]), drawn)
        pasted.append(float(found["image"][1].mean()))
        weight.append(float(label[1]))
    assert np.mean(pasted) == pytest.approx(0.18, abs=0.015)
    assert np.mean(weight) == pytest.approx(0.5, abs=0.02)


def test_half_of_the_batches_are_mixed_under_official_code_and_the_cached_batch_is_left_as_it_is() -> None:
    method = find_method("distildire", "official-code")
    prepare = ExampleBuilder(method, 16, seed=0, online=None, geometry={})
    image = random_images(3, 16)
    mixes = 0
    for first in range(300):
        rows = np.array([first, 900, 901])
        features = {"image": image.clone(), "eps": torch.zeros(3, 3, 16, 16)}
        batch = Batch(rows, torch.tensor([1.0, 0.0, 0.0]), torch.zeros(3, dtype=torch.bool), features, 3)
        label = prepare(batch, epoch=1).label
        assert torch.equal(features["image"], image)
        mixes += not torch.equal(label, batch.label)
        assert torch.equal(label, prepare(batch, epoch=1).label)
    assert mixes == pytest.approx(150, abs=30)


def test_degradation_blurs_first_and_then_compresses_with_what_the_row_has_drawn() -> None:
    settings = Degradation(probability=0.5, blur=(0.0, 3.0), jpeg=(30, 100), adjustable=True)
    images = random_images(60)
    found = Degrader(settings, seed=7)(images, ROWS[:60], epoch=2)
    drawn = sample_draws(7, 2, ROWS[:60])
    kinds = set()
    for index in range(60):
        expected = images[index]
        if drawn.blur[index] < 0.5:
            expected = gaussian_blur(expected, 3.0 * float(drawn.sigma[index]))
        if drawn.jpeg[index] < 0.5:
            expected = jpeg(expected, 30 + int(drawn.quality[index] * 71))
        assert torch.equal(found[index], expected)
        kinds.add((bool(drawn.blur[index] < 0.5), bool(drawn.jpeg[index] < 0.5)))
    assert len(kinds) == 4
    untouched = (drawn.blur >= 0.5) & (drawn.jpeg >= 0.5)
    assert torch.equal(found[untouched], images[untouched])


def test_degradation_of_a_row_does_not_depend_on_its_batch() -> None:
    degrade = Degrader(METHODS["cnndet"].degradation, seed=0)  # type: ignore[arg-type]
    images = random_images(40)
    whole = degrade(images, ROWS[:40], epoch=1)
    parts = torch.cat([degrade(images[at : at + 1], ROWS[at : at + 1], epoch=1) for at in range(40)])
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, degrade(images, ROWS[:40], epoch=2))


@pytest.mark.parametrize("probability", [0.0, 0.1])
def test_the_probability_of_degradation_is_what_was_asked(probability: float) -> None:
    settings = find_method("cnndet", aug_prob=probability).degradation
    assert settings is not None
    images = random_images(400, side=16)
    changed = (Degrader(settings, seed=1)(images, ROWS, epoch=1) != images).flatten(1).any(dim=1)
    assert float(changed.float().mean()) == pytest.approx(1 - (1 - probability) ** 2, abs=0.05 if probability else 0)


def test_official_code_compresses_every_image_with_a_quality_from_10_to_99() -> None:
    settings = find_method("distildire", "official-code").degradation
    assert settings is not None
    images = random_images(30, side=16)
    found = Degrader(settings, seed=0)(images, ROWS[:30], epoch=1)
    quality = 10 + (sample_draws(0, 1, ROWS[:30]).quality * 90).astype(int)
    assert (quality.min(), quality.max()) >= (10, 50)
    truncated = torch.where((images > 0) & (images < 64), images - 1, images)
    assert torch.equal(found, torch.stack([jpeg(x, int(q)) for x, q in zip(truncated, quality, strict=True)]))
    assert max(10 + int(u * 90) for u in (0.0, 1.0 - 1e-12)) == 99


@pytest.mark.parametrize("sigma", [0.4, 1.3, 3.0])
def test_blur_is_a_gaussian_truncated_to_8_bits_after_each_direction(sigma: float) -> None:
    image = random_images(1, side=24)[0]
    radius = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    expected = image.numpy()
    for axis in (1, 2):
        padding = [(radius, radius) if axis == dim else (0, 0) for dim in range(3)]
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(expected, padding, mode="symmetric"), len(weights), axis
        )
        expected = np.floor(windows @ (weights / weights.sum()) + 1e-9)
    kept = image.clone()
    assert np.array_equal(gaussian_blur(image, sigma).numpy(), expected)
    assert torch.equal(image, kept)
    assert torch.equal(gaussian_blur(image, 0.0), image)


def test_cnndet_validates_on_the_middle_of_each_range_with_draws_of_their_own() -> None:
    of_training = METHODS["cnndet"].degradation
    assert of_training is not None
    settings = of_training.of_validation()
    assert settings is not None
    assert (settings.blur, settings.jpeg, settings.probability) == ((1.5, 1.5), (65, 65), 0.5)
    images = random_images(60)
    found = Degrader(settings, seed=7, stream=VALIDATION)(images, ROWS[:60], epoch=2)
    drawn, in_training = sample_draws(7, 2, ROWS[:60], VALIDATION), sample_draws(7, 2, ROWS[:60])
    assert not np.array_equal(drawn.blur, in_training.blur)
    for index in range(60):
        expected = gaussian_blur(images[index], 1.5) if drawn.blur[index] < 0.5 else images[index]
        assert torch.equal(found[index], jpeg(expected, 65) if drawn.jpeg[index] < 0.5 else expected)


def test_the_published_code_of_distildire_validates_on_clean_images() -> None:
    settings = find_method("distildire", "official-code").degradation
    assert settings is not None
    assert settings.of_validation() is None


BOTH = ("identity", "hflip")


@pytest.mark.parametrize(
    ("changes", "geometry", "views", "refused"),
    [
        ({}, "image", (), ""),
        ({}, "pixels", (), ""),
        ({}, "map", (), "mirrors images, and eps is a map"),
        ({}, "vector", ("identity",), "mirrors images, and eps is a vector"),
        ({"window": "resize"}, "vector", BOTH, ""),
        ({"window": "resize", "flips": False}, "vector", (), ""),
        ({}, "map", BOTH, "crops images at random, and eps is a map"),
        ({"window": "resize", "cutmix": 0.5}, "map", BOTH, "mixes images, and eps is a map"),
        ({"cutmix": 0.5}, "pixels", (), ""),
    ],
)
def test_an_augmentation_is_refused_unless_its_effect_on_every_feature_is_known(
    changes: dict[str, object], geometry: str, views: tuple[str, ...], refused: str
) -> None:
    method = cropping(**changes)
    if not refused:
        check_augmentations(method, {"eps": geometry}, {"eps": views})  # type: ignore[dict-item]
        return
    with pytest.raises(UsageError, match=refused):
        check_augmentations(method, {"eps": geometry}, {"eps": views})  # type: ignore[dict-item]


def test_what_does_not_lie_over_the_image_is_used_whole() -> None:
    method = cropping(scales={"image": "stored", "eps": "stored"}, window="resize")
    features = {"image": random_images(3), "eps": torch.randn(3, 3, 28, 28)}
    flip = torch.tensor([True, False, True])
    trained = train_input(features, flip, method, 28, geometry={"image": "image", "eps": "map"})
    tested = test_input(features, method, 28, "crop", {"image": "image", "eps": "map"})
    assert torch.equal(trained[:, 3:], features["eps"])
    assert torch.equal(tested[:, 3:], features["eps"])
    assert torch.equal(trained[:, :3], train_input(features, flip, method, 28)[:, :3])
    assert not torch.equal(trained[:, 3:], train_input(features, flip, method, 28)[:, 3:])
