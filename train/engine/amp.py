"""Mixed precision of the student's forward and backward pass; weights, optimiser and loss stay in float32."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...choices import Amp
from ...errors import UsageError
from ...models.device import HALF_TYPES, device_name, is_older_than


class MixedPrecision:
    """Automatic mixed precision.

    In fp16 the loss is scaled, so that small gradients do not underflow; a step whose gradients overflow is skipped.

    Parameters
    ----------
    amp
        ``off``, ``bf16`` or ``fp16``.
    device
        The device of the student.

    Raises
    ------
    UsageError
        The device has no bfloat16.
    """

    def __init__(self, amp: Amp, device: torch.device) -> None:
        if is_older_than(amp, device):
            raise UsageError(
                f"--amp {amp}: {device_name(device)} has no bfloat16 arithmetic and would only imitate it. "
                "Use --amp fp16 or off."
            )
        self._device_type = device.type
        self._dtype = HALF_TYPES.get(amp)
        self._scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def forward(self) -> AbstractContextManager[object]:
        """Return the context of the forward pass."""
        return torch.autocast(self._device_type, self._dtype, enabled=self._dtype is not None)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of a loss."""
        self._scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimiser: Optimizer, student: nn.Module, clip_grad: float | None) -> None:
        """Clip the gradients to the global norm ``clip_grad`` if given, update the weights, and reset the gradients."""
        if clip_grad is not None:
            self._scaler.unscale_(optimiser)
            nn.utils.clip_grad_norm_(student.parameters(), clip_grad)
        self._scaler.step(optimiser)
        self._scaler.update()
        optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Return the state of the loss scale, for a checkpoint."""
        return dict(self._scaler.state_dict())

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state of `state`."""
        if state:
            self._scaler.load_state_dict(state)
