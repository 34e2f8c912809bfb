"""Stages on OpenVINO."""

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache, partial

import numpy as np
import openvino as ov
import torch
from openvino import opset13 as ops
from torch import Tensor

from eeutils.engines.onnx_stages import as_array, to_onnx
from eeutils.engines.openvino_int8 import quantized, redirect
from eeutils.engines.registry import Engine, Settings, Stages
from eeutils.models import MultiExitNet

Tensors = Sequence[ov.Tensor]

# Numbers of images that a stage is compiled for. Fixed shapes are faster, and feature maps of 16 images stay in caches.
_SIZES = (16, 4, 1)
_LARGEST = {ov.Type.f32: np.float32(np.inf), ov.Type.u8: np.uint8(255), ov.Type.i8: np.int8(127)}
_TO_CHANNELS_LAST, _TO_CHANNELS_FIRST = np.array([0, 2, 3, 1]), np.array([0, 3, 1, 2])


def prepare(net: MultiExitNet, images: Tensor, settings: Settings) -> Stages:
    """Convert each stage by way of ONNX; features stay in OpenVINO's own memory."""
    core = ov.Core()
    models = [core.read_model(model) for model in to_onnx(net, images)]
    if settings.precision == "int8":
        models = quantized(models, settings.calibration)
    # In int8 what is not quantized is faster in bf16 where the hardware knows it.
    in_bf16 = settings.precision == "bf16" or (
        settings.precision == "int8" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    )
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": settings.threads,
        "INFERENCE_PRECISION_HINT": "bf16" if in_bf16 else "f32",
    }
    stages = []
    for index, model in enumerate(models):
        model = _as_computed(model, begins_with_images=index == 0, in_bf16=in_bf16)
        stages.append(_Stage(_once(partial(_compiled, core, model, config))))
    return Stages(_read, tuple(stages), _take)


def _compiled(core: ov.Core, model: ov.Model, config: dict[str, object], num_images: int) -> ov.CompiledModel:
    model = model.clone()
    model.reshape({given: [num_images, *list(given.partial_shape)[1:]] for given in model.inputs})
    return core.compile_model(model, "CPU", config)


def _once(compiled: Callable[[int], ov.CompiledModel]) -> Callable[[int], ov.CompiledModel]:
    """`compiled`, called once for each number of images, however many threads ask."""
    known, lock = lru_cache(compiled), threading.Lock()

    def ask(num_images: int) -> ov.CompiledModel:
        with lock:
            return known(num_images)

    return ask


def _as_computed(model: ov.Model, *, begins_with_images: bool, in_bf16: bool) -> ov.Model:
    """`model` with features as OpenVINO computes them, channels last and maybe in bf16; images and logits stay."""
    *handed_on, logits = model.get_results()
    results = [ops.result(_handed_on(each.input_value(0), in_bf16)) for each in handed_on]
    given = model.get_parameters()
    if not begins_with_images:
        given = [_given(each, in_bf16) for each in given]
    return ov.Model([*results, logits], given)


def _handed_on(features: ov.Output, in_bf16: bool) -> ov.Output:
    kind = features.get_element_type()
    if len(features.get_partial_shape()) == 4 and kind in _LARGEST:
        # Without an operation between, OpenVINO does not merge a transposition into a convolution with a sum.
        features = ops.minimum(features, ops.constant(_LARGEST[kind])).output(0)
        features = ops.transpose(features, ops.constant(_TO_CHANNELS_LAST)).output(0)
    return ops.convert(features, ov.Type.bf16).output(0) if in_bf16 and kind == ov.Type.f32 else features


def _given(parameter: ov.Node, in_bf16: bool) -> ov.Node:
    shape, kind = list(parameter.get_partial_shape()), parameter.get_element_type()
    turned = len(shape) == 4 and kind in _LARGEST
    narrow = in_bf16 and kind == ov.Type.f32
    given = ops.parameter(
        ov.PartialShape([shape[axis] for axis in _TO_CHANNELS_LAST] if turned else shape),
        ov.Type.bf16 if narrow else kind,
    )
    features = ops.convert(given, kind) if narrow else given
    features = ops.transpose(features, ops.constant(_TO_CHANNELS_FIRST)) if turned else features
    redirect(parameter.output(0), features.output(0))
    return given


class _Stage(threading.local):
    """A stage in one thread: infer requests by the number of images, and room for outputs.

    Args:
        compiled: number of images -> the stage compiled for it.
    """

    def __init__(self, compiled: Callable[[int], ov.CompiledModel]) -> None:
        self.compiled = compiled
        self.requests: dict[int, ov.InferRequest] = {}
        self.room: list[ov.Tensor] = []
        self.single: tuple[ov.InferRequest, Tensors, Tensor] | None = None  # a request, and its outputs for one image

    def __call__(self, features: Tensors) -> tuple[Tensors, Tensor]:
        num_images = features[0].shape[0]
        if num_images == 1:
            return self._alone(features)
        *handed_on, logits = self._in_parts(features, num_images)
        return handed_on, torch.from_numpy(logits.data)

    def _alone(self, features: Tensors) -> tuple[Tensors, Tensor]:
        if self.single is None:
            request = self.compiled(1).create_infer_request()
            *handed_on, logits = [request.get_output_tensor(index) for index in range(len(request.model_outputs))]
            self.single = request, handed_on, torch.from_numpy(logits.data)
        request, handed_on, logits = self.single
        _infer(request, features)
        return handed_on, logits

    def _in_parts(self, features: Tensors, num_images: int) -> Tensors:
        room, start = self._room_for(num_images), 0
        for size in _SIZES:
            while num_images - start >= size:
                request, end = self._request(size), start + size
                for index, tensor in enumerate(room):
                    request.set_output_tensor(index, _slice(tensor, start, end))
                _infer(request, [_slice(tensor, start, end) for tensor in features])
                start = end
        return [_slice(tensor, 0, num_images) for tensor in room]

    def _request(self, num_images: int) -> ov.InferRequest:
        if num_images not in self.requests:
            self.requests[num_images] = self.compiled(num_images).create_infer_request()
        return self.requests[num_images]

    def _room_for(self, num_images: int) -> list[ov.Tensor]:
        if not self.room or self.room[0].shape[0] < num_images:
            outputs = self._request(1).model_outputs
            self.room = [ov.Tensor(each.element_type, [num_images, *list(each.shape)[1:]]) for each in outputs]
        return self.room


def _infer(request: ov.InferRequest, features: Tensors) -> None:
    for index, tensor in enumerate(features):
        request.set_input_tensor(index, tensor)
    request.infer(share_outputs=True)  # else it would copy them


def _slice(tensor: ov.Tensor, start: int, end: int) -> ov.Tensor:
    _, *rest = tensor.shape
    return ov.Tensor(tensor, [start, *[0] * len(rest)], [end, *rest])


def _read(images: Tensor) -> Tensors:
    return [ov.Tensor(as_array(images), shared_memory=True)]


def _take(features: Tensors, index: Tensor) -> Tensors:
    return [_rows(tensor, index.numpy()) for tensor in features]


def _rows(tensor: ov.Tensor, index: np.ndarray) -> ov.Tensor:
    taken = ov.Tensor(tensor.element_type, [len(index), *tensor.shape[1:]])
    np.take(tensor.data, index, axis=0, out=taken.data, mode="clip")  # the other modes copy once more
    return taken


ENGINE = Engine(prepare, ("fp32", "bf16", "int8"), own_threads=True)
