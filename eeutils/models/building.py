"""What every builder of a network does."""

from torch import nn

from eeutils.models.multiexit import MultiExitNet


def check_positive(**values: int) -> None:
    """See that arguments which count something are 1 or more.

    Raises:
        ValueError: that names the first one which is not.
    """
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


def initialise(net: MultiExitNet) -> MultiExitNet:
    """Give the convolutions of `net` weights that keep the size of gradients (He et al., 2015); returns `net`."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
