"""A network ready for use: everything that lies between a picture and the name of what is on it, kept in one file."""

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import KW_ONLY, asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from eeutils.analysis.policies import ThresholdPolicy
from eeutils.analysis.thresholds import choose_thresholds
from eeutils.cascade import Cascade, CascadeResult, check_tensor
from eeutils.data import Normalization
from eeutils.data.datasets import image_shape_of
from eeutils.errors import IntegrityError
from eeutils.files import save_tensors
from eeutils.models import MultiExitNet
from eeutils.weights import load_predictions, load_weights, put_tensors, read_tensors, weight_entry
from eeutils.weights.tensors import stored_tensors

_METADATA = "eeutils.classifier"


@dataclass(frozen=True)
class Classifier:
    """A network with exits, and what it takes to ask it.

        classifier = Classifier(
            net, data.classes, data.normalization, choice.policy, image_shape=data.image_shape
        )
        result = classifier(load_image("photo.jpg", size=32))
        print(classifier.classes[result.predicted[0]])

    Attributes:
        net: a copy of the network that was given, so that what is saved is what answers: to train that network further
            does not change the classifier; make another of it.
        classes: what its outputs stand for.
        normalization: of the images that it was trained on.
        policy: who leaves where.
        fallback: whose answer counts for an image that no early exit let go, as `Cascade` says.
        dtype: what to compute in, as `Cascade` says; a matter of the machine, so `save` does not keep it.
        image_shape: (C, H, W) of the images that the network was trained on, such as `data.image_shape`: only such are
            let in then, for most networks read other sizes, too, and answer wrongly. None lets any in.

    Raises:
        TypeError: if `net` has no exits, `normalization` is no `Normalization`, `policy` no `ThresholdPolicy`, or
            `dtype` no torch.dtype.
        ValueError: if the policy is for another number of exits, the fallback is unknown, or a weight is NaN or
            infinite; with an `image_shape` also if the network cannot read such images, or answers for other than
            `classes`.
    """

    net: MultiExitNet
    classes: tuple[str, ...]
    normalization: Normalization
    policy: ThresholdPolicy
    _: KW_ONLY
    fallback: str = "last"
    dtype: torch.dtype | None = None
    image_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.normalization, Normalization):
            kind = type(self.normalization).__name__
            raise TypeError(f"normalization must be a Normalization, such as data.normalization, got {kind}")
        if not isinstance(self.policy, ThresholdPolicy):
            kind = type(self.policy).__name__
            raise TypeError(
                f"policy must be a ThresholdPolicy, such as choice.policy, got {kind}; a Cascade takes any policy"
            )
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "net", deepcopy(self.net))
        self.cascade  # noqa: B018  raises at once if network and policy do not fit together
        if self.image_shape is not None:
            object.__setattr__(self, "image_shape", _checked_shape(self.image_shape))
            self._try_out()

    @cached_property
    def cascade(self) -> Cascade:
        """What answers: the network made for inference."""
        return Cascade(self.net, self.policy, fallback=self.fallback, dtype=self.dtype)

    def __call__(self, images: Tensor) -> CascadeResult:
        """Images (N, C, H, W) uint8, of the size that the network was trained on -> logits and exits.

        Raises:
            TypeError: if `images` is no tensor.
            ValueError: if the images are of another dtype than uint8 or another shape than `image_shape`, or do not fit
                the network, or it answers for other than `classes`.
        """
        check_tensor(images)
        if self.image_shape is not None:
            _check_size(images, self.image_shape)
        result = self.cascade(self.normalization(images.to(self.cascade.device)))
        outputs = result.logits.shape[-1]
        if outputs != len(self.classes):
            raise ValueError(f"the network has {outputs} outputs, the classifier {len(self.classes)} classes")
        return result

    def _try_out(self) -> None:
        """Answer one image of noise, to see that all parts go together."""
        noise = torch.randint(0, 256, (1, *self.image_shape), generator=torch.Generator().manual_seed(0))
        self(noise.byte())

    def save(self, path: Path | str) -> None:
        """Write it all into one safetensors file, whole or not at all.

        What is not in it is how the network is built: that is code, yours or `create_model`'s.

        Raises:
            StorageError: if the file cannot be written.
        """
        about = {
            "classes": self.classes,
            "normalization": asdict(self.normalization),
            "policy": asdict(self.policy),
            "fallback": self.fallback,
            "image_shape": self.image_shape,
        }
        save_tensors(path, stored_tensors(self.net), {_METADATA: json.dumps(about)})

    @staticmethod
    def load(path: Path | str, net: MultiExitNet, *, dtype: torch.dtype | None = None) -> "Classifier":
        """Read what `save` wrote.

        Args:
            path: the file.
            net: a network built like the one that was saved; it gets the weights, and evaluation mode.
            dtype: what to compute in; by default what the network's weights are.

        Raises:
            FileNotFoundError: if there is no such file.
            IntegrityError: if `save` did not write it, or it is damaged.
            ValueError: if the file holds the weights of another network, or its policy's score is not registered
                (`eeutils.analysis.register_score`); `net` is then unchanged.
        """
        tensors, about = read_tensors(Path(path)), _read_metadata(Path(path))
        policy = ThresholdPolicy(**about["policy"])
        put_tensors(net, tensors, str(path))
        return Classifier(
            net.eval(),
            tuple(about["classes"]),
            Normalization.from_json(about["normalization"]),
            policy,
            fallback=about.get("fallback", "last"),  # older files have none, and no image_shape
            dtype=dtype,
            image_shape=about.get("image_shape"),
        )


def load_classifier(
    name: str,
    *,
    max_drop: float = 0.005,
    device: torch.device | str = "cpu",
    fallback: str = "last",
    dtype: torch.dtype | None = None,
) -> Classifier:
    """A shipped network, ready for use.

    Its threshold, one for all exits, is the cheapest that loses at most `max_drop` on validation, as in the tables of
    results.

    Args:
        name: one of `list_weights()` that has predictions.
        max_drop: accuracy that leaving early may cost against the last exit, 0 to 1: 0.005 is half a point.
        device: where to compute.
        fallback: whose answer counts for an image that no early exit let go, as `Cascade` says. The threshold is chosen
            for "last"; with another the accuracy may be another too.
        dtype: what to compute in, as `Cascade` says.

    Raises:
        ValueError: if the name or the fallback is unknown, or its weights or predictions do not ship.
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
        dtype=dtype,
        image_shape=image_shape_of(entry.data),
    )


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if not isinstance(shape, Sequence) or len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"image_shape must be (channels, height, width), such as data.image_shape, got {shape!r}")
    return tuple(shape)


def _check_size(images: Tensor, shape: tuple[int, int, int]) -> None:
    if tuple(images.shape[1:]) != shape:
        channels, height, width = shape
        remedy = f"; load_image(path, size={height}) makes such of a file" if (channels, height) == (3, width) else ""
        raise ValueError(
            f"images must have shape (N, {channels}, {height}, {width}), as those that the network was trained on, "
            f"got {tuple(images.shape)}{remedy}"
        )


def _read_metadata(path: Path) -> dict:
    try:
        with safe_open(path, framework="pt") as opened:
            return json.loads(opened.metadata()[_METADATA])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path} is not a classifier that was saved: {error!r}") from error
