"""A moving average of a network's weights, often a better network than the last of them."""

from copy import deepcopy

import torch
from torch import Tensor

from eeutils.models import MultiExitNet


class WeightAverage:
    """The exponential moving average of a network's weights and of BatchNorm's statistics (Polyak averaging).

    torch.optim.swa_utils.AveragedModel does the same, but asks the device at every step how often it was called.

    Args:
        net: the network as it is before training.
        decay: what an update leaves of the average; 0.999 looks back over about a thousand steps. The first updates
            leave less, (1 + t) / (10 + t) after t of them: a short run, too, soon forgets the weights it began with.
    """

    def __init__(self, net: MultiExitNet, decay: float) -> None:
        self.net = deepcopy(net).eval()
        self.decay = decay
        self._own, self._latest = _tensors(self.net), _tensors(net)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take the network's weights after update `step` of the run, counted from 0. Nothing waits for the device."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._own, self._latest, 1 - decay)


def _tensors(net: MultiExitNet) -> list[Tensor]:
    """Parameters and buffers as they live in `net`, save those that cannot be averaged.

    BatchNorm's count of batches is no number to average, and of infinities, such as an attention mask has, lerp makes
    NaN. A weight that is not finite is not left out: nobody would see that it went wrong.
    """
    finite = [buffer for buffer in net.buffers() if buffer.isfinite().all()]
    return [tensor for tensor in (*net.parameters(), *finite) if tensor.is_floating_point()]
