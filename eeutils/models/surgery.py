"""Change a network: add, drop or truncate exits; copy or widen a trained backbone."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from eeutils.models.contracts import check_exit_index, check_exits, check_units
from eeutils.models.memory import independent_copy
from eeutils.models.multiexit import MultiExitNet


def add_exits(net: MultiExitNet, exits: Mapping[int, nn.Module]) -> MultiExitNet:
    """Return a copy of `net` with copies of `exits` (unit index -> head) besides its own.

    The added heads take the mode of `net`, training or evaluation.
    """
    net = check_exits(net)
    check_units("exits", list(exits), [unit for unit in range(len(net.units)) if unit not in net.exit_after])
    added = {unit: independent_copy(head).train(net.training) for unit, head in exits.items()}
    copy = independent_copy(net)
    return _in_mode_of(net, MultiExitNet(copy.units, _exits(copy) | added))


def drop_exits(net: MultiExitNet, after: Collection[int]) -> MultiExitNet:
    """Return a network without the exits after the units `after`; the last one cannot be dropped.

    Weights are shared with `net`: deepcopy the result to train it apart.
    """
    net = check_exits(net)
    check_units("after", after, net.exit_after[:-1])
    exits = {unit: head for unit, head in _exits(net).items() if unit not in after}
    return _in_mode_of(net, MultiExitNet(net.units, exits))


def truncate(net: MultiExitNet, exit_index: int) -> MultiExitNet:
    """Return the network that ends at exit `exit_index` (0 is the shallowest); weights are shared with `net`."""
    net = check_exits(net)
    check_exit_index(exit_index, net.num_exits)
    last = net.exit_after[exit_index]
    exits = {unit: head for unit, head in _exits(net).items() if unit <= last}
    return _in_mode_of(net, MultiExitNet(net.units[: last + 1], exits))


def copy_backbone(net: MultiExitNet, donor: MultiExitNet, *, last_exit: bool = True) -> None:
    """Copy the weights of the units and the last exit of `donor` into `net`; its early exits stay.

    Args:
        donor: a network with the same units, and the same last exit if that is copied.
        last_exit: False leaves the last exit as well, for instance for other classes.
    """
    net, donor = check_exits(net), check_exits(donor)
    parts = ("units.", f"exits.{len(net.units) - 1}.") if last_exit else ("units.",)
    own, given = _tensors_of(net, parts), _tensors_of(donor, parts)
    _check_donor(own, given, torch.Size.__eq__, "have the layers of the network")
    net.load_state_dict(given, strict=False)


def widen_backbone(net: MultiExitNet, donor: MultiExitNet) -> None:
    """Copy the units of `donor`, a narrower network, into `net`, each channel several times.

    A unit of `net` then returns the channels of the donor's unit, each repeated, until it is trained further:
    Net2WiderNet (Chen et al., ICLR 2016, arXiv 1511.05641, section 2.3). The weight of a channel is divided among its
    copies in random shares: with equal shares, copies would get equal gradients and never diverge. The exits of `net`
    stay.

    Args:
        net: the network to change; units of convolutions, norms and shortcuts, none of which reads a flattened map.
        donor: a network of the same layers with a half, a third, ... of the channels.
    """
    net, donor = check_exits(net), check_exits(donor)
    own, given = net.units.state_dict(), donor.units.state_dict()
    _check_donor(own, given, _is_multiple, "be the network at a fraction of its width")
    net.units.load_state_dict({key: _widened(given[key], own[key].shape) for key in own})


def _check_donor(
    own: dict[str, Tensor], given: dict[str, Tensor], fits: Callable[[torch.Size, torch.Size], bool], must: str
) -> None:
    for key in own | given:
        shapes = [tuple(state[key].shape) if key in state else "none" for state in (given, own)]
        if "none" in shapes or not fits(own[key].shape, given[key].shape):
            hint = "; last_exit=False copies the units alone" if key.startswith("exits.") else ""
            raise ValueError(f"donor must {must}, got {shapes[0]} instead of {shapes[1]} for {key!r}{hint}")


def _tensors_of(net: MultiExitNet, parts: tuple[str, ...]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in net.state_dict().items() if key.startswith(parts)}


def _exits(net: MultiExitNet) -> dict[int, nn.Module]:
    return dict(zip(net.exit_after, net.exits.values(), strict=True))


def _in_mode_of(net: MultiExitNet, new: MultiExitNet) -> MultiExitNet:
    # Only the containers are new: train() or eval() would reach into modules that belong to `net` as well.
    for module in (new, new.units, new.exits):
        module.training = net.training
    return new


def _is_multiple(wide: torch.Size, narrow: torch.Size) -> bool:
    """Return true if all channels repeat equally often; only the first two axes of a weight are channels."""
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
