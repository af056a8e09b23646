"""The teacher's features: what the numbers of a spec do to a DIRE image, and what the presets' numbers are."""

from __future__ import annotations

import pytest
import torch
from distil_cache.errors import IntegrityError
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.builtin.dire import DireSpec
from distil_cache.features.builtin.teacher import Teacher, TeacherSpec, default_train_size, normalisation, teacher_views
from distil_cache.images.spec import ImageSpec
from distil_cache.models.backbones import build_backbone, resize
from distil_cache.models.diffusion.unet import AdmConfig
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TV

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def a_spec(**changes: object) -> TeacherSpec:
    adm = AdmIdentity.of("1" * 64, AdmConfig(image_size=32, num_channels=32, channel_mult="1,2"))
    settings = {
        "dire": DireSpec(image=ImageSpec(size=32), adm=adm),
        "backbone": "resnet50",
        "weights": "0" * 64,
        "size": 28,
        "mean": MEAN,
        "std": STD,
    }
    return TeacherSpec(**{**settings, **changes})


@pytest.fixture(scope="module")
def backbone() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet50").eval().requires_grad_(False)


@pytest.fixture(scope="module")
def dire() -> Tensor:
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class Looking(nn.Module):
    """Returns what it sees."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_features_of_both_views_in_order_as_float16(backbone: nn.Module, dire: Tensor) -> None:
    spec = a_spec(size=56)
    features = teacher_views(backbone, dire, spec)
    assert (features.shape, features.dtype) == ((2, 2, 2048, 2, 2), torch.float16)
    images = TV.resize(dire.float() / 255, [56, 56], antialias=True)
    for index, view in enumerate((images, TV.horizontal_flip(images))):
        expected = backbone(TV.normalize(view, list(MEAN), list(STD)))
        torch.testing.assert_close(features[:, index].float(), expected, rtol=1e-3, atol=1e-3)


def test_the_flipped_view_is_not_the_flipped_map(backbone: nn.Module, dire: Tensor) -> None:
    identity, flipped = teacher_views(backbone, dire, a_spec(size=64)).unbind(1)
    assert not torch.allclose(identity.flip(-1), flipped, rtol=0.01, atol=0.01)


def test_views_are_those_of_the_spec_in_its_order(dire: Tensor) -> None:
    both = teacher_views(Looking(), dire, a_spec())
    assert torch.equal(teacher_views(Looking(), dire, a_spec(views=("hflip",))), both[:, 1:])
    assert torch.equal(teacher_views(Looking(), dire, a_spec(views=("hflip", "identity"))), both.flip(1))


def test_official_code_sees_dire_from_minus_one_to_one_at_its_own_size(dire: Tensor) -> None:
    mean, std = normalisation("resnet50", "official-code")
    seen = teacher_views(Looking(), dire, a_spec(size=64, mean=mean, std=std, views=("identity",)))[:, 0]
    torch.testing.assert_close(seen.float(), dire.float() / 127.5 - 1, rtol=1e-3, atol=1e-3)


def test_paper_sees_dire_normalised_as_the_backbones_weights_expect() -> None:
    assert normalisation("resnet50", "paper") == (MEAN, STD)
    assert normalisation("efficientnet_lite0", "paper") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_images_of_the_right_size_are_not_resampled() -> None:
    images = torch.rand(1, 3, 28, 28)
    assert resize(images, 28) is images


@pytest.mark.parametrize(("image", "paper"), [(256, 224), (512, 448), (64, 56), (32, 28), (96, 84), (20, 18)])
def test_train_size_is_seven_eighths_in_the_paper_and_all_in_the_code(image: int, paper: int) -> None:
    assert default_train_size(image, "paper") == paper
    assert default_train_size(image, "official-code") == image


def test_a_feature_that_float16_cannot_hold_is_refused(dire: Tensor) -> None:
    with pytest.raises(IntegrityError, match="teacher resnet50: a feature is not a finite float16 number"):
        Teacher().check(teacher_views(Looking(), dire, a_spec(std=(1e-9, 1.0, 1.0))).numpy(), a_spec())


def test_bf16_stays_near_float32(backbone: nn.Module, dire: Tensor) -> None:
    exact, near = (teacher_views(backbone, dire[:1], a_spec(size=32, precision=p)).float() for p in ("fp32", "bf16"))
    assert 0 < (exact - near).norm() / exact.norm() < 0.05


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "efficientnet_lite0"},
        {"weights": "2" * 64},
        {"size": 32},
        {"std": (0.5, 0.5, 0.5)},
        {"views": ("identity",)},
        {"precision": "bf16"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_setting_is_in_the_fingerprint_and_none_of_dires(change: dict[str, object]) -> None:
    changed = a_spec(**change)
    assert changed.fingerprint() != a_spec().fingerprint()
    assert changed.dire.fingerprint() == a_spec().dire.fingerprint()


def test_a_spec_read_back_from_its_json_has_the_same_fingerprint() -> None:
    assert TeacherSpec.model_validate(a_spec().canonical()).fingerprint() == a_spec().fingerprint()


@pytest.mark.parametrize(
    "change",
    [{"weights": "short"}, {"size": 0}, {"std": (0.0, 1.0, 1.0)}, {"views": ()}, {"views": ("vflip",)}],
    ids=str,
)
def test_a_wrong_setting_is_refused_with_its_name(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(change))):
        a_spec(**change)
