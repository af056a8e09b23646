"""The arithmetic of the student's forward and backward pass; weights, optimiser and loss stay in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...choices import Amp

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class MixedPrecision:
    """Automatic mixed precision (``off``, ``bf16``, ``fp16``).

    In fp16 the loss is scaled, so that small gradients do not vanish; a step whose gradients overflow is left out.
    """

    def __init__(self, amp: Amp, device: torch.device) -> None:
        self._kind = device.type
        self._type = _TYPES.get(amp)
        self._scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def forward(self) -> AbstractContextManager[object]:
        """Around the forward pass."""
        return torch.autocast(self._kind, self._type, enabled=self._type is not None)

    def backward(self, loss: Tensor) -> None:
        """Add a loss' gradients to the weights'."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimiser: Optimizer, student: nn.Module, longest: float | None) -> None:
        """Move the weights by gradients of at most the norm ``longest``, and forget the gradients."""
        if longest is not None:
            self._scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(student.parameters(), longest)
        self._scaler.step(optimiser)
        self._scaler.update()
        optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """What a training needs to go on: the scale of the loss."""
        return dict(self._scaler.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        """Go on with a state of ``state``."""
        if state:
            self._scaler.load_state_dict(state)
