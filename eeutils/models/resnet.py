"""ResNet18 and ResNet56 with exits (He et al., CVPR 2016, arXiv 1512.03385).

Units of ResNet18: 0 is the stem; 1-2, 3-4, 5-6 and 7-8 are the two basic blocks of layer1, layer2, layer3 and layer4.
With the CIFAR stem an image has paid 27.5 % of the network's multiply-adds after layer1, 51.7 % after layer2 and
75.8 % after layer3. By default exits stand after layer2 (two exits), or one block into layer2 and one block into layer3
(three exits), at 39 % and 63 % of the cost. `tools/benchmarks` measures all places, results/README.md has the outcome.
An exit one block into a stage reads a map that has just become smaller and twice as deep, which helps it more than
another block at the old size would.

Units of ResNet56: 0 is the stem; 1-9, 10-18 and 19-27 are the basic blocks of the three stages. Shortcuts that change
the shape have no parameters (option A of the paper, section 4.2). The authors of Shallow-Deep Networks put a 1x1
convolution with a norm there (option B), and let the stem halve images of 64 pixels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from eeutils.models.exits import average_pool_exit, with_heads
from eeutils.models.layers import conv_norm, conv_norm_act
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import check_positive, register_model
from eeutils.models.sdn import shallow_deep


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (figure 2 of the paper).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: of the first convolution.
        shortcut: module on the shortcut; by default nothing, or where the shape changes a 1x1 convolution with a norm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_norm_act(in_channels, out_channels, 3, stride),
            *conv_norm(out_channels, out_channels, 3),
        )
        if shortcut is None:
            same_shape = stride == 1 and in_channels == out_channels
            shortcut = nn.Identity() if same_shape else conv_norm(in_channels, out_channels, 1, stride)
        self.shortcut = shortcut
        # All ReLUs are modules, because guided backpropagation hooks them.
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), sizes rounded up."""
        return self.activation(self.residual(x) + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """Shortcut without parameters: every `stride`-th pixel, new channels zero."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), sizes rounded up."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


@register_model
def resnet18(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 64,
    image_size: int = 32,
    pool: str | None = "avg",
    stem: str = "cifar",
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """ResNet18 with its own classifier as the only exit, unless `exit_after` asks for more.

    Args:
        num_classes: logits per image.
        in_channels: channels of an image.
        width: channels of layer1; 64 is the published network, cost grows with its square.
        image_size: pixels of an image's shorter side, which "mixed" heads depend on; the network reads any size.
        pool: the heads of all exits, the last included: one of `list_pools()` for all, or one each, shallowest first,
            joined by "+", such as "conv+spp+avg". None puts internal classifiers before the network's own classifier.
        stem: "cifar" (3x3, stride 1: small images) or "imagenet" (7x7 and max-pooling, stride 4 together).
        exit_after: units (0 to 7) that get an early exit.

    Raises:
        ValueError: if a value is not one of the above.
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, width=width, image_size=image_size)
    first, size = _stem(stem, in_channels, width, image_size)
    units, maps, channels = [first], [(width, size)], width
    for layer in range(4):
        for block in range(2):
            out_channels, stride = width * 2**layer, 2 if layer > 0 and block == 0 else 1
            units.append(BasicBlock(channels, out_channels, stride))
            channels, size = out_channels, -(-size // stride)  # rounded up
            maps.append((channels, size))
    own = average_pool_exit(channels, num_classes)
    return with_heads(units, maps, own, num_classes=num_classes, exit_after=exit_after, pool=pool)


@register_model
def resnet18_2exits(*, exit_after: Sequence[int] = (4,), **kwargs: Any) -> MultiExitNet:
    """`resnet18` with one early exit, by default after layer2."""
    return _with_early_exits(1, exit_after, kwargs)


@register_model
def resnet18_3exits(*, exit_after: Sequence[int] = (3, 5), **kwargs: Any) -> MultiExitNet:
    """`resnet18` with two early exits, by default one block into layer2 and one block into layer3."""
    return _with_early_exits(2, exit_after, kwargs)


@register_model
def resnet18_sdn(*, pool: str = "mixed", exit_after: Sequence[int] | None = None, **kwargs: Any) -> MultiExitNet:
    """`resnet18` as a Shallow-Deep Network, see `shallow_deep`."""
    return shallow_deep(resnet18, pool=pool, exit_after=exit_after, **kwargs)


@register_model
def resnet56(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    image_size: int = 32,
    pool: str | None = None,
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """ResNet56 with its own classifier as the only exit, unless `exit_after` asks for more.

    Args:
        num_classes: logits per image.
        in_channels: channels of an image.
        width: channels of the first stage; 16 is the published network.
        image_size: pixels of an image's shorter side, which "mixed" heads depend on; the network reads any size.
        pool: as for `resnet18`.
        exit_after: units (0 to 26) that get an early exit.

    Raises:
        ValueError: if a value is not one of the above.
    """
    check_positive(num_classes=num_classes, in_channels=in_channels, width=width, image_size=image_size)
    units, maps, channels, size = [conv_norm_act(in_channels, width, 3)], [(width, image_size)], width, image_size
    for stage in range(3):
        for block in range(9):
            out_channels, stride = width * 2**stage, 2 if stage > 0 and block == 0 else 1
            shortcut = PaddedShortcut(channels, out_channels, stride) if stride > 1 else None
            units.append(BasicBlock(channels, out_channels, stride, shortcut))
            channels, size = out_channels, -(-size // stride)
            maps.append((channels, size))
    own = average_pool_exit(channels, num_classes)
    return with_heads(units, maps, own, num_classes=num_classes, exit_after=exit_after, pool=pool)


@register_model
def resnet56_sdn(*, pool: str = "mixed", exit_after: Sequence[int] | None = None, **kwargs: Any) -> MultiExitNet:
    """`resnet56` as a Shallow-Deep Network, see `shallow_deep`."""
    return shallow_deep(resnet56, pool=pool, exit_after=exit_after, **kwargs)


def _with_early_exits(count: int, exit_after: Sequence[int], kwargs: dict[str, Any]) -> MultiExitNet:
    net = resnet18(exit_after=exit_after, **kwargs)
    if net.num_exits != count + 1:
        raise ValueError(f"exit_after must name {count} units, got {exit_after!r}")
    return net


def _stem(name: str, in_channels: int, width: int, image_size: int) -> tuple[nn.Module, int]:
    """Build the first unit; return it with the size of its map."""
    if name == "cifar":
        return conv_norm_act(in_channels, width, 3), image_size
    if name == "imagenet":
        stem = conv_norm_act(in_channels, width, 7, stride=2).append(nn.MaxPool2d(3, stride=2, padding=1))
        return stem, -(-image_size // 4)
    raise ValueError(f"stem must be 'cifar' or 'imagenet', got {name!r}")
