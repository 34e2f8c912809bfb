"""Stages as ONNX models, for the engines that read them."""

import logging
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eeutils.models import MultiExitNet, StageModule, stage_modules
from eeutils.models.multiexit import Features, map_tensors, tensors_of

OPSET = 18
_EXPORTER = threading.Lock()  # torch.export fails if two threads ask it at once


class _Flat(nn.Module):
    """A part of a network between lists of tensors, whatever it takes and gives: ONNX knows no other."""

    def __init__(self, part: nn.Module, given: Features) -> None:
        super().__init__()
        self.part, self.template = part, map_tensors(lambda tensor: tensor.to("meta"), given)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        remaining = iter(tensors)
        return tuple(tensors_of(self.part(map_tensors(lambda _: next(remaining), self.template))))


class _LogitsOnly(nn.Module):
    """The last stage, whose features nobody reads."""

    def __init__(self, stage: StageModule) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Features) -> Tensor:
        return self.stage(x)[1]


@torch.no_grad()
def to_onnx(net: MultiExitNet, images: Tensor) -> list[bytes]:
    """`net` in float32 as one ONNX model a stage, for `images` (n, C, H, W) of this shape, any number of them.

    The first stage takes `images`, the others `features0, ...`; all give `handed_on0, ..., logits`, the last only
    `logits`.
    """
    # Contiguous, as others expect weights to lie; two images, because torch.export makes a constant of one.
    net = net.float().cpu().to(memory_format=torch.contiguous_format)
    x = images.float().cpu().expand(2, *images.shape[1:]).contiguous()
    stages, models = stage_modules(net), []
    for index, stage in enumerate(stages):
        handed_on = stage(x)[0]
        part = _LogitsOnly(stage) if index == len(stages) - 1 else stage
        try:
            models.append(_exported(part, x, "features" if index else "images"))
        except Exception as error:  # of many kinds, by what is not supported
            raise ValueError(_reason(stage, x, error)) from error
        x = handed_on
    return models


def as_array(images: Tensor) -> np.ndarray:
    """Images (n, C, H, W) in float32, as ONNX takes them."""
    return np.ascontiguousarray(images.float().numpy(force=True))


def _exported(part: nn.Module, x: Features, name: str = "x") -> bytes:
    tensors, flat = tensors_of(x), _Flat(part, x).eval()
    num_images = torch.export.Dim("num_images")
    outputs = len(flat(*tensors))
    return onnx_bytes(
        flat,
        tuple(tensors),
        dynamic_shapes=(tuple({0: num_images} for _ in tensors),),
        input_names=[name if name == "images" else f"{name}{index}" for index in range(len(tensors))],
        output_names=[*(f"handed_on{index}" for index in range(outputs - 1)), "logits"],
    )


def onnx_bytes(module: nn.Module, inputs: tuple[Tensor, ...], **names_and_shapes: Any) -> bytes:
    """`module` as an ONNX model, without anything about this machine in it."""
    with _EXPORTER, _quiet():
        program = torch.onnx.export(
            module, inputs, opset_version=OPSET, external_data=False, verbose=False, **names_and_shapes
        )
    model = program.model_proto
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.initializer, model.graph):
        part.ClearField("metadata_props")  # stack traces, with the paths of this machine
    return model.SerializeToString()


def _reason(stage: StageModule, x: Features, error: Exception) -> str:
    """Name the first part of `stage` that cannot be exported, and the operator."""
    for unit in stage.units:
        if why := _failure(unit, x):
            return f"unit {type(unit).__name__} must export to ONNX, got {why}"
        x = unit(x)
    why = _failure(stage.head, x) or _operator(error)
    return f"exit {type(stage.head).__name__} must export to ONNX, got {why}"


def _failure(part: nn.Module, x: Features) -> str | None:
    try:
        _exported(part, x)
    except Exception as error:
        return _operator(error)
    return None


def _operator(error: BaseException | None) -> str:
    """The operator that an error of the exporter or of its causes is about, else the error itself."""
    text = []
    while error is not None:
        text.append(str(error))
        error = error.__cause__
    found = re.search(r"(?:aten|torchvision|prims|\w+_?ops?)(?:\.|::)\w+(?:\.\w+)?", "\n".join(reversed(text)))
    return f"operator {found[0]}" if found else text[0].strip().splitlines()[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and its deprecations inside torch."""
    names: Sequence[str] = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
