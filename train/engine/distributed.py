"""One training process, or several under ``torchrun`` that share each batch.

Together they compute what one process computes on the same batch, up to the order of sums: each takes its share of
every batch, batch normalisation sees all of it, and gradients are those of the mean over all of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...errors import UsageError
from ...models.device import choose_device, keep_freed_memory
from ..data.shuffle import RankShare

_Floats = npt.NDArray[np.float32]


class ProcessGroup:
    """Process of a training, among all of them.

    Attributes
    ----------
    device
        The device of this process.
    share
        Its rank and the number of processes.
    first
        Whether this process writes files and reports progress.
    several
        Whether there are other processes.
    """

    def __init__(self, device: torch.device, share: RankShare | None = None) -> None:
        self.device = device
        self.share = share or RankShare()
        self.first = self.share.rank == 0
        self.several = self.share.ranks > 1

    def wrap(self, student: nn.Module) -> nn.Module:
        """Return the student for training steps: its gradients become the mean over the processes."""
        if not self.several:
            return student
        return DistributedDataParallel(student, device_ids=[self.device] if self.device.type == "cuda" else None)

    def normalise_together(self, student: nn.Module) -> None:
        """Let batch normalisation use the whole batch; names and weights stay the same."""
        if not self.several:
            return
        if self.device.type == "cuda":
            nn.SyncBatchNorm.convert_sync_batchnorm(student)  # type: ignore[no-untyped-call]
            return
        for module in list(student.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.BatchNorm2d):
                    setattr(module, name, JointBatchNorm.like(child))

    def share_of_loss(self, here: int, whole: int) -> float:
        """Return the factor that turns means over ``here`` samples into a mean over ``whole`` when averaged by rank."""
        return here * self.share.ranks / whole

    def part(self, model: nn.Module, *, last: bool) -> AbstractContextManager[None]:
        """Return the context of a part of a batch: gradients are exchanged only after the last part."""
        if last or not isinstance(model, DistributedDataParallel):
            return nullcontext()
        return model.no_sync()

    def sum(self, values: Tensor) -> Tensor:
        """Sum a few numbers over the processes, on their device: nothing waits for it."""
        if not self.several:
            return values
        total = values.double()
        dist.all_reduce(total)
        return total

    def joined(self, values: _Floats) -> _Floats:
        """Sum an array over the processes, such as scores where each has zeros for the rows of the others."""
        if not self.several:
            return values
        total = torch.from_numpy(values).to(self.device)
        dist.all_reduce(total)
        summed: _Floats = total.cpu().numpy()
        return summed

    def agree(self, text: str) -> bool:
        """Return whether all processes pass the same text. Every process must call this; it waits for the others."""
        if not self.several:
            return True
        digest = hashlib.sha256(text.encode()).digest()
        own = torch.tensor(list(digest), dtype=torch.uint8, device=self.device)
        received = [torch.empty_like(own) for _ in range(self.share.ranks)]
        dist.all_gather(received, own)
        return all(torch.equal(other, own) for other in received)

    def random_state(self) -> dict[str, Tensor]:
        """Return the states of torch's generators of all processes by name; every process must call this."""
        states = {"random.torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["random.cuda"] = torch.cuda.get_rng_state(self.device)
        if not self.several:
            return states
        gathered: dict[str, Tensor] = {}
        for name, state in states.items():
            received = [torch.empty_like(state, device=self.device) for _ in range(self.share.ranks)]
            dist.all_gather(received, state.to(self.device))
            gathered |= {_of_rank(name, rank): tensor.cpu() for rank, tensor in enumerate(received)}
        return gathered

    def set_random_state(self, states: dict[str, Tensor], seed: int) -> None:
        """Restore this process' generators; a process without a saved state seeds them."""
        own = {name: states.get(_of_rank(name, self.share.rank)) for name in ("random.torch", "random.cuda")}
        if own["random.torch"] is None:
            self.seed(seed)
        else:
            torch.set_rng_state(own["random.torch"])
        if own["random.cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["random.cuda"], self.device)  # by default the current device's

    def seed(self, seed: int) -> None:
        """Seed torch's generators, differently in each process."""
        torch.manual_seed(seed + (self.share.rank << 32))

    def wait(self) -> None:
        """Wait for all processes to reach this point."""
        if self.several:
            dist.barrier()

    @contextmanager
    def first_process_first(self) -> Iterator[None]:
        """Run a block in the first process, and then in all others."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


@contextmanager
def join_process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the processes started by ``torchrun``, or run as a single one.

    Parameters
    ----------
    device
        ``auto``, ``cpu`` or ``cuda:N``.

    Yields
    ------
    ProcessGroup
        This process among the others.

    Raises
    ------
    UsageError
        Several processes are assigned one GPU.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        here = choose_device(device)
        keep_freed_memory(here)
        yield ProcessGroup(here)
        return
    rank, local = int(os.environ["RANK"]), os.environ["LOCAL_RANK"]
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device}: {ranks} processes cannot share one GPU. Omit it: each takes its own.")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    here = choose_device(f"cuda:{local}" if on_gpu else "cpu")
    keep_freed_memory(here)
    if on_gpu:
        torch.cuda.set_device(here)
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield ProcessGroup(here, RankShare(rank, ranks))
    finally:
        dist.destroy_process_group()


class JointBatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the batches of all processes, where torch's own requires a GPU."""

    @classmethod
    def like(cls, layer: nn.BatchNorm2d) -> JointBatchNorm:
        """Return a replacement for a layer with the same parameters and buffers (the objects themselves)."""
        joint = cls(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        joint._parameters, joint._buffers, joint.training = layer._parameters, layer._buffers, layer.training
        return joint

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W) by mean and variance over all processes."""
        if not self.training or self.momentum is None or self.running_mean is None or self.running_var is None:
            return super().forward(x)
        values, over = x.float(), (0, 2, 3)
        count = values.new_tensor([values.numel() / self.num_features])
        sums = _sum_over_ranks(torch.cat([values.sum(over), count]))
        mean, n = sums[:-1] / sums[-1], sums[-1].detach()
        centred = values - mean[:, None, None]
        variance = _sum_over_ranks((centred * centred).sum(over)) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * n / (n - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            return (centred * (scale * self.weight)[:, None, None] + self.bias[:, None, None]).to(x.dtype)
        return (centred * scale[:, None, None]).to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """Sum over the processes. Every process contributes to the loss of all, so gradients are summed as well."""

    @staticmethod
    def forward(_context: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


def _sum_over_ranks(x: Tensor) -> Tensor:
    total: Tensor = _SumOverRanks.apply(x)
    return total


def _of_rank(name: str, rank: int) -> str:
    return name if rank == 0 else f"{name}.{rank}"
