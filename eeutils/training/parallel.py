"""One training run by several processes, a GPU each: `torchrun --nproc-per-node 4 -m eeutils.train slim`.

Each process has the whole network and all of the data, computes its share of every batch, and takes the same step as
the others, on the mean of all gradients; so their weights stay alike. BatchNorm sees a process's share of a batch; its
statistics are averaged when an epoch is over.

torch's DistributedDataParallel does this for a module whose every parameter is trained in every step. Here the early
exits alone may be.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """The processes of this run, as one of them sees them.

    Attributes:
        rank: which of them this is, from 0.
        world_size: how many there are.
    """

    rank: int = 0
    world_size: int = 1

    @staticmethod
    def of_this_run() -> "Workers":
        """Those that torch.distributed has been told of; otherwise this one alone."""
        if dist.is_available() and dist.is_initialized():
            return Workers(dist.get_rank(), dist.get_world_size())
        return Workers()

    @property
    def writes(self) -> bool:
        """Whether this is the one that prints and saves for all."""
        return self.rank == 0

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Make `tensors`, of any shapes and all of one dtype, the mean over all processes, in place."""
        if self.world_size > 1 and tensors:
            together = torch.cat([tensor.flatten() for tensor in tensors])
            dist.all_reduce(together)
            _put_back(together / self.world_size, tensors)

    @torch.no_grad()
    def follow_first(self, tensors: Sequence[Tensor]) -> None:
        """Make `tensors`, of any shapes and all of one dtype, what they are in the first process, in place."""
        if self.world_size > 1 and tensors:
            together = torch.cat([tensor.flatten() for tensor in tensors])
            dist.broadcast(together, src=0)
            _put_back(together, tensors)

    def wait_for_all(self) -> None:
        """Go on when all processes have come here."""
        if self.world_size > 1:
            dist.barrier()


def _put_back(together: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = together.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)])


@contextmanager
def workers_of_torchrun() -> Iterator[None]:
    """Within, the processes that torchrun started know of each other, and each has a GPU of its own, if there are any.

    A process that was started in another way is alone.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
