"""The engines by name, and the one shape that all have."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from eeutils.models import MultiExitNet

PRECISIONS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Settings:
    """Settings of a network on an engine."""

    precision: str | None  # one of `PRECISIONS`, or None for that of the weights
    device: torch.device
    threads: int  # of the CPU
    calibration: Tensor | None = None  # (N, C, H, W) normalised images to choose the scales of int8 by


@dataclass(frozen=True)
class Stages:
    """A network on an engine, for images of one shape.

    Attributes:
        read: normalised images (N, C, H, W) -> features, what the first stage takes.
        run: for each stage features -> (features, logits), shallowest first; logits (N, classes) float32, valid until
            this stage runs again in this thread.
        take: features of N images, positions (K,) -> features of K images.
    """

    read: Callable[[Tensor], Any]
    run: tuple[Callable[[Any], tuple[Any, Tensor]], ...]
    take: Callable[[Any, Tensor], Any]


@dataclass(frozen=True)
class Engine:
    """A way to run the stages of a network.

    `prepare` maps a network, images and settings to stages for such images. The network is in evaluation mode, with
    norms folded; the engine may change it.
    """

    prepare: Callable[[MultiExitNet, Tensor, Settings], Stages]
    precisions: tuple[str, ...]  # those of `PRECISIONS` that it computes in
    devices: tuple[str, ...] = ("cpu",)
    per_shape: bool = True  # stages serve one shape of image only
    own_threads: bool = False  # computes on other threads than torch's


# Name -> module that defines ENGINE, imported on first use, and the extra of eeutils that installs what it needs.
_BUILT_IN = {
    "torch": ("eeutils.engines.torch_engine", ""),
    "compile": ("eeutils.engines.compile_engine", ""),
    "openvino": ("eeutils.engines.openvino_engine", "openvino"),
    "onnxruntime": ("eeutils.engines.onnxruntime_engine", "onnx"),
}
_REGISTERED: dict[str, Engine] = {}


def list_engines() -> list[str]:
    """The names that `Cascade` takes as `engine`."""
    return sorted(_BUILT_IN | _REGISTERED)


def register_engine(name: str, engine: Engine) -> None:
    """Make `engine` known as `name`, which none of eeutils' own may have."""
    if name in _BUILT_IN:
        raise ValueError(f"name must be none of {sorted(_BUILT_IN)}, got {name!r}")
    _REGISTERED[name] = engine


def find_engine(name: str) -> Engine:
    """Return the engine called `name`."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    if name not in _BUILT_IN:
        raise ValueError(f"engine must be one of {list_engines()}, got {name!r}")
    module, extra = _BUILT_IN[name]
    return import_extra(module, extra, f"engine {name!r}").ENGINE


def import_extra(module: str, extra: str, what: str) -> Any:
    """Import `module`, or raise ModuleNotFoundError that names the extra of eeutils which it needs."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        hint = f"{what} needs the package {error.name}; pip install 'eeutils[{extra}]'"
        raise ModuleNotFoundError(hint, name=error.name) from error
