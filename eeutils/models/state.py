"""Which parts of a network are its weights."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

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
