"""AirNet, a small and fast network for images of 32 x 32 pixels, after cifar10-airbench (Jordan, arXiv 2404.00498).

Units: 0 whitens patches of 2 x 2 pixels with filters computed from the training images, not trained; 1-2, 3-4 and 5-6
are three groups of two 3x3 convolutions, each pooled to half its size after the first. On CIFAR an image has paid 19 %
of the multiply-adds after the first group and 71 % after the second, where the early exits of `airnet_3exits` stand.

As in airbench, norms have no scale and forget their statistics quickly, and convolutions start as identities. Unlike
there, the last map is read by a head of `create_exit`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eeutils.models.contracts import check_units
from eeutils.models.exits import fresh_exits
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import register_model

_LAST_UNIT = 6
_PATCH = 2
_NORM_MOMENTUM = 0.4  # the statistics of a few batches: weights move fast in a short run


class Whitening(nn.Conv2d):
    """2x2 filters that make the pixels of a patch uncorrelated, and their negatives; only the bias is trained.

    Filters are random until `whiten` sets them.

    Shapes: (N, C, H, W) -> (N, 8 * C, H - 1, W - 1).
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 2 * in_channels * _PATCH**2, _PATCH)
        self.weight.requires_grad_(False)
        nn.init.zeros_(self.bias)
        self.register_buffer("is_set", torch.tensor(False))

    @torch.no_grad()
    def whiten(self, images: Tensor) -> None:
        """Compute the filters from normalised `images` (N, C, H, W), once."""
        if self.is_set:
            return
        patches = nn.functional.unfold(images, _PATCH).transpose(1, 2).flatten(0, 1)  # (patches, pixels)
        variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (directions / (variances + 5e-4).sqrt()).T.reshape(-1, *self.weight.shape[1:])
        self.weight.copy_(torch.cat([filters, -filters]))
        self.is_set.fill_(True)


def whiten(net: MultiExitNet, images: Tensor) -> None:
    """Set the filters of `Whitening` layers, once, from normalised training images (N, C, H, W), as `fit` does."""
    for module in net.modules():
        if isinstance(module, Whitening):
            module.whiten(images)


@register_model
def airnet(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    image_size: int = 32,
    pool: str = "avg",
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """AirNet with its own classifier as the only exit, unless `exit_after` (units 0 to 5) asks for more.

    Arguments as for `create_model`; `width` is that of the first group, a quarter of that of the others. The network
    reads images from 9 pixels on, and `pool` names the last head as well.
    """
    check_units("exit_after", exit_after, range(_LAST_UNIT))
    stem = nn.Sequential(Whitening(in_channels), nn.GELU())
    units, channels = [stem], stem[0].out_channels
    for out_channels in (width, 4 * width, 4 * width):
        units += [_layer(channels, out_channels, pooled=True), _layer(out_channels, out_channels, pooled=False)]
        channels = out_channels
    places, image_shape = [*exit_after, _LAST_UNIT], (in_channels, image_size, image_size)
    return MultiExitNet(units, fresh_exits(units, places, image_shape, pool, num_classes))


@register_model
def airnet_3exits(*, exit_after: Sequence[int] = (2, 4), pool: str = "conv+spp+spp", **kwargs: Any) -> MultiExitNet:
    """`airnet` with two early exits, after the first and the second group unless `exit_after` says otherwise."""
    return airnet(exit_after=exit_after, pool=pool, **kwargs)


def _layer(in_channels: int, out_channels: int, *, pooled: bool) -> nn.Sequential:
    """A convolution that starts as the identity, max-pooling if `pooled`, a norm without scale, and a GELU."""
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight[:in_channels])
    norm = nn.BatchNorm2d(out_channels, momentum=_NORM_MOMENTUM)
    norm.weight.requires_grad_(False)
    return nn.Sequential(convolution, *[nn.MaxPool2d(2)] * pooled, norm, nn.GELU())
