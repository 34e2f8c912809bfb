"""WideResNet32-4 (Zagoruyko & Komodakis, BMVC 2016, arXiv 1605.07146).

Units: 0 is the stem; 1-5, 6-10 and 11-15 are the pre-activation blocks of the three stages. The norm and ReLU after the
last block belong to the network's own classifier; early exits read the maps of the blocks without them.

The code of Shallow-Deep Networks differs: the second convolution of a block has the stride, where here the first has
it; shortcuts project the block's input before the norm; convolutions have biases; the stem halves images of 64 pixels.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from eeutils.models.exits import with_heads
from eeutils.models.layers import conv_norm_act
from eeutils.models.multiexit import MultiExitNet
from eeutils.models.registry import register_model
from eeutils.models.sdn import shallow_deep


class PreActivationBlock(nn.Module):
    """Norm, ReLU and convolution, twice, with dropout between, around a shortcut without activation.

    The output is not normalised: its readers do that.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, H / stride, W / stride), sizes rounded up.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True))
        self.residual = nn.Sequential(
            *conv_norm_act(in_channels, out_channels, 3, stride),
            nn.Dropout(dropout),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        same_shape = stride == 1 and in_channels == out_channels
        self.projection = None if same_shape else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(x)
        shortcut = x if self.projection is None else self.projection(active)
        return self.residual(active) + shortcut


@register_model
def wideresnet32_4(
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    image_size: int = 32,
    dropout: float = 0.3,
    pool: str | None = None,
    exit_after: Sequence[int] = (),
) -> MultiExitNet:
    """WideResNet32-4 with its own classifier as the only exit, unless `exit_after` (units 0 to 14) asks for more.

    Arguments as for `create_model`; `width` is that of the stem, the stages have 4, 8 and 16 times as many channels.
    `dropout` is the share of activations dropped between the two convolutions of a block.
    """
    units: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False)]
    channels = width
    for stage in range(3):
        for block in range(5):
            out_channels, stride = 4 * width * 2**stage, 2 if stage > 0 and block == 0 else 1
            units.append(PreActivationBlock(channels, out_channels, stride, dropout))
            channels = out_channels
    last = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    classifier = nn.Sequential(*last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    return with_heads(units, classifier, exit_after, (in_channels, image_size, image_size), pool, num_classes)


wideresnet32_4_sdn = shallow_deep(wideresnet32_4)
