"""Exits added to a network, dropped, or cut off behind one; and the backbone of another network copied into it."""

from collections.abc import Collection, Mapping
from copy import deepcopy

from torch import Tensor, nn

from eeutils.models.checks import check_exit_index, check_exits, check_units
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
