"""Change a network: add, drop or truncate exits; copy or widen a trained backbone."""

from collections.abc import Collection, Mapping
from copy import deepcopy

import torch
from torch import Tensor, nn

from eeutils.models.contracts import check_exit_index, check_exits, check_units
from eeutils.models.multiexit import MultiExitNet


def add_exits(net: MultiExitNet, exits: Mapping[int, nn.Module]) -> MultiExitNet:
    """A new network with `exits` (unit index -> head) besides those of `net`.

    Everything is copied: training the new network leaves `net` as it is. The added heads are in its mode, training or
    evaluation.

    Raises:
        TypeError: if `net` has no exits: then it is to be cut into units first.
        ValueError: if a unit does not exist or already has an exit.
    """
    check_exits(net)
    taken = sorted(set(exits) & set(net.exit_after))
    if taken:
        raise ValueError(f"units {taken} already have an exit; drop_exits() first to replace it")
    added = {unit: deepcopy(head).train(net.training) for unit, head in exits.items()}
    return _in_mode_of(net, MultiExitNet(deepcopy(net.units), deepcopy(_exits(net)) | added))


def drop_exits(net: MultiExitNet, after: Collection[int]) -> MultiExitNet:
    """A new network without the exits after the units `after`; the last one cannot be dropped.

    Weights are shared with `net`: deepcopy the result to train it apart.

    Raises:
        TypeError: if `net` has no exits.
        ValueError: if `after` is no sequence, or one of them is not there, or is the last.
    """
    check_exits(net)
    check_units(after)
    missing = sorted(set(after) - set(net.exit_after))
    if missing:
        raise ValueError(f"no exits after units {missing}; there are exits after {net.exit_after}")
    exits = {unit: head for unit, head in _exits(net).items() if unit not in after}
    return _in_mode_of(net, MultiExitNet(net.units, exits))


def truncate(net: MultiExitNet, exit_index: int) -> MultiExitNet:
    """A new network that ends at exit `exit_index` (0 is the shallowest); weights are shared with `net`.

    Raises:
        TypeError: if `net` has no exits.
        ValueError: if it has none of that index.
    """
    check_exits(net)
    check_exit_index(exit_index, net.num_exits)
    last = net.exit_after[exit_index]
    exits = {unit: head for unit, head in _exits(net).items() if unit <= last}
    return _in_mode_of(net, MultiExitNet(net.units[: last + 1], exits))


def copy_backbone(net: MultiExitNet, donor: MultiExitNet, *, last_exit: bool = True) -> None:
    """Give `net` copies of the weights of the units and of the last exit of `donor`; its early exits stay as they are.

    Args:
        net: what gets them.
        donor: a network with the same units, and the same last exit if that is wanted.
        last_exit: False leaves it as it is, too, as for other classes.

    Raises:
        TypeError: if one of them has no exits.
        ValueError: if the two are not built alike there; `net` is then unchanged.
    """
    for each in (net, donor):
        check_exits(each)
    if len(donor.units) != len(net.units):
        raise ValueError(f"the donor has {len(donor.units)} units, this network {len(net.units)}")
    parts = ("units.", f"exits.{len(net.units) - 1}.") if last_exit else ("units.",)
    own, given = _tensors_of(net, parts), _tensors_of(donor, parts)
    unlike = [key for key in own | given if key not in own or key not in given or own[key].shape != given[key].shape]
    if unlike:
        what, remedy = "backbone", ""
        if all(key.startswith("exits.") for key in unlike):
            what, remedy = "last exit", "; for other classes: copy_backbone(net, donor, last_exit=False)"
        raise ValueError(f"the donor has another {what} than this network: {unlike[:3]} differ or are missing{remedy}")
    net.load_state_dict(given, strict=False)


def _tensors_of(net: MultiExitNet, parts: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in net.state_dict().items() if key.startswith(parts)}


def _exits(net: MultiExitNet) -> dict[int, nn.Module]:
    return dict(zip(net.exit_after, net.exits.values(), strict=True))


def _in_mode_of(net: MultiExitNet, new: MultiExitNet) -> MultiExitNet:
    # Only the containers are new: train() or eval() would reach into modules that belong to `net` as well.
    for module in (new, new.units, new.exits):
        module.training = net.training
    return new


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
