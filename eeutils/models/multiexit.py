"""Multi-exit networks: the units of a backbone, and a head after some of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from eeutils.errors import require

Features = Tensor | Sequence[Any] | Mapping[Any, Any]
"""Output of a unit: a tensor with the images first, or a tuple, list or dict of them, nested or not."""


@dataclass(frozen=True)
class Origin:
    """Recipe to build a network again."""

    library: str  # "eeutils" stands for `create_model`
    name: str
    arguments: dict[str, Any]  # of the builder, as JSON has them
    exits: dict[str, Any] | None = None  # of `with_exits`, for another library's network
    version: str | None = None  # of that library


@dataclass(frozen=True)
class Stage:
    """The units between one exit and the next, and the exit at their end."""

    units: tuple[nn.Module, ...]
    head: nn.Module
    head_reads_a_copy: bool  # because it or the next unit overwrites its input, as `nn.ReLU(inplace=True)` does

    def features(self, x: Features) -> Features:
        """Map the features of the stage before (N, ...) to those of this one."""
        for unit in self.units:
            x = unit(x)
        return x

    def read(self, features: Features) -> Features:
        """Return the input of the head: `features` or a copy."""
        return map_tensors(torch.clone, features) if self.head_reads_a_copy else features

    def answer(self, features: Features) -> Tensor:
        """Map the features of this stage to logits (N, C); call it before the next stage runs."""
        return self.head(self.read(features))


class MultiExitNet(nn.Module):
    """A network as a list of units with a head after some of them.

    A *unit* is a piece of the backbone (the stem, a block); an *exit* is a head that reads the feature map after one
    unit. The network's own classifier is its last exit, so a plain CNN is a network with one exit. The keys of
    `state_dict()` are `units.<unit>...` and `exits.<unit>...`: those of the backbone do not depend on the exits.

    Args:
        units: the backbone, shallow to deep; each maps a feature map to the next. A feature map may also be a tuple,
            list or dict of tensors with the images first, to carry a connection past an exit. A unit that writes into
            its input must begin with a module that says so, such as `nn.ReLU(inplace=True)`.
        exits: unit index -> head that maps the feature map after that unit to logits; the last unit needs one.
    """

    def __init__(self, units: Sequence[nn.Module], exits: Mapping[int, nn.Module]) -> None:
        super().__init__()
        last = len(units) - 1
        fit = last in exits and all(0 <= unit <= last for unit in exits)
        require(fit, f"exits must follow units in 0..{last}, the last included, got {sorted(exits)}")
        self.units = nn.ModuleList(units)
        self.exits = nn.ModuleDict({str(unit): exits[unit] for unit in sorted(exits)})
        self.origin: Origin | None = None  # how to build this network again; unknown after surgery

    @property
    def exit_after(self) -> tuple[int, ...]:
        """Index of the unit before each exit, shallowest first."""
        return tuple(int(unit) for unit in self.exits)

    @property
    def num_exits(self) -> int:
        """Number of exits, the last included."""
        return len(self.exits)

    def stages(self) -> Iterator[Stage]:
        """Yield the network cut behind each exit, shallowest first."""
        start, units = 0, tuple(self.units)  # slices of a ModuleList would be slower to build than a block to run
        for unit, head in zip(self.exit_after, self.exits.values(), strict=True):
            after = units[unit + 1 : unit + 2]
            # len(), because bool() of modules breaks the graph of torch.compile.
            reads_a_copy = len(after) > 0 and (begins_in_place(head) or begins_in_place(after[0]))
            yield Stage(units[start : unit + 1], head, reads_a_copy)
            start = unit + 1

    def forward_features(self, x: Tensor) -> list[Features]:
        """Map images (N, C, H, W) to the features that each exit reads, shallowest first."""
        features = []
        for stage in self.stages():
            x = stage.features(x)
            features.append(stage.read(x))
        return features

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images (N, C, H, W) to the logits of every exit, each (N, classes), shallowest first."""
        logits = []
        for stage in self.stages():
            x = stage.features(x)
            logits.append(stage.answer(x))
        return logits


def map_tensors(change: Callable[[Tensor], Any], features: Features) -> Any:
    """Return `features` with `change` applied to each tensor; other values stay."""
    return change(features) if isinstance(features, Tensor) else tree_map_only(Tensor, change, features)


def tensors_of(features: Features) -> list[Tensor]:
    """Return the tensors in `features`, in order."""
    return [leaf for leaf in tree_leaves(features) if isinstance(leaf, Tensor)]


def uncompiled(net: nn.Module) -> nn.Module:
    """Return the network inside a `torch.compile` wrapper, or `net` itself."""
    return getattr(net, "_orig_mod", net)  # the class of the wrapper is slow to import


def begins_in_place(module: nn.Module) -> bool:
    """Return True if the first layer of `module` overwrites its input."""
    while (first := next(module.children(), None)) is not None:
        module = first
    return getattr(module, "inplace", False)
