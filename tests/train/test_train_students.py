"""Students that are no convolutional network: a linear unit, and scores by definition; and what each refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from distil_cache.errors import UserError
from distil_cache.train.methods.registry import METHODS
from distil_cache.train.students.linear import MOST_VALUES, LinearStudent
from distil_cache.train.students.pixels import PixelStudent
from distil_cache.train.students.score import ScoreStudent
from distil_cache.train.students.student import Labelled, input_shapes
from sklearn.metrics import roc_auc_score
from torch import Tensor

SHAPES = {"embedding": (6,), "dire": (3, 4, 4)}


def inputs(count: int = 5, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 3 + 2 * torch.randn(count, *shape, generator=generator) for name, shape in SHAPES.items()}


def rows(x: dict[str, Tensor], label: Tensor, batch: int = 2) -> Callable[[], Labelled]:
    def read() -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for start in range(0, len(label), batch):
            cut = slice(start, start + batch)
            yield {name: values[cut] for name, values in x.items()}, label[cut]

    return read


def test_a_linear_student_weighs_vectors_and_averages_or_every_value() -> None:
    x = inputs()
    pooled, flat = LinearStudent(SHAPES), LinearStudent(SHAPES, flat=True)
    assert (pooled.fc.in_features, flat.fc.in_features) == (6 + 3, 6 + 48)
    expected = torch.cat([x["embedding"], x["dire"].mean(dim=(2, 3))], dim=1) @ pooled.fc.weight[0] + pooled.fc.bias
    logit, features = pooled(x)
    torch.testing.assert_close(logit, expected)
    assert features is None
    joined = torch.cat([x["embedding"], x["dire"].reshape(5, 48)], dim=1)
    torch.testing.assert_close(flat(x)[0], joined @ flat.fc.weight[0] + flat.fc.bias)


def test_what_is_standardised_has_mean_0_and_deviation_1_over_the_training_rows_and_a_constant_stays_finite() -> None:
    x = inputs(64)
    x["embedding"][:, 2] = 7.0
    student = LinearStudent(SHAPES, standard=frozenset({"embedding"}))
    student.prepare(rows(x, torch.zeros(64), batch=10))
    values = x["embedding"].numpy()
    np.testing.assert_allclose(student.get_buffer("mean_embedding"), values.mean(0), rtol=1e-5)
    expected = np.where(np.arange(6) == 2, 1.0, values.std(0))
    np.testing.assert_allclose(student.get_buffer("deviation_embedding"), expected, rtol=1e-5)
    assert set(student.state_dict()) == {"mean_embedding", "deviation_embedding", "fc.weight", "fc.bias"}
    assert student(x)[0].isfinite().all()


def test_the_head_is_drawn_as_universal_fake_detect_draws_it() -> None:
    torch.manual_seed(0)
    student = LinearStudent({"embedding": (4096,)})
    assert student.initialise("none", METHODS["probe"], None) == "scratch"
    assert float(student.fc.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    with pytest.raises(UserError, match="--initial-weights imagenet: the student of method probe has no backbone"):
        student.initialise("none", METHODS["probe"], "imagenet")


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_score_keeps_the_order_of_its_number_whatever_the_classes_say(sign: float) -> None:
    x = {"dire": torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(1))}
    label = torch.tensor([0.0, 1.0] * 20)
    x["dire"][label == 1] += 0.05  # generated images have the larger numbers
    student = ScoreStudent({"dire": (3, 4, 4)}, sign)
    student.prepare(rows(x, label))
    logit = student(x)[0].detach().numpy()
    number = x["dire"].numpy().mean((1, 2, 3))
    assert np.array_equal(np.argsort(logit, kind="stable"), np.argsort(sign * number, kind="stable"))
    assert roc_auc_score(label, logit) == roc_auc_score(label, sign * number)
    assert (roc_auc_score(label, logit) > 0.5) == (sign > 0)
    middle = (number[label == 0].mean() + number[label == 1].mean()) / 2
    assert float(student.midpoint.detach()) == pytest.approx(middle, rel=1e-4)


def test_of_several_numbers_the_one_that_parts_the_classes_best_in_the_sense_of_the_definition_is_taken() -> None:
    label = torch.tensor([0.0, 1.0] * 50)
    numbers = torch.randn(100, 4, generator=torch.Generator().manual_seed(2))
    numbers[label == 1, 1] -= 2.0  # small means generated: what the definition says
    numbers[label == 1, 3] += 9.0  # parts them better, and the wrong way round
    student = ScoreStudent({"stepwise": (4,)}, -1.0)
    student.prepare(rows({"stepwise": numbers}, label))
    assert student.weight.tolist() == [0, 1, 0, 0]
    assert roc_auc_score(label, student({"stepwise": numbers})[0].detach()) > 0.85


def test_a_student_of_pixels_refuses_what_does_not_lie_over_its_images() -> None:
    method = replace(METHODS["distildire"], scales={"image": "imagenet", "bands": "stored"})
    with pytest.raises(UserError, match="takes images of one side, and the features are image 3x8x8, bands 16"):
        method.student(method, {"image": (3, 8, 8), "bands": (16,)}, "small", None)
    assert isinstance(method.student(method, {"image": (3, 8, 8), "noise": (3, 8, 8)}, "small", None), PixelStudent)


def test_a_linear_student_of_too_many_values_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(UserError, match="is too large"):
        LinearStudent({"embedding": (MOST_VALUES + 1,)})


def test_an_input_without_a_recorded_layout_has_three_channels_over_the_image() -> None:
    assert input_shapes(["eps"], {}, 28) == {"eps": (3, 28, 28)}
