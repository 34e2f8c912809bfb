"""Tensors of files into networks and back, also from the files of another implementation."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eeutils.errors import a_few
from eeutils.files import load_tensors
from eeutils.models import MultiExitNet, create_model
from eeutils.models.memory import named_weights

# What torch.compile, DataParallel and AveragedModel put before the names of all that is in a module.
_WRAPPERS = re.compile(r"(?<![^.])(?:(?:_orig_mod|module)\.)+")


def untrained_network(model: str, model_args: Mapping[str, Any]) -> MultiExitNet:
    """Build a network to put tensors into; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        return create_model(model, **model_args)


def stored_network(model: str, model_args: Mapping[str, Any], path: Path) -> MultiExitNet:
    """Build a network with the weights of a safetensors file."""
    net = untrained_network(model, model_args)
    put_tensors(net, read_tensors(path), str(path))
    return net


def read_tensors(path: Path | str) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file; half precision comes back as float32."""
    tensors, _ = load_tensors(path)
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}


def stored_tensors(net: MultiExitNet) -> dict[str, Tensor]:
    """Copy the tensors of `net` under the names of a network that is not compiled; tied weights become separate."""
    state = net.state_dict()
    return {_plain(name): tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` under the names of a network that is not wrapped or compiled, if those differ."""
    plain = {_plain(name): tensor for name, tensor in tensors.items()}
    plain.pop("n_averaged", None)  # AveragedModel's counter
    return plain if len(plain) == len(tensors.keys() - {"n_averaged"}) else dict(tensors)


def put_tensors(net: MultiExitNet, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Give `net` the weights `tensors`: exactly its own, of its shapes, and finite.

    Either may be compiled or wrapped, as by `torch.compile`, `DataParallel` and `AveragedModel`.
    """
    own = {_plain(name): tensor for name, tensor in net.state_dict().items()}
    tensors = plain_names(tensors)
    weights = {_plain(name) for name, _ in named_weights(net)}
    both = sorted(own.keys() & tensors.keys())
    complaints = {
        "missing": [name for name in own if name not in tensors],
        "unexpected": [name for name in tensors if name not in own],
        "of another shape": [
            f"{name} {tuple(tensors[name].shape)} instead of {tuple(own[name].shape)}"
            for name in both
            if tensors[name].shape != own[name].shape
        ],
        "of another kind": [
            f"{name} {tensors[name].dtype} instead of {own[name].dtype}"
            for name in both
            if tensors[name].is_floating_point() != own[name].is_floating_point()
        ],
        "NaN or infinite": [name for name in both if name in weights and not tensors[name].isfinite().all()],
    }
    if any(complaints.values()):
        listed = "; ".join(f"{kind}: {a_few(names)}" for kind, names in complaints.items() if names)
        raise ValueError(f"the weights in {origin} do not fit the network: {listed}")
    net.load_state_dict({name: tensors[_plain(name)] for name in net.state_dict()})


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", name)


Shape = tuple[int, ...]
Layer = dict[str, Tensor]


@dataclass(frozen=True)
class TensorReport:
    """The file's tensors and the network's, paired by names and shapes."""

    matched: tuple[tuple[str, str, Tensor], ...]  # our name, theirs, the tensor
    mismatched: tuple[tuple[str, Shape, str, Shape], ...]  # likeliest partners of another shape
    missing: tuple[tuple[str, Shape], ...]  # (name, shape) of the network that the file lacks
    unexpected: tuple[tuple[str, Shape], ...]  # (name, shape) of the file that the network has no place for
    foreign: tuple[str, ...] = ()  # classes and functions outside torch that a pickle names; none was imported

    @property
    def shapes_fit(self) -> bool:
        """True if every tensor has its place. Networks may still compute differently: compare their answers."""
        return not (self.mismatched or self.missing or self.unexpected)

    def __str__(self) -> str:
        lines = [
            f"{len(self.matched)} tensors match by name and shape; only answers show whether they compute the same"
        ]
        lines += [f"  = {own} <- {theirs} {tuple(tensor.shape)}" for own, theirs, tensor in self.matched]
        lines += [f"  ! {own} {a} against {theirs} {b}: other shape" for own, a, theirs, b in self.mismatched]
        lines += [f"  - {own} {shape} is missing in the file" for own, shape in self.missing]
        lines += [f"  + {theirs} {shape} of the file has no place" for theirs, shape in self.unexpected]
        lines += [f"  ? {name} is named in the file, and was not imported" for name in self.foreign]
        return "\n".join(lines)


def compare_with(net: MultiExitNet, tensors: Mapping[str, Tensor]) -> TensorReport:
    """Find the place of each of `tensors` in `net` by names and shapes, layer by layer.

    A layer (the tensors of one prefix) goes to the network's layer of its name if all shapes agree, else to the first
    free one with the same kinds of tensors of the same shapes: networks built alike list their layers in the same
    order, whatever the names. What is left is compared with the first layer of the same kinds of tensors. BatchNorm's
    counters are left out. Prefixes of `torch.compile`, `DataParallel` and `AveragedModel` do not count.

    Layers without weights, such as shortcuts that pad, leave no trace in the report.
    """
    own, theirs = _layers(net.state_dict()), _layers(plain_names(tensors))
    same = {name: name for name in own if name in theirs and _shapes(own[name]) == _shapes(theirs[name])}
    same |= _pair(own, theirs, same, _shapes)
    alike = same | _pair(own, theirs, same, _dimensions)
    matched, mismatched = [], []
    for name in (name for name in own if name in alike):
        for kind, tensor in own[name].items():
            found = theirs[alike[name]][kind]
            ours, other = _join(name, kind), _join(alike[name], kind)
            if tensor.shape == found.shape:
                matched.append((ours, other, found))
            else:
                mismatched.append((ours, tuple(tensor.shape), other, tuple(found.shape)))
    return TensorReport(
        tuple(matched),
        tuple(mismatched),
        missing=_listed(own, set(own) - set(alike)),
        unexpected=_listed(theirs, set(theirs) - set(alike.values())),
        foreign=getattr(tensors, "foreign", ()),
    )


def mapped_tensors(net: MultiExitNet, report: TensorReport) -> dict[str, Tensor]:
    """Return the file's tensors under the network's names, with pyramid heads scaled as in the file's network.

    Our pyramid head scales its pooled cells before the linear layer, others do not: the layer's weights are divided
    by the same numbers.
    """
    if not report.shapes_fit:
        raise ValueError(f"the file holds another network, tensor by tensor:\n{report}")
    counters = {name: tensor for name, tensor in net.state_dict().items() if name.endswith(_COUNTER)}
    tensors = counters | {own: tensor.float() for own, _, tensor in report.matched}
    for unit, head in net.exits.items():
        if hasattr(head, "scale"):
            name = f"exits.{unit}.linear.weight"
            tensors[name] = tensors[name] / head.scale
    return tensors


_COUNTER = "num_batches_tracked"


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, Layer]:
    """Group tensors: prefix -> kind (weight, bias, running_mean, ...) -> tensor."""
    layers: dict[str, Layer] = {}
    for name, tensor in tensors.items():
        prefix, _, kind = name.rpartition(".")
        if kind != _COUNTER:
            layers.setdefault(prefix, {})[kind] = tensor
    return layers


def _shapes(layer: Layer) -> object:
    return sorted((kind, tuple(tensor.shape)) for kind, tensor in layer.items())


def _dimensions(layer: Layer) -> object:
    return sorted((kind, tensor.ndim) for kind, tensor in layer.items())


def _pair(
    own: Mapping[str, Layer], theirs: Mapping[str, Layer], paired: Mapping[str, str], looks: Callable[[Layer], object]
) -> dict[str, str]:
    """Pair the first of ours with the first of theirs that looks like it, and so on."""
    taken = set(paired.values())
    free = [name for name in theirs if name not in taken]
    pairs = {}
    for name in (name for name in own if name not in paired):
        partner = next((other for other in free if looks(theirs[other]) == looks(own[name])), None)
        if partner is not None:
            free.remove(partner)
            pairs[name] = partner
    return pairs


def _listed(layers: Mapping[str, Layer], names: set[str]) -> tuple[tuple[str, Shape], ...]:
    return tuple(
        (_join(name, kind), tuple(tensor.shape))
        for name, layer in layers.items()
        if name in names
        for kind, tensor in layer.items()
    )


def _join(prefix: str, kind: str) -> str:
    return f"{prefix}.{kind}" if prefix else kind
