"""A network is units and exits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
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


def checked_answers(net: MultiExitNet, x: Tensor) -> list[Tensor]:
    """What `net(x)` answers, after seeing that heads and units go together.

    Raises:
        ValueError: if a unit or an exit cannot read what it is given (`reading`), an early exit writes into what the
            next unit reads (`left_alone`), or one answers other than logits (`check_answers`).
    """
    num_images, answers = len(x), []  # for `x` soon is what a unit hands on
    for last, stage in zip(net.exit_after, net.stages(), strict=True):
        for index, unit in enumerate(stage.units, last + 1 - len(stage.units)):
            with reading(x, f"unit {index}", unit):
                x = unit(x)
        with left_alone(x, last, len(net.units)), reading(x, f"exit after unit {last}", stage.head):
            answers.append(stage.answer(x))
        check_answers(answers[-1:], num_images)
    return answers


@contextmanager
def reading(features: Features, part: str, module: nn.Module) -> Iterator[None]:
    """See that `module`, asked within, can read `features`.

    Args:
        features: with the images first.
        part: which part of the network `module` is, such as "unit 3".
        module: a unit or a head.

    Raises:
        ValueError: if not; it names the part, and its cause is what `module` raised.
    """
    try:
        yield
    # Misfits raise all of these: a norm a ValueError, a dimension too few an IndexError, a tuple given to a layer that
    # takes a tensor a TypeError or an AttributeError.
    except (RuntimeError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        shape = map_tensors(lambda tensor: tuple(tensor.shape[1:]), features)
        raise ValueError(
            f"a feature map of shape {shape} does not fit the network's {part} ({type(module).__name__}): {error}"
        ) from error


@contextmanager
def left_alone(features: Features, unit: int, num_units: int) -> Iterator[None]:
    """See that the exit after `unit`, asked within, leaves `features` alone: the next unit reads them as well.

    Raises:
        ValueError: if it writes into them and is not the last.
    """
    before = map_tensors(_writes, features)
    yield
    if unit < num_units - 1 and map_tensors(_writes, features) != before:
        raise ValueError(
            f"the exit after unit {unit} works in place on the feature map that unit {unit + 1} reads as well, so that "
            "deeper exits would answer otherwise; clone what it reads, or begin with a layer that is not in place"
        )


def check_answers(answers: Sequence[object], num_images: int) -> None:
    """See that what exits answered are logits (images, classes), of the same classes, two or more; no values are read.

    Raises:
        ValueError: that says what they answered.
    """
    shapes = [tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__ for answer in answers]
    classes = {shape[1] if len(shape) == 2 and shape[0] == num_images else 0 for shape in shapes}
    if len(classes) > 1 or min(classes) < 2:
        raise ValueError(
            f"exits must answer logits (N, classes), all of the same 2 classes or more, but for {num_images} images "
            f"they answer {', '.join(map(str, shapes))}"
        )


def check_exits(net: nn.Module) -> None:
    """See that `net` has exits, be it compiled or not.

    Raises:
        TypeError: if it has none.
    """
    if not hasattr(net, "num_exits"):
        raise TypeError(
            f"{type(net).__name__} has no exits; cut it into units with a head after some of them: "
            "eeutils.models.MultiExitNet(units, {unit: head, ...})"
        )


def uncompiled(net: nn.Module) -> nn.Module:
    """The network that `torch.compile` wrapped, or `net` itself; the two share their weights."""
    return getattr(net, "_orig_mod", net)  # the class of the wrapper is slow to import


def check_early_exits(after: Sequence[int], num_units: int) -> None:
    """See that early exits can follow the units `after`, each a unit of its own and none the last.

    Raises:
        ValueError: that names those which cannot be, and the choices.
    """
    if isinstance(after, int):
        raise ValueError(f"the units that early exits follow are a sequence, such as ({after},), got {after}")
    if len(set(after)) != len(after):
        raise ValueError(f"two exits after one unit in {tuple(after)}")
    outside = [unit for unit in after if not 0 <= unit < num_units - 1]
    if outside:
        raise ValueError(
            f"no early exits after units {outside}: they follow units 0 to {num_units - 2}, and unit {num_units - 1}, "
            "the last, has the network's own classifier"
        )


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


def drop_exits(net: MultiExitNet, after: Sequence[int]) -> MultiExitNet:
    """A new network without the exits after the units `after`; the last one cannot be dropped.

    Weights are shared with `net`: deepcopy the result to train it apart.

    Raises:
        TypeError: if `net` has no exits.
        ValueError: if one of them is not there, or is the last.
    """
    check_exits(net)
    missing = sorted(set(after) - set(net.exit_after))
    if missing:
        raise ValueError(f"no exits after units {missing}; there are exits after {net.exit_after}")
    exits = {unit: head for unit, head in _exits(net).items() if unit not in after}
    return _in_mode_of(net, MultiExitNet(net.units, exits))


def check_exit_index(exit_index: int, num_exits: int) -> None:
    """See that there is such an exit; 0 is the shallowest.

    Raises:
        ValueError: that says which there are.
    """
    if not 0 <= exit_index < num_exits:
        raise ValueError(f"exit_index {exit_index} is not in 0..{num_exits - 1}")


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
    parts = ("units.", f"exits.{len(net.units) - 1}.") if last_exit else ("units.",)
    own = {key: tensor for key, tensor in net.state_dict().items() if key.startswith(parts)}
    given = {key: tensor for key, tensor in donor.state_dict().items() if key in own}
    unlike = sorted(key for key in own if key not in given or given[key].shape != own[key].shape)
    if unlike or len(donor.units) != len(net.units):
        what, remedy = "backbone", ""
        if last_exit:
            what += " or last exit"
            remedy = ". For other classes: copy_backbone(net, donor, last_exit=False)"
        raise ValueError(f"the donor has another {what} than this network: {unlike[:3]} are missing or unlike{remedy}")
    net.load_state_dict(given, strict=False)


def _exits(net: MultiExitNet) -> dict[int, nn.Module]:
    return dict(zip(net.exit_after, net.exits.values(), strict=True))


def _in_mode_of(net: MultiExitNet, new: MultiExitNet) -> MultiExitNet:
    # Only the containers are new: train() or eval() would reach into modules that belong to `net` as well.
    for module in (new, new.units, new.exits):
        module.training = net.training
    return new


def _begins_in_place(module: nn.Module) -> bool:
    """Whether the first layer of `module` overwrites what it reads."""
    while (first := next(module.children(), None)) is not None:
        module = first
    return getattr(module, "inplace", False)


def _writes(tensor: Tensor) -> int:
    """How often something was written into `tensor` so far; tensors of inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _check_places(num_units: int, exits: Mapping[int, nn.Module]) -> None:
    if not num_units:
        raise ValueError("a network needs at least one unit")
    outside = sorted(unit for unit in exits if not 0 <= unit < num_units)
    if outside:
        raise ValueError(f"exits after units {outside}, but units are numbered 0..{num_units - 1}")
    if num_units - 1 not in exits:
        raise ValueError(f"the last unit ({num_units - 1}) has no exit; there are exits after {sorted(exits)}")
