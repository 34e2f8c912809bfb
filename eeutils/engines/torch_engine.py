"""Stages in eager torch."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from eeutils.engines.packing import with_packed_convolutions
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


ENGINE = Engine(prepare, ("fp32", "bf16"), ("cpu", "cuda"), per_shape=False)
