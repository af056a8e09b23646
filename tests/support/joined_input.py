"""A student's input as one image: what the method's features are after they are joined along their channels."""

from __future__ import annotations

from typing import Any

import torch
from distil_cache.train.data import augment
from torch import Tensor


def train_input(*arguments: Any, **named: Any) -> Tensor:
    """Join what :func:`augment.train_input` makes, (B, channels, S, S)."""
    return torch.cat(list(augment.train_input(*arguments, **named).values()), dim=1)


def test_input(*arguments: Any, **named: Any) -> Tensor:
    """Join what :func:`augment.test_input` makes, (B, channels, S, S)."""
    return torch.cat(list(augment.test_input(*arguments, **named).values()), dim=1)


test_input.__test__ = False  # type: ignore[attr-defined]  # pytest must not collect it
