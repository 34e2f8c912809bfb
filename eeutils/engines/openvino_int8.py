"""Stages on OpenVINO in int8: the network is quantized whole, then cut where its features are integers."""

import io
import logging
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from torch import Tensor

from eeutils.engines.registry import import_extra

Place = tuple[str, int]
"""An output in a model: the name of its operation, and which of the outputs it is."""

_LEVELS = 256
_QUANTIZER = threading.Lock()  # it keeps state between calls, and standard output belongs to all threads


def quantized(stages: Sequence[ov.Model], images: Tensor) -> list[ov.Model]:
    """The stages in int8, scales chosen by `images` (n, C, H, W); the layers that give logits stay as they are.

    Stages that were quantized one by one would convert features to floats and back at every cut.
    """
    nncf = import_extra("nncf", "openvino", "int8 on OpenVINO")
    nncf.set_log_level(logging.ERROR)
    whole, cuts = _joined(stages)
    singles = np.split(images.numpy(), len(images))
    with _QUANTIZER, redirect_stdout(io.StringIO()):  # its progress bars
        whole = nncf.quantize(
            whole,
            nncf.Dataset(singles),
            subset_size=len(singles),
            ignored_scope=nncf.IgnoredScope(names=_logits_layers(stages)),
        )
    cuts = [[_place(_as_integers(_output(whole, each))) for each in places] for places in cuts]
    whole.validate_nodes_and_infer_types()
    return [_stage(whole, position, cuts) for position in range(len(cuts))]


def _joined(stages: Sequence[ov.Model]) -> tuple[ov.Model, list[list[Place]]]:
    """The stages as one model from images to the logits of every exit, and the features that each hands on."""
    logits, cuts, handed_on = [], [], []
    for position, stage in enumerate(stages):
        for op in stage.get_ops():
            op.set_friendly_name(f"stage{position}/{op.get_friendly_name()}")
        for given, features in zip(stage.get_parameters() if position else [], handed_on, strict=True):
            redirect(given.output(0), features)
        *features, answer = stage.get_results()
        handed_on = [each.input_value(0) for each in features]
        cuts.append([_place(each) for each in handed_on])
        logits.append(answer)
    return ov.Model(logits, stages[0].get_parameters(), "whole"), cuts


def _logits_layers(stages: Sequence[ov.Model]) -> list[str]:
    """The last matrix product of each stage."""
    products = [[op for op in stage.get_ordered_ops() if op.get_type_name() == "MatMul"] for stage in stages]
    return [each[-1].get_friendly_name() for each in products if each]


def _as_integers(features: ov.Output) -> ov.Output:
    """Make the integers that all readers of `features` quantize them to a tensor of the model, and return it.

    Features of several scales, or that a layer reads as floats, stay as they are.
    """
    quantizers = [each.get_node() for each in features.get_target_inputs()]
    ranges = {_range(each) for each in quantizers}
    if len(ranges) != 1 or (only := ranges.pop()) is None:
        return features
    low, high = only
    scale = (high - low) / (_LEVELS - 1)
    first = round(low / scale)
    if first not in (0, -128) or abs(low / scale - first) > 1e-3:
        return features
    bounds = [ops.constant(np.float32(value)) for value in (low, high, first, first + _LEVELS - 1)]
    integers = ops.convert(ops.fake_quantize(features, *bounds, _LEVELS), ov.Type.i8 if first else ov.Type.u8)
    integers.set_friendly_name(f"{features.get_node().get_friendly_name()}/integers{features.get_index()}")
    floats = ops.multiply(ops.convert(integers, ov.Type.f32), ops.constant(np.float32(scale)))
    for quantizer in quantizers:
        redirect(quantizer.output(0), floats.output(0))
    return integers.output(0)


def _range(reader: ov.Node) -> tuple[float, float] | None:
    """The least and the largest value that `reader` rounds features to, or None if it does anything else."""
    if reader.get_type_name() != "FakeQuantize" or reader.get_attributes()["levels"] != _LEVELS:
        return None
    limits = [reader.input_value(index).get_node() for index in range(1, 5)]
    if any(limit.get_type_name() != "Constant" or limit.data.size > 1 for limit in limits):
        return None
    low, high, out_low, out_high = [limit.data.item() for limit in limits]
    return (low, high) if (low, high) == (out_low, out_high) else None


def _stage(whole: ov.Model, position: int, cuts: Sequence[Sequence[Place]]) -> ov.Model:
    """Part of a copy of `whole` from one cut to the next, with the logits there."""
    model, given, parameters = whole.clone(), {}, []
    handed_on = [_output(model, each) for each in cuts[position]]
    for place in cuts[position - 1] if position else []:
        features = _output(model, place)
        parameters.append(ops.parameter(features.get_partial_shape(), features.get_element_type()))
        given[place] = parameters[-1].output(0)
        redirect(features, given[place])
    # What is only carried past this stage goes from its input straight to its output.
    sources = [given.get(place, output) for place, output in zip(cuts[position], handed_on, strict=True)]
    results = [*map(ops.result, sources), model.get_results()[position]]
    return ov.Model(results, parameters or model.get_parameters(), f"stage{position}")


def redirect(old: ov.Output, new: ov.Output) -> None:
    """Let all that reads `old` read `new`."""
    for reader in old.get_target_inputs():
        reader.replace_source_output(new)


def _place(output: ov.Output) -> Place:
    return output.get_node().get_friendly_name(), output.get_index()


def _output(model: ov.Model, place: Place) -> ov.Output:
    return next(op for op in model.get_ops() if op.get_friendly_name() == place[0]).output(place[1])
