"""How fast a device multiplies matrices, and how much of that a training run used."""

import torch

from eeutils.backends import matrices_rounded_as_convolutions
from eeutils.training.compute import autocast_dtype, compute_capability

# Large enough to fill the device, small enough for a second: a GPU needs more than a core to be busy.
_SIZE = {"cuda": 8192, "cpu": 2048}


def training_operations(macs: int) -> int:
    """Floating-point operations of one image's step: a multiply-add is two, and a backward pass costs two forward ones.

    Args:
        macs: multiply-adds of one image's forward pass.
    """
    return 6 * macs


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second that the device reaches here and now on a large matrix product."""
    from torch.utils.benchmark import Timer  # slow to import, and noisy where it looks for a compiler in vain

    size = _SIZE.get(device.type, _SIZE["cpu"])
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = Timer("left @ right", globals={"left": left, "right": right}, num_threads=torch.get_num_threads())
    with matrices_rounded_as_convolutions():
        return 2 * size**3 / product.blocked_autorange(min_run_time=0.5).median


def training_peak(precision: str, device: torch.device) -> float:
    """`matrix_peak` of the device in the dtype that training with this `TrainConfig.precision` takes there."""
    return matrix_peak(device, autocast_dtype(precision, compute_capability(device)))


def share_of_peak(macs: int, images_per_second: float, peak: float) -> float:
    """How much of `peak` the training of a whole network uses, 0 to 1.

    Args:
        macs: multiply-adds of one image's forward pass.
        images_per_second: of the passes over the training split.
        peak: floating-point operations a second, see `training_peak`.
    """
    return images_per_second * training_operations(macs) / peak
