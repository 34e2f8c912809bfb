"""Where a network's tensors are, and how they lie in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def a_weight(net: nn.Module) -> Tensor:
    """A tensor that tells where `net` is and what it computes in: of floats, one of its own if it has such.

    Else an empty one, float32 on the CPU.

    Raises:
        ValueError: if a lazy layer does not know yet how large its weights are.
    """
    check_sizes(net)
    floats = (tensor for tensor in _tensors(net) if tensor.is_floating_point())
    return next(floats, torch.empty(0, dtype=torch.float32))


def check_sizes(net: nn.Module) -> None:
    """See that every layer of `net` knows how large its weights are.

    Raises:
        ValueError: if a lazy one does not yet.
    """
    if any(map(is_lazy, _tensors(net))):
        raise ValueError("a lazy layer of the network has no weights yet; call net(images) once first")


def to_channels_last(net: nn.Module) -> None:
    """Lay the tensors of `net` out in channels-last memory, in place, those that have four dimensions.

    `net.to(memory_format=torch.channels_last)` would try it with five as well, and raise. Tensors that share memory
    still do afterwards: those that are one and the same move together, different views stay where they are, and so do
    tensors with gaps or overlaps.
    """
    for tensors in _by_storage(net):
        first = tensors[0]
        if first.ndim == 4 and first.is_contiguous() and len({_view(tensor) for tensor in tensors}) == 1:
            moved = first.data.contiguous(memory_format=torch.channels_last)
            for tensor in tensors:
                tensor.data = moved


@contextmanager
def channels_last(net: nn.Module) -> Iterator[None]:
    """`net` in channels-last memory, in which convolutions are fastest; afterwards in the very memory where it was.

    It is put back because its owner may depend on it: other processes may share that memory, a `state_dict()` may have
    been kept of it, and `safetensors.torch.save_file` takes contiguous tensors only. Not for several threads at once.
    """
    before = [(tensor, tensor.data) for tensor in _tensors_in_memory(net)]
    to_channels_last(net)
    try:
        yield
    finally:
        for tensor, own in before:
            if tensor.data_ptr() != own.data_ptr():
                with torch.inference_mode(own.is_inference()):  # elsewhere such tensors are not written into
                    own.copy_(tensor.data)
                tensor.data = own


def _tensors(net: nn.Module) -> Iterator[Tensor]:
    return chain(net.parameters(), net.buffers())


def _tensors_in_memory(net: nn.Module) -> Iterator[Tensor]:
    """Without those that only stand for others, as quantized weights do, and have no memory of their own."""
    return (tensor for tensor in _tensors(net) if not is_traceable_wrapper_subclass(tensor))


def _by_storage(net: nn.Module) -> list[list[Tensor]]:
    """The tensors of `net`, those that lie in the same memory together."""
    groups = {}
    for tensor in _tensors_in_memory(net):
        groups.setdefault(tensor.untyped_storage().data_ptr() or id(tensor), []).append(tensor)  # 0 where nothing lies
    return list(groups.values())


def _view(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype


_STATISTICS = ("running_mean", "running_var")


def named_weights(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and running statistics under all their names in `state_dict()`: what has to be finite.

    Any other buffer may hold infinities, as an attention mask does.
    """
    yield from net.named_parameters(remove_duplicate=False)
    yield from (named for named in net.named_buffers(remove_duplicate=False) if named[0].endswith(_STATISTICS))


def check_weights(net: nn.Module) -> None:
    """See that the weights of `net` are finite.

    Raises:
        ValueError: that names the first one which is not.
    """
    broken = [name for name, tensor in named_weights(net) if not _is_finite(tensor)]
    if broken:
        count = len(broken)
        raise ValueError(
            f"{count} weights of the network are NaN or infinite, the first is {broken[0]!r}; build or load it anew"
        )


def _is_finite(tensor: Tensor) -> bool:
    if is_traceable_wrapper_subclass(tensor):  # quantized: what it is made of says more than it can
        names, _ = tensor.__tensor_flatten__()
        return all(_is_finite(getattr(tensor, name)) for name in names)
    return bool(tensor.isfinite().all())
