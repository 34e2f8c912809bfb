"""Which parts of a network are its weights."""

from collections.abc import Iterator

from torch import Tensor, nn

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
    broken = [name for name, tensor in named_weights(net) if not tensor.isfinite().all()]
    if broken:
        count = len(broken)
        raise ValueError(
            f"{count} weights of the network are NaN or infinite, the first is {broken[0]!r}; build or load it anew"
        )
