"""Layouts of features: channels first, channels last, tokens."""

import math
from collections.abc import Callable

from torch import Tensor, nn

from eeutils.models.multiexit import Features

LAYOUTS = ("NCHW", "NHWC", "NLC", "NC")
_USUAL_PREFIXES = (0, 1, 2)  # no class token, one, and one more of distillation


class MapReader(nn.Module):
    """Bring what a unit hands on into the shape (N, C, H, W) that heads read.

    Args:
        layout: of the named layer's features, one of `LAYOUTS`: channels first or last, tokens, or no places at all.
        prefix_tokens: class and register tokens before those of the image; heads do not read them.
        copied: read a copy, because the next unit works in place.

    Shapes: a tensor, or a tuple that starts with it -> (N, C, H, W).
    """

    def __init__(self, layout: str, prefix_tokens: int = 0, copied: bool = False) -> None:
        super().__init__()
        self.layout, self.prefix_tokens, self.copied = layout, prefix_tokens, copied

    def forward(self, features: Features) -> Tensor:
        x = features if isinstance(features, Tensor) else features[0]
        if self.copied:
            x = x.clone()
        if self.layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        if self.layout == "NLC":
            x = x[:, self.prefix_tokens :]
            return x.transpose(1, 2).unflatten(2, (math.isqrt(x.shape[1]), -1))
        return x[:, :, None, None] if self.layout == "NC" else x

    def extra_repr(self) -> str:
        return f"{self.layout}, prefix_tokens={self.prefix_tokens}"


def recognise_layout(
    network: nn.Module, shape: tuple[int, ...], grown: Callable[[], tuple[int, ...] | None]
) -> str | None:
    """Return the layout of features of `shape`, one of `LAYOUTS`; None if it is not certain.

    Square images make square maps, which tells channels from places. Where both are as many, larger images do, or the
    widths that the network normalises.

    Args:
        network: the network that they are from.
        shape: images first.
        grown: asks for the shape that larger images have; None if the network reads none.
    """
    if len(shape) == 2:
        return "NC"
    if len(shape) == 3:
        return "NLC" if _are_tokens(network, *shape[1:]) else None
    square = {"NCHW": shape[2:], "NHWC": shape[1:3]} if len(shape) == 4 else {}
    fitting = [layout for layout, places in square.items() if len(set(places)) == 1]
    if len(fitting) == 2 and (larger := grown()) is not None:
        fitting = [layout for layout in fitting if larger[layout.index("C")] == shape[layout.index("C")]]
    return fitting[0] if len(fitting) == 1 else None


def prefix_tokens(network: nn.Module, length: int) -> int | None:
    """Return the number of tokens before those of a square image; None if `length` does not tell."""
    counts = (getattr(network, "num_prefix_tokens", 0), *_USUAL_PREFIXES)
    return next((count for count in counts if math.isqrt(max(0, length - count)) ** 2 == length - count > 0), None)


def _are_tokens(network: nn.Module, length: int, channels: int) -> bool:
    if prefix_tokens(network, length) is None:
        return False
    if prefix_tokens(network, channels) is None:
        return True
    widths = {layer.normalized_shape[-1] for layer in network.modules() if hasattr(layer, "normalized_shape")}
    widths = widths or {layer.in_features for layer in network.modules() if isinstance(layer, nn.Linear)}
    return channels in widths and length not in widths
