"""Make a network from another: change its exits, copy or widen its backbone, fold its norms, cut it into stages."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from eeutils.errors import require
from eeutils.fields import check_range
from eeutils.models.contracts import check_exits, check_units
from eeutils.models.graphs import fold_recorded
from eeutils.models.memory import independent_copy, make_weights_permanent, to_channels_last
from eeutils.models.multiexit import Features, MultiExitNet, Stage


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
    check_range("exit_index", exit_index, 0, net.num_exits - 1)
    last = net.exit_after[exit_index]
    exits = {unit: head for unit, head in _exits(net).items() if unit <= last}
    return _in_mode_of(net, MultiExitNet(net.units[: last + 1], exits))


def copy_backbone(net: MultiExitNet, donor: MultiExitNet, *, last_exit: bool = True) -> None:
    """Copy the weights of the units and the last exit of `donor`, which has the same, into `net`; early exits stay.

    `last_exit=False` leaves the last exit as well, for instance for other classes.
    """
    net, donor = check_exits(net), check_exits(donor)
    parts = ("units.", f"exits.{len(net.units) - 1}.") if last_exit else ("units.",)
    states = net.state_dict(), donor.state_dict()
    own, given = ({key: state[key] for key in state if key.startswith(parts)} for state in states)
    _check_donor(own, given, torch.Size.__eq__, "have the layers of the network")
    net.load_state_dict(given, strict=False)


def widen_backbone(net: MultiExitNet, donor: MultiExitNet) -> None:
    """Copy the units of `donor`, the same network at a half, a third, ... of the width, into `net`.

    A unit of `net` then returns the channels of the donor's unit, each repeated, until it is trained further:
    Net2WiderNet (Chen et al., ICLR 2016, arXiv 1511.05641, section 2.3). The weight of a channel is divided among its
    copies in random shares: with equal shares, copies would get equal gradients and never diverge. The exits of `net`
    stay. No unit may read a flattened map.
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
        hint = "; last_exit=False copies the units alone" if key.startswith("exits.") else ""
        same = "none" not in shapes and fits(own[key].shape, given[key].shape)
        require(same, f"donor must {must}, got {shapes[0]} instead of {shapes[1]} for {key!r}{hint}")


def _exits(net: MultiExitNet) -> dict[int, nn.Module]:
    return dict(zip(net.exit_after, net.exits.values(), strict=True))


def _in_mode_of(net: MultiExitNet, new: MultiExitNet) -> MultiExitNet:
    # Only the containers are new: train() or eval() would reach into modules that belong to `net` as well.
    for module in (new, new.units, new.exits):
        module.training = net.training
    return new


def _is_multiple(wide: torch.Size, narrow: torch.Size) -> bool:
    """Return True if all channels repeat equally often; only the first two axes of a weight are channels."""
    same = len(wide) == len(narrow) and wide[2:] == narrow[2:]
    return same and all(many % few == 0 for many, few in zip(wide[:2], narrow[:2], strict=True))


def _widened(tensor: Tensor, shape: torch.Size) -> Tensor:
    wide = tensor
    for axis in range(min(tensor.ndim, 2)):
        wide = wide.repeat_interleave(shape[axis] // tensor.shape[axis], dim=axis)
    if tensor.ndim < 2 or shape[1] == tensor.shape[1]:
        return wide
    shares = 0.5 + torch.rand(shape[0], tensor.shape[1], shape[1] // tensor.shape[1]).to(wide)  # none of them near 0
    shares /= shares.sum(dim=2, keepdim=True)
    return wide * shares.reshape(*shape[:2], *[1] * (tensor.ndim - 2))


def prepared_for_inference(net: MultiExitNet) -> MultiExitNet:
    """Return a copy of `net` in evaluation mode with batch norms folded into the convolutions before them.

    The copy gives the same logits up to rounding. Folding covers a norm right after its convolution in an
    `nn.Sequential` or among the units, and in networks of `with_exits`.
    """
    copy = independent_copy(check_exits(net)).eval()
    make_weights_permanent(copy)
    for part in (*copy.units, *copy.exits.values()):
        fold_recorded(part)
    stages = [nn.Sequential(*stage.units) for stage in copy.stages()]
    _fold_neighbours(nn.ModuleList([*stages, *copy.exits.values()]))
    copy.units = nn.ModuleList(unit for stage in stages for unit in stage)
    to_channels_last(copy.requires_grad_(False))
    return copy


def _fold_neighbours(net: nn.Module) -> None:
    """Fold norms into convolutions next to them in an `nn.Sequential`, unless one has hooks or is used twice."""
    uses = Counter(module for _, module in net.named_modules(remove_duplicate=False))
    for module in list(net.modules()):
        if type(module).forward is not nn.Sequential.forward:
            continue
        for conv, norm in pairwise(list(module._modules)):
            pair = module.get_submodule(conv), module.get_submodule(norm)
            if uses[pair[0]] == uses[pair[1]] == 1 and _can_be_folded(*pair):
                module.set_submodule(conv, fuse_conv_bn_eval(*pair))
                module.set_submodule(norm, nn.Identity())


def _can_be_folded(conv: nn.Module, norm: nn.Module) -> bool:
    """Return True for a plain convolution and a norm with fixed statistics, both without hooks."""
    are_plain = type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_mean is not None
    return are_plain and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in (conv, norm))


class StageModule(nn.Module):
    """The units between one exit and the next and the exit at their end, as one module.

    Shapes: output of the stage before, or normalised images (N, C, H, W) -> output of the last unit and logits (N, C).
    """

    def __init__(self, stage: Stage, training: bool) -> None:
        super().__init__()
        self.units, self.head = nn.ModuleList(stage.units), stage.head
        self.head_reads_a_copy = stage.head_reads_a_copy
        # Exporters restore a module's mode afterwards, which must not differ from that of the parts inside.
        self.training = self.units.training = training

    def forward(self, x: Features) -> tuple[Features, Tensor]:
        stage = Stage(tuple(self.units), self.head, self.head_reads_a_copy)
        features = stage.features(x)
        return features, stage.answer(features)


def stage_modules(net: MultiExitNet) -> list[StageModule]:
    """Cut `net` behind each exit, shallowest first, into modules to export and run one after the other.

    The host runs a stage, keeps the images that have not left, and passes their features on to the next. To export with
    any number of images:

        net, x = prepared_for_inference(net).to(memory_format=torch.contiguous_format), torch.zeros(2, 3, 32, 32)
        for stage in stage_modules(net):
            shapes = map_tensors(lambda _: {0: torch.export.Dim("num_images")}, x)  # units may hand on several tensors
            program = torch.export.export(stage, (x,), dynamic_shapes=[shapes])
            x, logits = stage(x)

    In your own units use `x.shape[0]`: torch.export turns `len(x)` into a constant. Modules share the weights of `net`.
    """
    net = check_exits(net)
    return [StageModule(stage, net.training) for stage in net.stages()]
