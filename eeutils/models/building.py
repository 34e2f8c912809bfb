"""What every builder of a network does."""

from typing import TypeVar

from torch import nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def check_positive(**values: int) -> None:
    """See that arguments which count something are 1 or more.

    Raises:
        ValueError: that names the first one which is not.
    """
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value}")


def initialise(module: ModuleT) -> ModuleT:
    """Give the convolutions in `module` weights that keep the size of gradients (He et al., 2015); returns `module`."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return module
