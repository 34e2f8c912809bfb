"""One training run in several processes, one GPU each, started by torchrun.

On one machine with four GPUs, and on two (the same command on both):

    torchrun --nproc-per-node 4 -m eeutils.train slim
    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint <first machine>:29500 \\
        -m eeutils.train slim

Each process has the whole network and all data, and computes its share of every batch; DistributedDataParallel averages
the gradients and copies the first process's BatchNorm statistics to the others. Only the first process writes files, so
machines need not share a disk. Every trained parameter must take part in every step's loss.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class Workers:
    """The processes of this run."""

    rank: int = 0  # of this process
    world_size: int = 1  # how many there are

    @staticmethod
    def of_this_run() -> "Workers":
        """Return the processes of torch.distributed, or this one alone."""
        is_started = dist.is_available() and dist.is_initialized()
        return Workers(dist.get_rank(), dist.get_world_size()) if is_started else Workers()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def wrapped(self, forward: nn.Module, device: torch.device) -> nn.Module:
        """Return `forward` with gradients averaged over the processes in every backward pass."""
        if self.world_size == 1:
            return forward
        from torch.nn.parallel import DistributedDataParallel

        device_ids = [torch.cuda.current_device()] if device.type == "cuda" else None
        return DistributedDataParallel(forward, device_ids=device_ids, gradient_as_bucket_view=True)

    @torch.no_grad()
    def average(self, tensor: Tensor) -> None:
        """Replace `tensor` by its mean over the processes."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
            tensor /= self.world_size

    @torch.no_grad()
    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Replace `tensors` by those of the first process."""
        for tensor in tensors if self.world_size > 1 else ():
            contiguous = tensor.contiguous()
            dist.broadcast(contiguous, src=0)
            tensor.copy_(contiguous)

    def share_from_first(self, value: Any) -> Any:
        """Return the first process's `value`."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def any(self, flag: bool) -> bool:
        """Return True if `flag` is true in any process."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor([flag], dtype=torch.uint8)  # on the CPU: nothing waits for the GPU
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)


@contextmanager
def workers_of_torchrun() -> Iterator[None]:
    """Connect the processes that torchrun started, if it did, and give each a GPU if there are any."""
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield
    # Not after an error: NCCL would wait for the other processes, and torchrun for this one.
    dist.destroy_process_group()
