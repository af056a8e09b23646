"""Builds as an earlier version made them: images of algorithm 1, some of which it decoded to other pixels."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from distil_cache.cache.spec import Spec
from distil_cache.features.registry import with_image_algorithm
from distil_cache.images.file import content_key
from distil_cache.pipeline.execution import load
from distil_cache.pipeline.planning import prepare


@contextmanager
def earlier_version(otherwise: Collection[str] = ()) -> Iterator[None]:
    """Within it, builds in this process make features of images of algorithm 1.

    otherwise : keys of images whose pixels were others then.
    """
    make_specs, decode = prepare.specs_of_build, load.decode

    def specs_then(*arguments: Any) -> dict[str, Spec]:
        return {feature: with_image_algorithm(spec, 1) for feature, spec in make_specs(*arguments).items()}

    def decode_then(data: bytes, *arguments: Any) -> np.ndarray:
        pixels = decode(data, *arguments)
        return 255 - pixels if content_key(data) in otherwise else pixels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "specs_of_build", specs_then)
        patch.setattr(load, "decode", decode_then)
        yield
