"""One training run by several processes, a GPU each: `torchrun --nproc-per-node 4 -m eeutils.train slim`.

Each process has the whole network and all of the data, computes its share of every batch, and takes the same step as
the others, on the mean of all gradients; so their weights stay alike. BatchNorm sees a process's share of a batch; its
statistics are averaged when an epoch is over.

torch's DistributedDataParallel wants every parameter of its module trained in every step; here the early exits alone
may be. What is trained has to be the same in all processes: a network that skips parts of itself at random will not do.
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

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Make the gradients of `parameters`, where there are any, the mean over all processes, in place."""
        if self.world_size > 1:
            self.average([each.grad for each in parameters if each.grad is not None])

    @torch.no_grad()
    def follow_first(self, tensors: Sequence[Tensor]) -> None:
        """Make `tensors`, of any shapes and all of one dtype, what they are in the first process, in place."""
        if self.world_size > 1 and tensors:
            together = torch.cat([tensor.flatten() for tensor in tensors])
            dist.broadcast(together, src=0)
            _put_back(together, tensors)

    def gather(self, value: int) -> list[int]:
        """What each process says here; it goes on when all have said it."""
        if self.world_size == 1:
            return [value]
        said = [value] * self.world_size
        dist.all_gather_object(said, value)
        return said


def _put_back(together: Tensor, tensors: Sequence[Tensor]) -> None:
    parts = together.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(each.shape) for part, each in zip(parts, tensors, strict=True)])


@contextmanager
def workers_of_torchrun() -> Iterator[None]:
    """Within, the processes that torchrun started know of each other, and each has a GPU of its own, if there are any.

    A process that was started in another way is alone.

    Raises:
        ValueError: if there are more processes than GPUs, or they are on more than one machine.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    processes, local_rank = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    if processes < int(os.environ["WORLD_SIZE"]):
        raise ValueError("training on more than one machine has never been tried; start all processes on one")
    if torch.cuda.is_available():
        if processes > torch.cuda.device_count():
            raise ValueError(
                f"{processes} processes want a GPU each, and there are {torch.cuda.device_count()}; start as many, or "
                "hide them all to compute on the CPU (CUDA_VISIBLE_DEVICES=)"
            )
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    yield
    # Not after an error: while others compute together NCCL would wait here for ever, and torchrun for this process.
    dist.destroy_process_group()
