"""Stages in eager torch."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from eeutils.engines.registry import Engine, Settings, Stages
from eeutils.models import MultiExitNet
from eeutils.models.memory import device_and_dtype
from eeutils.models.multiexit import Features, Stage, begins_in_place, map_tensors

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Run = Callable[[Features], tuple[Features, Tensor]]


def prepare(net: MultiExitNet, images: Tensor, settings: Settings) -> Stages:
    """Run the units and heads one after the other."""
    net.to(settings.device, DTYPES.get(settings.precision))  # if None, each part keeps its own
    return torch_stages(net, settings, [_run(stage) for stage in with_packed_convolutions(net).stages()])


def torch_stages(net: MultiExitNet, settings: Settings, run: Sequence[Run]) -> Stages:
    """The stages `run` of `net`, which is where `settings` say, on tensors."""
    read = partial(
        Tensor.to,
        device=settings.device,
        dtype=device_and_dtype(net)[1],
        memory_format=torch.channels_last,
        copy=begins_in_place(net.units[0]),  # else it would write into the caller's images
    )
    return Stages(read, tuple(run), take)


def take(features: Features, index: Tensor) -> Features:
    """The features of the images at `index`."""
    return map_tensors(partial(_rows, index=index), features)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """In channels-last memory each image is one run of bytes to copy."""
    if x.ndim != 4:
        return x.index_select(0, index)
    return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)


def _run(stage: Stage) -> Run:
    def run(x: Features) -> tuple[Features, Tensor]:
        x = stage.features(x)
        return x, stage.answer(x).float()  # scores of 16 bits would all be 1 from 0.998 on

    return run


class PackedConv2d(nn.Conv2d):
    """A convolution on the CPU, for inference; one image takes two thirds of the time in a ResNet18 of width 32.

    It keeps the attributes of `conv`, which some networks read.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        nn.Module.__init__(self)
        vars(self).update(vars(conv))
        self.geometry = conv.padding, conv.stride, conv.dilation, conv.groups
        self.packed = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, *self.geometry, None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(x, self.packed, self.bias, *self.geometry, "none", [], "")


def with_packed_convolutions(net: MultiExitNet) -> MultiExitNet:
    """Return `net` with packed convolutions where it is on a CPU; other weights are shared."""
    copy = deepcopy(net, {id(tensor): tensor for tensor in chain(net.parameters(), net.buffers())})
    for name, layer in list(copy.named_modules()):
        if _can_be_packed(layer):
            copy.set_submodule(name, PackedConv2d(layer))
    return copy


def _can_be_packed(layer: nn.Module) -> bool:
    if type(layer) is not nn.Conv2d or layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return False
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str) or layer.weight.device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available():
        return False
    # Packed weights of 96 or 192 channels fall into a kernel that is 20 to 60 times as slow for one image.
    if any(channels & (channels - 1) for channels in (max(layer.in_channels, 4), layer.out_channels)):
        return False
    dtype = layer.weight.dtype
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


ENGINE = Engine(prepare, ("fp32", "bf16"), ("cpu", "cuda"), per_shape=False)
