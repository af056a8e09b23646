"""Check that a feature keeps what a cache relies on: its rows are what it says, and change with its spec alone.

    def test_strips_conform(tmp_path):
        check_feature("strips", Path(__file__).parent / "strips.json")

The golden file holds the values of a few rows by fingerprint. Arithmetic that is changed under the same fingerprint
would mix two features in one folder of every cache, so it fails here until ``algorithm`` is raised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..cache.records.about import BOTH_VIEWS, OVER_IMAGE, About
from ..cache.spec import Spec
from ..features.adm import AdmIdentity
from ..features.contract import Producer
from ..features.registry import about_of, layout_of, make_specs, producers_of
from ..features.walk import Walk
from ..images.spec import ImageSpec
from ..models.diffusion.checkpoints import find_adm, load_adm

IMAGES = 3
VALUES = 64
"""Most values of a row that a golden file keeps."""
TOLERANCE = 1e-4
"""By how much values may differ from golden ones, as a share of the largest: machines and libraries round differently."""
_ADM = "demo"
_STEPS = "ddim4"

Rows = NDArray[Any]


def check_feature(
    name: str, golden: Path, settings: Mapping[str, object] | None = None, *, tolerance: float = TOLERANCE
) -> None:
    """Compute a feature of random inputs, on the CPU, and check its rows.

    Parameters
    ----------
    name
        The feature, as its entry point names it.
    golden
        JSON file with golden rows. What it has no rows of yet is added, and has to be committed.
    settings
        Fields of the feature's spec.
    tolerance
        By how much values may differ from the golden ones, as a share of the largest of these.

    Raises
    ------
    AssertionError
        With what is wrong, a sentence.
    UserError
        If the feature cannot be loaded.
    """
    spec, producer, inputs = _prepared(name, settings or {})
    rows = _rows(producer, inputs)
    about = about_of(spec)
    _check_layout(name, rows, about)
    again = _rows(producer, inputs)
    assert np.array_equal(rows, again), (
        f"{name}: gives other rows for the same inputs. Draw random numbers from a seed that is a field of the spec."
    )
    others = {feature: np.concatenate([values[:1], values[:0:-1]]) for feature, values in inputs.items()}
    assert np.array_equal(rows[0], _rows(producer, others)[0]), (
        f"{name}: the row of an image depends on the other images of its batch."
    )
    _check_views(name, rows, producer, inputs, about)
    _check_golden(name, rows, spec, golden, tolerance)


def _prepared(name: str, settings: Mapping[str, object]) -> tuple[Spec, Producer, dict[str, Rows]]:
    """Return the spec of a feature of small images, what makes it, and rows for it to read, drawn at random."""
    found = find_adm(_ADM)
    of_walk = {"adm": AdmIdentity.of(found.digest, found.config), "steps": _STEPS}
    image = ImageSpec(size=found.config.image_size)
    spec = make_specs([name], {**of_walk, **settings}, {"image": image})[name]
    (producer,) = producers_of({name: spec})
    draw = np.random.default_rng(0)
    inputs: dict[str, Rows] = {}
    for feature in producer.reads:
        layout = layout_of(_nested(spec, feature))
        shape = (IMAGES, *layout.shape)
        drawn = draw.integers(0, 256, shape) if layout.dtype == "uint8" else draw.normal(size=shape)
        inputs[feature] = drawn.astype(layout.dtype)
    return spec, producer, inputs


def _nested(spec: Spec, feature: str) -> Spec:
    parts = (getattr(spec, field) for field in type(spec).model_fields)
    return next(part for part in parts if isinstance(part, Spec) and part.feature == feature)


def _rows(producer: Producer, inputs: Mapping[str, Rows]) -> Rows:
    """Return the rows of the one feature that a producer makes, as they are stored."""
    (name,) = producer.specs
    keys = [f"{number:032x}" for number in range(IMAGES)]
    network = load_adm(_ADM).model if isinstance(producer, Walk) else None
    read = {feature: torch.from_numpy(np.ascontiguousarray(rows)) for feature, rows in inputs.items()}
    with torch.inference_mode():
        queued = producer.queue_all(network, read, keys)
    return producer.checked(keys, {feature: rows.numpy() for feature, rows in queued.items()})[name]


def _check_layout(name: str, rows: Rows, about: About) -> None:
    layout = about.layout
    fault = layout.fault(rows.shape[1:], rows.dtype.name)
    assert len(rows) == IMAGES, f"{name}: gives {len(rows)} rows for {IMAGES} images."
    assert not fault, f"{name}: gives {fault.replace('about.json', 'its layout')}."
    assert np.isfinite(rows).all(), f"{name}: gives values that are no finite numbers."
    if layout.geometry in OVER_IMAGE:
        square = len(layout.shape) == 3 and layout.shape[1] == layout.shape[2]
        assert square, f"{name}: rows of geometry {layout.geometry} have the shape (C, S, S), not {layout.shape}."
    assert not layout.views or layout.shape[0] == len(layout.views), (
        f"{name}: has {len(layout.views)} views, and the first axis of its rows {layout.shape[0]} entries."
    )


def _check_views(name: str, rows: Rows, producer: Producer, inputs: Mapping[str, Rows], about: About) -> None:
    """Check that the view of the mirrored image is the plain view of an image that is mirrored."""
    views = about.layout.views
    if not set(views) >= BOTH_VIEWS or any(values.ndim != 4 for values in inputs.values()):
        return
    mirrored = _rows(producer, {feature: values[..., ::-1] for feature, values in inputs.items()})
    plain, flipped = views.index("identity"), views.index("hflip")
    assert np.allclose(rows[:, flipped], mirrored[:, plain], rtol=1e-3, atol=1e-5), (
        f"{name}: its view hflip is not what it gives for the mirrored image."
    )


def _check_golden(name: str, rows: Rows, spec: Spec, golden: Path, tolerance: float) -> None:
    known = json.loads(golden.read_text("utf-8")) if golden.exists() else {}
    values = rows.reshape(len(rows), -1)[:, :VALUES].astype(np.float64)
    fingerprint = spec.fingerprint()
    if fingerprint not in known:
        known[fingerprint] = {"spec": spec.canonical(), "rows": [[float(f"{x:.6g}") for x in row] for row in values]}
        golden.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")
        return
    expected = np.asarray(known[fingerprint]["rows"], np.float64)
    bound = tolerance * max(1e-12, float(np.abs(expected).max(initial=0)))
    same = expected.shape == values.shape and bool((np.abs(values - expected) <= bound).all())
    assert same, (
        f"{name}: gives other values than {golden.name} has for the same spec. If that is meant, raise `algorithm` in the "
        "spec: rows of both would have one fingerprint, and no cache could tell them apart."
    )
