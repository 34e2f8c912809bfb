"""Stages on OpenVINO."""

import io
import logging
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial

import numpy as np
import openvino as ov
import torch
from torch import Tensor

from eeutils.engines.onnx_stages import to_onnx
from eeutils.engines.registry import Engine, Settings, Stages, import_extra
from eeutils.models import MultiExitNet

Tensors = Sequence[ov.Tensor]


def prepare(net: MultiExitNet, images: Tensor, settings: Settings) -> Stages:
    """Convert each stage by way of ONNX; features stay in OpenVINO's own memory."""
    core = ov.Core()
    models = [core.read_model(model) for model in to_onnx(net, images)]
    if settings.precision == "int8":
        models = _quantized(models, settings.calibration)
    # In int8 what is not quantized, and the features, are faster in bf16 where the hardware knows it.
    in_bf16 = settings.precision == "bf16" or (
        settings.precision == "int8" and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    )
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": settings.threads,
        "INFERENCE_PRECISION_HINT": "bf16" if in_bf16 else "f32",
    }
    if in_bf16:
        models = [_handing_on_bf16(model) for model in models]
    stages = []
    for model in models:
        of_any_number = core.compile_model(model, "CPU", config)
        model.reshape({given: [1, *list(given.partial_shape)[1:]] for given in model.inputs})
        stages.append(partial(_run, _Requests(core.compile_model(model, "CPU", config), of_any_number)))
    return Stages(_read, tuple(stages), _take)


class _Requests(threading.local):
    """Infer requests of a stage, for each thread: they hold the outputs of their last run.

    For a single image the shapes are fixed, which takes an eighth of the time off.
    """

    def __init__(self, single: ov.CompiledModel, of_any_number: ov.CompiledModel) -> None:
        self.single, self.of_any_number = single.create_infer_request(), of_any_number.create_infer_request()
        self.num_outputs = len(single.outputs)


def _run(requests: _Requests, features: Tensors) -> tuple[Tensors, Tensor]:
    request = requests.single if features[0].shape[0] == 1 else requests.of_any_number
    for position, tensor in enumerate(features):
        request.set_input_tensor(position, tensor)
    request.infer()
    *handed_on, logits = [request.get_output_tensor(each) for each in range(requests.num_outputs)]
    return handed_on, torch.from_numpy(logits.data)


def _read(images: Tensor) -> Tensors:
    array = images.detach().to("cpu", torch.float32, memory_format=torch.contiguous_format).numpy()
    return [ov.Tensor(array, shared_memory=True)]


def _take(features: Tensors, index: Tensor) -> Tensors:
    return [_rows(tensor, index.numpy()) for tensor in features]


def _rows(tensor: ov.Tensor, index: np.ndarray) -> ov.Tensor:
    taken = ov.Tensor(tensor.element_type, [len(index), *tensor.shape[1:]])
    np.take(tensor.data, index, axis=0, out=taken.data, mode="clip")  # the other modes copy once more
    return taken


def _handing_on_bf16(model: ov.Model) -> ov.Model:
    """`model` with features in bf16, as it computes them; images and logits are float32."""
    steps = ov.preprocess.PrePostProcessor(model)
    for position, given in enumerate(model.inputs):
        if "images" not in given.names and given.element_type == ov.Type.f32:
            steps.input(position).tensor().set_element_type(ov.Type.bf16)
    for position, handed_on in enumerate(model.outputs[:-1]):
        if handed_on.element_type == ov.Type.f32:
            steps.output(position).tensor().set_element_type(ov.Type.bf16)
    return steps.build()


def _quantized(models: Sequence[ov.Model], images: Tensor) -> list[ov.Model]:
    """The stages in int8, scales chosen by `images`, each stage on what the one before gives."""
    nncf = import_extra("nncf", "openvino", "int8 on OpenVINO")
    nncf.set_log_level(logging.ERROR)
    core, quantized = ov.Core(), []
    given = [[image] for image in np.split(images.numpy(), len(images))]
    for model in models:
        scope = nncf.IgnoredScope(names=[_logits_layer(model)])
        data = nncf.Dataset(given, lambda arrays: dict(enumerate(arrays)))
        whole = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        with redirect_stdout(io.StringIO()):  # its progress bars
            quantized.append(nncf.quantize(model, data, subset_size=len(given), ignored_scope=scope))
        given = [[whole(arrays)[each].copy() for each in range(len(model.outputs) - 1)] for arrays in given]
    return quantized


def _logits_layer(model: ov.Model) -> str:
    """The last matrix product, which is not quantized."""
    return [op.get_friendly_name() for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"][-1]


ENGINE = Engine(prepare, ("fp32", "bf16", "int8"))
