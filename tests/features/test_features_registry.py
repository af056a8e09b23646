"""What follows from the specs alone: inputs, order, settings, layouts, and which pass makes what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from distil_cache.cache.records.about import Layout
from distil_cache.cache.spec import Spec
from distil_cache.errors import UserError
from distil_cache.features.adm import AdmIdentity
from distil_cache.features.contract import Feature
from distil_cache.features.registry import (
    BUILT_IN,
    FEATURES,
    in_order,
    layout_of,
    make_specs,
    producers_of,
    walk_of,
    with_inputs,
)
from distil_cache.images.spec import ImageSpec
from distil_cache.models.backbones import BackboneSource, build_backbone
from distil_cache.models.diffusion.unet import Adm
from pydantic import ValidationError
from small_models import CONFIG, SIDE

POOLED = BackboneSource("small", pooled=True)
EMBEDDING = POOLED.fields("0" * 64)
WITHOUT_AUTOENCODER = tuple(name for name in FEATURES if not name.startswith("vae"))
TRAIN, TEST = frozenset({"train"}), frozenset({"test"})


def specs(wanted: tuple[str, ...] = WITHOUT_AUTOENCODER, **changes: Any) -> dict[str, Spec]:
    settings = {"steps": "ddim4", "backbone": "small", "weights": "0" * 64, "preset": "paper", **changes}
    adm = AdmIdentity.of("0" * 64, CONFIG)
    return make_specs(wanted, {"adm": adm, **settings}, {"image": ImageSpec(size=SIDE)}, {"embedding": EMBEDDING})


class Later(Feature[Any]):
    """A feature made of another, which need not be known when it is listed."""

    def __init__(self, name: str, *inputs: str) -> None:
        self.name, self.inputs = name, dict(zip(inputs, inputs, strict=True))  # type: ignore[misc]

    def layout(self, spec: Any) -> Layout:
        raise NotImplementedError


def test_a_feature_comes_after_those_that_it_is_made_of_whatever_the_order_of_the_list() -> None:
    assert list(in_order([Later("c", "b"), Later("b", "a"), Later("a")])) == ["a", "b", "c"]
    assert next(iter(in_order(reversed(BUILT_IN)))) == "image"
    assert list(FEATURES) == [
        "image",
        "eps",
        "recon",
        "dire",
        "noise",
        "stepwise",
        "trajectory",
        "embedding",
        "vae",
        "bands",
        "teacher",
        "vae_error",
    ]


def test_a_wanted_feature_brings_along_what_it_is_made_of_for_its_splits_alone() -> None:
    assert with_inputs({"teacher": TRAIN, "eps": TEST}) == {
        "image": TRAIN | TEST, "eps": TEST, "dire": TRAIN, "teacher": TRAIN,
    }  # fmt: skip
    assert with_inputs({}) == {}


def test_a_feature_that_does_not_say_so_is_built_on_request_alone() -> None:
    assert Later("a").built == FEATURES["noise"].built == FEATURES["recon"].built == "on request"


def test_what_a_field_names_with_one_possible_value_is_no_setting() -> None:
    assert FEATURES["teacher"].inputs == {"dire": "dire"}
    assert {"backbone", "weights", "precision"} <= FEATURES["teacher"].settings
    assert not {"dire", "feature", "algorithm", "filter", "storage"} & FEATURES["teacher"].settings
    assert specs(storage="int8")["teacher"].canonical()["storage"] == "float16"


def test_a_spec_without_a_setting_that_it_needs_is_refused() -> None:
    with pytest.raises(ValidationError, match="adm"):
        make_specs(["eps"], {}, {"image": ImageSpec(size=SIDE)})


@pytest.mark.parametrize("storage", ["float16", "float32", "int8"])
def test_rows_are_what_the_layout_says(storage: str) -> None:
    torch.manual_seed(0)
    made = specs(storage=storage)
    rows = {"image": torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)}
    for producer in producers_of(made):
        networks = {"teacher": build_backbone("small").eval(), "embedding": POOLED.build(), "bands": None}
        network = networks.get(producer.unit, Adm(CONFIG).eval())
        wanted = list(producer.specs)
        queued = producer.queue(network, rows, ["0" * 32] * 2, wanted, producer.route(frozenset(wanted)))
        rows |= {name: torch.from_numpy(x) for name, x in producer.checked(
            ["0" * 32] * 2, {name: value.numpy() for name, value in queued.items()}
        ).items()}  # fmt: skip
    assert list(rows) == list(WITHOUT_AUTOENCODER)
    for name, values in rows.items():
        layout = layout_of(made[name])
        assert (tuple(values.shape[1:]), values.dtype) == (layout.shape, getattr(torch, layout.dtype))


def test_a_row_takes_the_bytes_of_its_numbers_and_less_if_it_is_packed() -> None:
    pixels = 3 * SIDE**2
    sizes = {name: layout_of(specs(storage=name)["eps"]).bytes for name in ("float32", "float16", "int8", "int4")}
    assert (sizes["float32"], sizes["float16"]) == (4 * pixels, 2 * pixels)
    assert pixels / 2 < sizes["int4"] < sizes["int8"] < 1.1 * pixels
    assert layout_of(specs()["dire"]).bytes == layout_of(specs()["image"]).bytes == pixels


def test_one_pass_cannot_make_features_that_differ_in_what_it_has_once() -> None:
    mixed = {"eps": specs()["eps"], "dire": specs(clip=False)["dire"]}
    with pytest.raises(UserError, match="eps, dire: differ in image, model, steps, calls, clipping or precision"):
        walk_of(mixed)
    with pytest.raises(UserError, match="dire, noise: differ in image, model, steps"):
        walk_of({"dire": specs()["dire"], "noise": specs(steps="ddim2")["noise"]})
    assert walk_of({"image": specs()["image"]}) is None
