"""A network ready for use: weights, classes, normalization and exit policy in one file."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import KW_ONLY, asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eeutils.analysis.policies import ThresholdPolicy
from eeutils.analysis.thresholds import choose_thresholds
from eeutils.cascade import Cascade, CascadeResult
from eeutils.data import Normalization
from eeutils.data.datasets import image_shape_of
from eeutils.files import load_tensors, reading, save_tensors
from eeutils.models import MultiExitNet
from eeutils.weights import load_predictions, load_weights, put_tensors, weight_entry
from eeutils.weights.tensors import stored_tensors, untrained_network

_METADATA = "eeutils.classifier"


@dataclass(frozen=True)
class Classifier:
    """A network with exits, and everything needed to classify images with it.

        classifier = Classifier(
            net, data.classes, data.normalization, choice.policy, image_shape=data.image_shape
        )
        result = classifier(load_image("photo.jpg", size=32))
        print(classifier.classes[result.predicted[0]])

    Attributes:
        net: a copy of the network, so that training it further does not change the classifier.
        classes: names of the network's outputs.
        normalization: normalization of the training images.
        policy: decides who leaves where.
        fallback: answers for an image that leaves at no early exit, see `Cascade`.
        engine, precision: see `Cascade`; `save` does not keep them.
        image_shape: (C, H, W) of the training images, such as `data.image_shape`. Other shapes are then refused,
            because most networks read them and answer wrongly. None accepts any.

    Raises:
        TypeError: if a part has the wrong type.
        ValueError: if network, classes, policy, fallback and `image_shape` do not fit together, or a weight is NaN or
            infinite.
    """

    net: MultiExitNet
    classes: tuple[str, ...]
    normalization: Normalization
    policy: ThresholdPolicy
    _: KW_ONLY
    fallback: str = "last"
    engine: str = "torch"
    precision: str | None = None
    image_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        for name, kind in (("normalization", Normalization), ("policy", ThresholdPolicy)):
            if not isinstance(value := getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "net", deepcopy(self.net))
        self.cascade  # noqa: B018  raises at once if network and policy do not fit together
        if self.image_shape is not None:
            object.__setattr__(self, "image_shape", _checked_shape(self.image_shape))
            noise = torch.randint(0, 256, (1, *self.image_shape), generator=torch.Generator().manual_seed(0))
            self(noise.byte())  # likewise with shape and classes

    @cached_property
    def cascade(self) -> Cascade:
        """The network prepared for inference."""
        options = {"normalization": self.normalization, "engine": self.engine, "precision": self.precision}
        return Cascade(self.net, self.policy, fallback=self.fallback, **options)

    def __call__(self, images: Tensor) -> CascadeResult:
        """Classify images (N, C, H, W) uint8 in 0..255, of the size that the network was trained on.

        Raises:
            TypeError: if `images` is not a tensor.
            ValueError: if the images have another dtype, range or shape, or the network has not one output for each of
                `classes`.
        """
        if isinstance(images, Tensor) and self.image_shape not in (None, tuple(images.shape[1:])):
            raise ValueError(f"images must have shape (N, *{self.image_shape}), got {tuple(images.shape)}")
        result = self.cascade(images)
        outputs = result.logits.shape[-1]
        if outputs != len(self.classes):
            raise ValueError(f"classes must be {outputs} names, one for each output, got {len(self.classes)}")
        return result

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all.

        A network that `create_model` built is kept with its name and arguments, so that `load` can rebuild it.

        Raises:
            StorageError: if the file cannot be written.
        """
        origin = self.net.origin
        about = {
            "classes": self.classes,
            "normalization": asdict(self.normalization),
            "policy": asdict(self.policy),
            "fallback": self.fallback,
            "image_shape": self.image_shape,
            "origin": origin and asdict(origin),
        }
        save_tensors(path, stored_tensors(self.net), {_METADATA: json.dumps(about)})

    @staticmethod
    def load(
        path: Path | str, net: MultiExitNet | None = None, *, engine: str = "torch", precision: str | None = None
    ) -> "Classifier":
        """Read a file that `save` wrote.

        Args:
            path: the file.
            net: a network built like the one that was saved; it gets the weights, and evaluation mode. Needed only if
                `create_model` did not build that one.
            engine, precision: see `Cascade`.

        Raises:
            FileNotFoundError: if there is no such file.
            IntegrityError: if it is damaged, or holds something else.
            ValueError: if `net` is missing or does not fit the weights, or the policy's score is not registered
                (`eeutils.analysis.register_score`); `net` is then unchanged.
        """
        tensors, metadata = load_tensors(path)
        with reading(path):
            about = json.loads(metadata[_METADATA])
        with reading(path, keep=ValueError):
            policy = ThresholdPolicy(**about["policy"])
            classes, shape = (
                tuple(map(str, about["classes"])),
                about["image_shape"] and _checked_shape(about["image_shape"]),
            )
            normalization, fallback = Normalization.from_json(about["normalization"]), about["fallback"]
            net = _rebuilt(about["origin"]) if net is None else net
        put_tensors(net, tensors, str(path))
        return Classifier(
            net.eval(),
            classes,
            normalization,
            policy,
            fallback=fallback,
            engine=engine,
            precision=precision,
            image_shape=shape,
        )


def load_classifier(
    name: str,
    *,
    max_drop: float = 0.005,
    device: torch.device | str = "cpu",
    fallback: str = "last",
    engine: str = "torch",
    precision: str | None = None,
) -> Classifier:
    """Load a shipped network with the cheapest threshold that loses at most `max_drop` on validation.

    Args:
        name: one of `list_weights()` that has predictions.
        max_drop: accuracy that early exits may cost, 0 to 1: 0.005 is half a point.
        device: the device to compute on.
        fallback: answers for an image that leaves at no early exit, see `Cascade`. The threshold is chosen for "last".
        engine, precision: see `Cascade`.

    Raises:
        ValueError: if the name or the fallback is unknown, or weights or predictions do not ship.
        IntegrityError, DataUnavailableError: as `load_weights` does.
    """
    entry = weight_entry(name)
    choice = choose_thresholds(load_predictions(name, "val"), max_drop=max_drop)
    return Classifier(
        load_weights(name, device),
        entry.classes,
        entry.normalization,
        choice.policy,
        fallback=fallback,
        engine=engine,
        precision=precision,
        image_shape=image_shape_of(entry.data),
    )


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if not isinstance(shape, Sequence) or len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape must be (channels, height, width), such as data.image_shape, got {shape!r}")
    return tuple(shape)


def _rebuilt(origin: dict[str, Any] | None) -> MultiExitNet:
    if origin is None or origin["library"] != "eeutils":
        raise ValueError("net must be a network built like the saved one, got None; create_model did not build it")
    return untrained_network(origin["name"], origin["arguments"])
