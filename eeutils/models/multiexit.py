"""A network is units and exits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Features = Tensor | Sequence[Any] | Mapping[Any, Any]
"""What a unit hands on: a tensor with the images first, or a tuple, list or dict of such, nested or not."""


@dataclass(frozen=True)
class Stage:
    """The units between one exit and the next, and the exit that they lead to.

    Attributes:
        units: of the backbone, shallow to deep.
        head: the exit.
        head_reads_a_copy: of the feature map, because `head` or the unit after it begins by working in place, as
            `nn.ReLU(inplace=True)` does: neither may change what the other reads.
    """

    units: tuple[nn.Module, ...]
    head: nn.Module
    head_reads_a_copy: bool

    def features(self, x: Features) -> Features:
        """The feature map after the stage before (N, ...) -> that after this one."""
        for unit in self.units:
            x = unit(x)
        return x

    def read(self, features: Features) -> Features:
        """What `features` gave -> what the head is to read, that or a copy."""
        return map_tensors(torch.clone, features) if self.head_reads_a_copy else features

    def answer(self, features: Features) -> Tensor:
        """What `features` gave -> logits (N, classes). To be asked before the next stage runs."""
        return self.head(self.read(features))


class MultiExitNet(nn.Module):
    """A convolutional network as a list of units and a head after some of them.

    A *unit* is a piece of the backbone (the stem, a block); an *exit* is a head that reads the feature map after
    one unit. The network's own classifier is its last exit, so a plain CNN is a network with one exit. The keys of
    `state_dict()` are `units.<unit>...` and `exits.<unit>...`: those of the backbone do not depend on where the
    exits are.

    Args:
        units: the backbone, shallow to deep; each maps a feature map to the next. Where more has to be carried on, as
            by a connection that skips an exit, a map may be a tuple, list or dict of tensors, images first in each. One
            that writes into what it reads has to begin with a module that says so, such as `nn.ReLU(inplace=True)`.
        exits: unit index -> head that maps the feature map after that unit to logits; the last unit needs one.

    Raises:
        ValueError: if there are no units, an exit follows a unit that does not exist, or the last unit has none.
    """

    def __init__(self, units: Sequence[nn.Module], exits: Mapping[int, nn.Module]) -> None:
        super().__init__()
        _check_places(len(units), exits)
        self.units = nn.ModuleList(units)
        self.exits = nn.ModuleDict({str(unit): exits[unit] for unit in sorted(exits)})

    @property
    def exit_after(self) -> tuple[int, ...]:
        """The index of the unit that each exit follows, shallowest first."""
        return tuple(int(unit) for unit in self.exits)

    @property
    def num_exits(self) -> int:
        """How many answers an image gets."""
        return len(self.exits)

    def stages(self) -> Iterator[Stage]:
        """The network cut behind each exit, shallowest first."""
        start, units = 0, tuple(self.units)  # slices of a ModuleList would be slower to build than a block to run
        for unit, head in zip(self.exit_after, self.exits.values(), strict=True):
            after = units[unit + 1 : unit + 2]
            # By its length: at bool() of modules torch.compile gives up, in 2.10 and 2.11, and compiles it in pieces.
            reads_a_copy = len(after) > 0 and (_begins_in_place(head) or _begins_in_place(after[0]))
            yield Stage(units[start : unit + 1], head, reads_a_copy)
            start = unit + 1

    def forward_features(self, x: Tensor) -> list[Features]:
        """Images (N, C, H, W) -> the feature map that each exit reads, shallowest first."""
        features = []
        for stage in self.stages():
            x = stage.features(x)
            features.append(stage.read(x))
        return features

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (N, C, H, W) -> logits of every exit, each (N, classes), shallowest first."""
        answers = []
        for stage in self.stages():
            x = stage.features(x)
            answers.append(stage.answer(x))
        return answers


def map_tensors(change: Callable[[Tensor], Any], features: Features) -> Any:
    """`features` with `change` done to each tensor; what is neither tensor, tuple, list nor dict stays as it is."""
    if isinstance(features, Tensor):
        return change(features)
    if isinstance(features, Mapping):
        return type(features)({name: map_tensors(change, each) for name, each in features.items()})
    if isinstance(features, tuple | list):
        changed = [map_tensors(change, each) for each in features]
        return type(features)(*changed) if hasattr(features, "_fields") else type(features)(changed)  # a namedtuple
    return features


def uncompiled(net: nn.Module) -> nn.Module:
    """The network that `torch.compile` wrapped, or `net` itself; the two share their weights."""
    return getattr(net, "_orig_mod", net)  # the class of the wrapper is slow to import


def _begins_in_place(module: nn.Module) -> bool:
    """Whether the first layer of `module` overwrites what it reads."""
    while (first := next(module.children(), None)) is not None:
        module = first
    return getattr(module, "inplace", False)


def _check_places(num_units: int, exits: Mapping[int, nn.Module]) -> None:
    if not num_units:
        raise ValueError("a network needs at least one unit")
    outside = sorted(unit for unit in exits if not 0 <= unit < num_units)
    if outside:
        raise ValueError(f"exits after units {outside}, but units are numbered 0..{num_units - 1}")
    if num_units - 1 not in exits:
        raise ValueError(f"the last unit ({num_units - 1}) has no exit; there are exits after {sorted(exits)}")
