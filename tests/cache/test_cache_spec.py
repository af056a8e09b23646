"""Specs and fingerprints: pinned values, and what does and does not change them."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from distil_cache.cache.spec import Spec, SpecPart
from pydantic import Field, ValidationError


class Picture(Spec):
    feature: Literal["picture"] = "picture"
    algorithm: Literal[1] = 1
    size: int = 64
    filter: str = "bilinear"


class Network(SpecPart):
    weights: str
    flags: dict[str, str | int | float | bool] = Field(default_factory=dict)


class Noise(Spec):
    feature: Literal["noise"] = "noise"
    algorithm: Literal[2] = 2
    picture: Picture
    network: Network
    scale: float = 1.0
    views: tuple[str, ...] = ("identity", "hflip")


class LaterPicture(Picture):
    ADDED: ClassVar[frozenset[str]] = frozenset({"gamma"})
    gamma: float | None = None


def noise(**changes: object) -> Noise:
    settings: dict[str, object] = {
        "picture": Picture(),
        "network": Network(weights="ab" * 32, flags={"image_size": 64, "learn_sigma": True}),
    }
    return Noise.model_validate(settings | changes)


def test_fingerprints_are_the_pinned_ones() -> None:
    assert Picture().fingerprint() == "0b1b27f2d9a778836a6ec438993ca0c7771cf8078c12b095640c9d4dfc6eb67f"
    assert (
        Picture(size=256, filter="bicubic").fingerprint()
        == "f78b83611cd8a3fa3073cb06c85666cf9230fdc267198cc38ced1bb33ec7a529"
    )
    assert noise().fingerprint() == "2ac1eda1a5f120a68461cf9fac6a945d9a65b1281fe86ff08c3da891de33f7cb"


def test_folder_is_the_feature_and_the_start_of_the_fingerprint() -> None:
    assert Picture().folder == "picture-" + Picture().fingerprint()[:16]


def test_added_field_at_its_default_leaves_the_fingerprint_alone_and_any_other_value_changes_it() -> None:
    assert LaterPicture().fingerprint() == Picture().fingerprint()
    assert LaterPicture(gamma=2.2).fingerprint() != Picture().fingerprint()


def test_added_field_is_left_out_inside_a_nested_spec_too() -> None:
    assert noise(picture=LaterPicture()).fingerprint() == noise().fingerprint()


def test_an_integer_and_the_same_float_are_one_value() -> None:
    assert noise(scale=1).fingerprint() == noise(scale=1.0).fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 0.5},
        {"views": ("identity",)},
        {"views": ("hflip", "identity")},
        {"picture": Picture(size=65)},
        {"network": Network(weights="cd" * 32)},
    ],
)
def test_every_setting_changes_the_fingerprint(changes: dict[str, object]) -> None:
    assert noise(**changes).fingerprint() != noise().fingerprint()


def test_the_order_of_a_mapping_does_not_matter() -> None:
    turned = Network(weights="ab" * 32, flags={"learn_sigma": True, "image_size": 64})
    assert noise(network=turned).fingerprint() == noise().fingerprint()


@pytest.mark.parametrize("wrong", [{"size": "big"}, {"sise": 64}, {"algorithm": 2}])
def test_a_wrong_setting_is_refused_by_name(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Picture.model_validate(wrong)


def test_nan_is_refused() -> None:
    with pytest.raises(ValidationError, match="scale"):
        noise(scale=float("nan"))
