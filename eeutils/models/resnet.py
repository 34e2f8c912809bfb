"""ResNet18 and ResNet56 with exits (He et al., CVPR 2016, arXiv 1512.03385).

Units of ResNet18: 0 is the stem; 1-2, 3-4, 5-6 and 7-8 are the two basic blocks of layer1, layer2, layer3 and layer4.
With the CIFAR stem an image has paid 27.5 % of the network's multiply-adds after layer1, 51.7 % after layer2 and
75.8 % after layer3. By default exits stand after layer2 (two exits), or one block into layer2 and one block into layer3
(three exits), at 39 % and 63 % of the cost: there a map has just become smaller and twice as deep, which helps an exit
more than another block at the old size would. `tools/benchmarks` measures all places; see results/README.md.

Units of ResNet56: 0 is the stem; 1-9, 10-18 and 19-27 are the basic blocks of the three stages. Shortcuts that change
the shape have no parameters (option A of the paper, section 4.2). The authors of Shallow-Deep Networks put a 1x1
convolution with a norm there (option B), and let the stem halve images of 64 pixels.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from eeutils.fields import check_choice
from eeutils.models.exits import with_heads
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import register_model
from eeutils.models.sdn import shallow_deep


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut (figure 2 of the paper).

    Where the shape changes, the shortcut is by default a 1x1 convolution with a norm.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), sizes rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
        )
        if shortcut is None and (stride, in_channels) != (1, out_channels):
            projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            shortcut = nn.Sequential(projection, nn.BatchNorm2d(out_channels))
        self.shortcut = shortcut or nn.Identity()
        self.activation = nn.ReLU(inplace=True)  # a module, because guided backpropagation hooks it

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.residual(x) + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """Shortcut without parameters: every `stride`-th pixel, new channels zero."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
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
    """ResNet18 with its own classifier as the only exit, unless `exit_after` (units 0 to 7) asks for more.

    Arguments as for `create_model`; `width` is that of layer1. `stem` is "cifar" (3x3, stride 1: small images) or
    "imagenet" (7x7 and max-pooling, stride 4 together).
    """
    units, channels = [_stem(stem, in_channels, width)], width
    for layer in range(4):
        for block in range(2):
            out_channels, stride = width * 2**layer, 2 if layer > 0 and block == 0 else 1
            units.append(BasicBlock(channels, out_channels, stride))
            channels = out_channels
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    return with_heads(units, classifier, exit_after, (in_channels, image_size, image_size), pool, num_classes)


@register_model
def resnet18_2exits(*, exit_after: Sequence[int] = (4,), **kwargs: Any) -> MultiExitNet:
    """`resnet18` with one early exit, by default after layer2."""
    return resnet18(exit_after=exit_after, **kwargs)


@register_model
def resnet18_3exits(*, exit_after: Sequence[int] = (3, 5), **kwargs: Any) -> MultiExitNet:
    """`resnet18` with two early exits, by default one block into layer2 and one block into layer3."""
    return resnet18(exit_after=exit_after, **kwargs)


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
    """ResNet56 with its own classifier as the only exit, unless `exit_after` (units 0 to 26) asks for more.

    Arguments as for `create_model`; `width` is that of the first stage.
    """
    units, channels = [_stem("cifar", in_channels, width)], width
    for stage in range(3):
        for block in range(9):
            out_channels, stride = width * 2**stage, 2 if stage > 0 and block == 0 else 1
            shortcut = PaddedShortcut(channels, out_channels, stride) if stride > 1 else None
            units.append(BasicBlock(channels, out_channels, stride, shortcut))
            channels = out_channels
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    return with_heads(units, classifier, exit_after, (in_channels, image_size, image_size), pool, num_classes)


def _stem(name: str, in_channels: int, width: int) -> nn.Sequential:
    check_choice("stem", name, ["cifar", "imagenet"])
    kernel, stride = (3, 1) if name == "cifar" else (7, 2)
    convolution = nn.Conv2d(in_channels, width, kernel, stride, padding=kernel // 2, bias=False)
    stem = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True))
    return stem if name == "cifar" else stem.append(nn.MaxPool2d(3, stride=2, padding=1))


resnet18_sdn = shallow_deep(resnet18)
resnet56_sdn = shallow_deep(resnet56)
