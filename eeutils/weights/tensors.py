"""Loading files of tensors into networks, with errors that name the tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from eeutils.errors import IntegrityError, a_few
from eeutils.models import MultiExitNet, create_model
from eeutils.models.memory import named_weights

_COMPILED = "_orig_mod."  # torch.compile puts it before the names of all that is in a module


def untrained_network(model: str, model_args: Mapping[str, Any]) -> MultiExitNet:
    """A network to put tensors into; the caller's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        return create_model(model, **model_args)


def stored_network(model: str, model_args: Mapping[str, Any], path: Path) -> MultiExitNet:
    """A network with the weights of a safetensors file.

    Raises:
        FileNotFoundError, IntegrityError, ValueError: as `read_tensors` and `put_tensors` do.
    """
    net = untrained_network(model, model_args)
    put_tensors(net, read_tensors(path), str(path))
    return net


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; half precision comes back as float32.

    Raises:
        FileNotFoundError: if there is no such file.
        IntegrityError: if it is truncated or no safetensors file.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise IntegrityError(f"{path} is not a readable safetensors file: {error}") from error
    return {name: tensor.float() if tensor.dtype == torch.float16 else tensor for name, tensor in tensors.items()}


def stored_tensors(net: MultiExitNet) -> dict[str, Tensor]:
    """What a file keeps of `net`: copies, as safetensors takes no tied weights, named as if nothing were compiled."""
    return {
        _plain(name): tensor.clone(memory_format=torch.contiguous_format) for name, tensor in net.state_dict().items()
    }


def put_tensors(net: MultiExitNet, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Give `net` the weights `tensors`; they must be exactly its own, finite (`named_weights`), and of its shapes.

    Either may be of a compiled network.

    Raises:
        ValueError: if not; it names the tensors (a few of each kind), and nothing was changed.
    """
    own = {_plain(name): tensor for name, tensor in net.state_dict().items()}
    tensors = {_plain(name): tensor for name, tensor in tensors.items()}
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
        "NaN or infinite": [name for name in both if name in weights and not tensors[name].isfinite().all()],
    }
    if any(complaints.values()):
        listed = "; ".join(f"{kind}: {a_few(names)}" for kind, names in complaints.items() if names)
        raise ValueError(f"the weights in {origin} do not fit the network: {listed}")
    net.load_state_dict({name: tensors[_plain(name)] for name in net.state_dict()})


def _plain(name: str) -> str:
    return name.replace(_COMPILED, "")
