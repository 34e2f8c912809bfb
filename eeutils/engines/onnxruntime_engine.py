"""Stages on ONNX Runtime."""

import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime import quantization
from torch import Tensor

from eeutils.engines.onnx_stages import as_array, to_onnx
from eeutils.engines.registry import Engine, Settings, Stages
from eeutils.models import MultiExitNet

Arrays = Sequence[np.ndarray]


def prepare(net: MultiExitNet, images: Tensor, settings: Settings) -> Stages:
    """One session a stage."""
    models = to_onnx(net, images)
    if settings.precision == "int8":
        models = _quantized(models, settings.calibration)
    sessions = [_session(model, settings.threads) for model in models]
    return Stages(_read, tuple(partial(_run, session, _names(session)) for session in sessions), _take)


def _session(model: bytes, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # The threads of a session that is done would spin on, on the cores that the next stage needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _names(session: ort.InferenceSession) -> list[str]:
    return [given.name for given in session.get_inputs()]


def _run(session: ort.InferenceSession, names: Sequence[str], features: Arrays) -> tuple[Arrays, Tensor]:
    *features, logits = session.run(None, dict(zip(names, features, strict=True)))
    return features, torch.from_numpy(logits)


def _read(images: Tensor) -> Arrays:
    return [as_array(images)]


def _take(features: Arrays, index: Tensor) -> Arrays:
    return [np.take(each, index.numpy(), axis=0) for each in features]


class _Reader(quantization.CalibrationDataReader):
    """Hands on one set of inputs after the other."""

    def __init__(self, given: Sequence[dict[str, np.ndarray]]) -> None:
        self.given: Iterator[dict[str, np.ndarray]] = iter(given)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.given, None)


def _quantized(models: Sequence[bytes], images: Tensor) -> list[bytes]:
    """The stages in int8, scales chosen by `images`, each stage on what the one before gives."""
    quantized, given = [], [[image] for image in np.split(images.numpy(), len(images))]
    for model in models:
        session = _session(model, 1)
        named = [dict(zip(_names(session), arrays, strict=True)) for arrays in given]
        quantized.append(_quantized_stage(model, named))
        given = [session.run(None, inputs)[:-1] for inputs in named]
    return quantized


def _quantized_stage(model: bytes, given: Sequence[dict[str, np.ndarray]]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        graph, done = onnx.load_from_string(model), Path(folder, "int8.onnx")
        logits = [node.name for node in graph.graph.node if node.op_type in ("Gemm", "MatMul")][-1]
        options = {"per_channel": True, "nodes_to_exclude": [logits]}  # which stay in float32
        quantization.quantize_static(graph, done, _Reader(given), **options)
        return done.read_bytes()


ENGINE = Engine(prepare, ("fp32", "int8"), own_threads=True)
