"""A trained backbone as the start of a wider one, which is ahead of one that begins at random."""

import torch
from torch import Tensor

from eeutils.models.checks import check_exits
from eeutils.models.multiexit import MultiExitNet


def widen_backbone(net: MultiExitNet, donor: MultiExitNet) -> None:
    """Give `net` the units of `donor`, a network several times narrower, with several copies of each channel.

    A unit of `net` then answers what that of `donor` does, each channel repeated, until it is trained further:
    Net2WiderNet (Chen et al., ICLR 2016, arXiv 1511.05641, section 2.3). Whatever reads the copies of a channel divides
    its weight among them, in shares drawn at random: were they equal, so would be the copies' gradients, and they would
    stay copies for ever. The exits of `net` stay as they are.

    Args:
        net: what gets them; units of convolutions, norms and shortcuts, none of which reads a flattened map.
        donor: a network built alike, whose layers have a half, a third, ... of the channels.

    Raises:
        TypeError: if one of them has no exits.
        ValueError: if the two are not built alike but for the width; `net` is then unchanged.
    """
    for each in (net, donor):
        check_exits(each)
    own, given = net.units.state_dict(), donor.units.state_dict()
    if own.keys() != given.keys():
        raise ValueError(f"the donor has another backbone than this network: {sorted(own.keys() ^ given.keys())[:3]}")
    unlike = [key for key in own if not _is_multiple(own[key].shape, given[key].shape)]
    if unlike:
        sizes = f"{tuple(given[unlike[0]].shape)} and {tuple(own[unlike[0]].shape)}"
        raise ValueError(f"this network is not as the donor is, several times as wide: {unlike[0]} has {sizes}")
    net.units.load_state_dict({key: _widened(given[key], own[key].shape) for key in own})


def _is_multiple(wide: torch.Size, narrow: torch.Size) -> bool:
    """Whether a tensor has room for copies of the other's channels; kernels have no channels after the second axis."""
    return (
        len(wide) == len(narrow)
        and wide[2:] == narrow[2:]
        and all(many % few == 0 for many, few in zip(wide[:2], narrow[:2], strict=True))
    )


def _widened(tensor: Tensor, shape: torch.Size) -> Tensor:
    wide = tensor
    for axis in range(min(tensor.ndim, 2)):
        wide = wide.repeat_interleave(shape[axis] // tensor.shape[axis], dim=axis)
    if tensor.ndim < 2 or shape[1] == tensor.shape[1]:
        return wide
    shares = 0.5 + torch.rand(shape[0], tensor.shape[1], shape[1] // tensor.shape[1]).to(wide)  # none of them near 0
    shares /= shares.sum(dim=2, keepdim=True)
    return wide * shares.reshape(*shape[:2], *[1] * (tensor.ndim - 2))
