"""Costs of an image at each exit: multiply-adds and parameters."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eeutils.models import MultiExitNet
from eeutils.models.contracts import count_macs, left_alone, on_meta, walk_units


@dataclass(frozen=True)
class NetworkCosts:
    """Multiply-adds of one image and parameters, part by part.

    Multiply-adds are those that `torch.utils.flop_counter` knows: convolutions, matrix products, attention. A network
    with custom operators, such as `torchvision.ops.DeformConv2d`, needs another measure:
    `predict(..., costs=measure_seconds(net, split))`.

    Attributes:
        unit_macs: (U,) float64 of each backbone unit.
        exit_macs: (E,) float64 of each exit's head.
        unit_params: (U,) int64.
        exit_params: (E,) int64.
        exit_after: the unit that each exit follows.
    """

    unit_macs: Tensor
    exit_macs: Tensor
    unit_params: Tensor
    exit_params: Tensor
    exit_after: tuple[int, ...]

    @property
    def cumulative_macs(self) -> Tensor:
        """(E,) float64, of the units and *all* heads up to each exit."""
        return _up_to_exits(self.unit_macs, self.exit_macs, self.exit_after)

    @property
    def cumulative_params(self) -> Tensor:
        """(E,) int64, of the units and all heads up to each exit."""
        return _up_to_exits(self.unit_params, self.exit_params, self.exit_after)


@torch.inference_mode(False)  # its tensors have no version counter, which shows heads that work in place
def measure_costs(net: MultiExitNet, image_shape: tuple[int, int, int]) -> NetworkCosts:
    """Count the costs of `net` for one image of `image_shape` (C, H, W), on shapes alone and without its hooks.

    Raises:
        TypeError: if `net` has no exits.
        ValueError: if a unit or an exit cannot read its input or looks at values, or the head of an early exit works
            in place on the feature map that the next unit reads.
    """
    net = remove_hooks(on_meta(net))
    unit_macs, features = zip(*walk_units(net, image_shape), strict=True)
    exit_macs = []
    for unit, stage in zip(net.exit_after, net.stages(), strict=True):
        with left_alone(features[unit], unit, len(net.units)):
            exit_macs.append(count_macs(stage.head, stage.read(features[unit]), f"exit after unit {unit}")[0])
    return NetworkCosts(
        unit_macs=torch.tensor(unit_macs, dtype=torch.float64),
        exit_macs=torch.tensor(exit_macs, dtype=torch.float64),
        unit_params=torch.tensor([_params(unit) for unit in net.units]),
        exit_params=torch.tensor([_params(head) for head in net.exits.values()]),
        exit_after=net.exit_after,
    )


def exit_costs(net: MultiExitNet, image_shape: tuple[int, int, int]) -> Tensor:
    """Return the (E,) float64 multiply-adds of one image up to each exit, with all heads on the way."""
    return measure_costs(net, image_shape).cumulative_macs


def remove_hooks(net: MultiExitNet) -> MultiExitNet:
    """Remove forward hooks from `net`, in place, but those of `torch.nn.utils`, in which pruning computes weights."""
    for module in net.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if not type(hook).__module__.startswith("torch.nn.utils")]:
                del hooks[key]
    return net


def _up_to_exits(of_units: Tensor, of_exits: Tensor, exit_after: tuple[int, ...]) -> Tensor:
    return of_units.cumsum(0)[list(exit_after)] + of_exits.cumsum(0)


def _params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
