"""Tensors of files into networks and back."""

import re
from collections.abc import Mapping
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
