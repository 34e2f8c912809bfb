"""Tensors of files into networks and back, also from the files of another implementation."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eeutils.errors import a_few, require
from eeutils.files import load_tensors
from eeutils.models import MultiExitNet, create_model
from eeutils.models.memory import named_weights

# What torch.compile, DataParallel and AveragedModel put before the names of all that is in a module.
_WRAPPERS = re.compile(r"(?<![^.])(?:(?:_orig_mod|module)\.)+")


def untrained_network(model: str, model_args: Mapping[str, Any]) -> MultiExitNet:
    """Build a network to put tensors into; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        return create_model(model, **model_args)


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
    listed = "; ".join(f"{kind}: {a_few(names)}" for kind, names in complaints.items() if names)
    require(not listed, f"the weights in {origin} do not fit the network: {listed}")
    net.load_state_dict({name: tensors[_plain(name)] for name in net.state_dict()})


def put_file(net: MultiExitNet, path: Path) -> None:
    """Give `net` the weights of a safetensors file."""
    put_tensors(net, read_tensors(path), str(path))


def _plain(name: str) -> str:
    return _WRAPPERS.sub("", name)


Shape = tuple[int, ...]
Layer = dict[str, tuple[str, Tensor]]  # kind (weight, bias, running_mean, ...) -> name and tensor
_COUNTER = "num_batches_tracked"


@dataclass(frozen=True)
class TensorReport:
    """The file's tensors and the network's, paired by names and shapes."""

    matched: tuple[tuple[str, str, Tensor], ...]  # our name, theirs, the tensor
    missing: tuple[tuple[str, Shape], ...]  # (name, shape) of the network that the file lacks
    unexpected: tuple[tuple[str, Shape], ...]  # (name, shape) of the file that the network has no place for
    foreign: tuple[str, ...] = ()  # classes and functions outside torch that a pickle names; none was imported

    @property
    def shapes_fit(self) -> bool:
        """True if every tensor has its place. Networks may still compute differently: compare their answers."""
        return not (self.missing or self.unexpected)

    def __str__(self) -> str:
        only = "only answers show whether they compute the same"
        lines = [f"{len(self.matched)} tensors match by name and shape; {only}"]
        lines += [f"  = {own} <- {theirs} {tuple(tensor.shape)}" for own, theirs, tensor in self.matched]
        lines += [f"  - {own} {shape} is missing in the file" for own, shape in self.missing]
        lines += [f"  + {theirs} {shape} of the file has no place" for theirs, shape in self.unexpected]
        lines += [f"  ? {name} is named in the file, and was not imported" for name in self.foreign]
        return "\n".join(lines)


def compare_with(net: MultiExitNet, tensors: Mapping[str, Tensor]) -> TensorReport:
    """Find the place of each of `tensors` in `net` by names and shapes, layer by layer.

    A layer (the tensors of one prefix) goes to the network's layer of its name if all shapes agree, else to the first
    free one with the same kinds of tensors of the same shapes: networks built alike list their layers in the same
    order, whatever the names. BatchNorm's counters and the prefixes of wrappers do not count. Layers without weights,
    such as shortcuts that pad, leave no trace in the report.
    """
    own, theirs = _layers(net.state_dict()), _layers(plain_names(tensors))
    places = {name: name for name, layer in own.items() if name in theirs and _look(layer) == _look(theirs[name])}
    free = [name for name in theirs if name not in places]
    for name in (name for name in own if name not in places):
        partner = next((other for other in free if _look(theirs[other]) == _look(own[name])), None)
        if partner is not None:
            free.remove(partner)
            places[name] = partner
    return TensorReport(
        tuple((name, *theirs[places[at]][kind]) for at in own if at in places for kind, (name, _) in own[at].items()),
        missing=_listed(layer for at, layer in own.items() if at not in places),
        unexpected=_listed(theirs[at] for at in free),
        foreign=getattr(tensors, "foreign", ()),
    )


def mapped_tensors(net: MultiExitNet, report: TensorReport) -> dict[str, Tensor]:
    """Return the file's tensors under the network's names, with pyramid heads scaled as in the file's network.

    Our pyramid head scales its pooled cells before the linear layer, others do not: the layer's weights are divided
    by the same numbers.
    """
    if not report.shapes_fit:  # not `require`, which would list all tensors each time
        raise ValueError(f"the file holds another network, tensor by tensor:\n{report}")
    counters = {name: tensor for name, tensor in net.state_dict().items() if name.endswith(_COUNTER)}
    tensors = counters | {own: tensor.float() for own, _, tensor in report.matched}
    for unit, head in net.exits.items():
        if hasattr(head, "scale"):
            name = f"exits.{unit}.linear.weight"
            tensors[name] = tensors[name] / head.scale
    return tensors


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, Layer]:
    """Group tensors by the prefix of their names."""
    layers: dict[str, Layer] = {}
    for name, tensor in tensors.items():
        prefix, _, kind = name.rpartition(".")
        if kind != _COUNTER:
            layers.setdefault(prefix, {})[kind] = name, tensor
    return layers


def _look(layer: Layer) -> dict[str, Shape]:
    return {kind: tuple(tensor.shape) for kind, (_, tensor) in layer.items()}


def _listed(layers: Iterable[Layer]) -> tuple[tuple[str, Shape], ...]:
    return tuple((name, tuple(tensor.shape)) for layer in layers for name, tensor in layer.values())
