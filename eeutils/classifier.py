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
from eeutils.analysis.predictions import Predictions
from eeutils.analysis.thresholds import choose_thresholds
from eeutils.cascade import Cascade, CascadeResult
from eeutils.data import Normalization
from eeutils.data.datasets import find_dataset
from eeutils.engines.registry import import_extra
from eeutils.errors import require
from eeutils.fields import check_type
from eeutils.files import load_tensors, reading, save_tensors
from eeutils.models import MultiExitNet, Origin
from eeutils.models.adapt import rebuild
from eeutils.models.memory import device_and_dtype
from eeutils.weights import load_predictions, load_weights, put_tensors, weight_entry
from eeutils.weights.tensors import stored_tensors

_METADATA = "eeutils.classifier"
_OTHER_ANSWERS = 0.05  # how much the size of logits may differ on another machine, a share


@dataclass(frozen=True)
class Classifier:
    """A network with exits, and everything needed to classify images with it.

        classifier = Classifier(net, data.classes, data.normalization, choice.policy, image_shape=data.image_shape)
        result = classifier(load_image("photo.jpg", size=32))
        print(classifier.classes[result.predicted[0]])

    With `image_shape`, other shapes are refused, because most networks read them and answer wrongly. For `policy`,
    `fallback`, `engine` and `precision` see `Cascade`; `save` does not keep the last two.
    """

    net: MultiExitNet  # a copy, so that training it further does not change the classifier
    classes: tuple[str, ...]  # names of the network's outputs
    normalization: Normalization  # of the training images
    policy: ThresholdPolicy
    _: KW_ONLY
    fallback: str = "last"
    engine: str = "torch"
    precision: str | None = None
    image_shape: tuple[int, int, int] | None = None  # (C, H, W) of the training images

    def __post_init__(self) -> None:
        check_type("normalization", self.normalization, Normalization, "use data.normalization")
        check_type("policy", self.policy, ThresholdPolicy, "use ThresholdPolicy(0.9), or a choice's .policy")
        object.__setattr__(self, "classes", tuple(self.classes))
        object.__setattr__(self, "net", deepcopy(self.net))
        self.cascade  # noqa: B018  raises at once if network and policy do not fit together
        if self.image_shape is not None:
            object.__setattr__(self, "image_shape", _checked_shape(self.image_shape))
            self(noise(1, self.image_shape))  # likewise with shape and classes

    @cached_property
    def cascade(self) -> Cascade:
        """The network prepared for inference."""
        options = {"normalization": self.normalization, "engine": self.engine, "precision": self.precision}
        return Cascade(self.net, self.policy, fallback=self.fallback, **options)

    def __call__(self, images: Tensor) -> CascadeResult:
        """Classify images (N, C, H, W) uint8 in 0..255, of the size that the network was trained on."""
        shape = tuple(getattr(images, "shape", ()))
        fits = not shape or self.image_shape in (None, shape[1:])
        require(fits, f"images must have shape (N, *{self.image_shape}), got {shape}")
        result = self.cascade(images)
        outputs, names = result.logits.shape[-1], len(self.classes)
        require(outputs == names, f"classes must be {outputs} names, one for each output, got {names}")
        return result

    def save(self, path: Path | str) -> None:
        """Write one safetensors file, whole or not at all.

        What builds the network is kept with it, if `create_model` did, or torchvision or timm and `with_exits`: `load`
        can then rebuild it.
        """
        save_tensors(path, stored_tensors(self.net), {_METADATA: json.dumps(self.about())})

    def about(self) -> dict[str, Any]:
        """Return all but the weights, in types that JSON has."""
        origin = self.net.origin
        return {
            "classes": self.classes,
            "normalization": asdict(self.normalization),
            "policy": asdict(self.policy),
            "fallback": self.fallback,
            "image_shape": self.image_shape,
            "origin": origin and asdict(origin),
            "answers": self.image_shape and _answer_sizes(self.cascade.net, self.normalization, self.image_shape),
        }

    @staticmethod
    def load(
        path: Path | str, net: MultiExitNet | None = None, *, engine: str = "torch", precision: str | None = None
    ) -> "Classifier":
        """Read a file that `save` wrote.

        `net`, a network built like the one that was saved, gets the weights and evaluation mode. It is needed only if
        the file does not say what builds that one.

        Raises:
            FileNotFoundError: if there is no such file.
            IntegrityError: if it is damaged, or holds something else.
            ValueError: if `net` is missing or does not fit the weights; if the policy's score is not registered; if the
                rebuilt network answers otherwise than the saved one, as one of another version of its library may.
        """
        tensors, metadata = load_tensors(path)
        with reading(path):
            about = json.loads(metadata[_METADATA])
        with reading(path, keep=ValueError):
            policy, normalization = ThresholdPolicy(**about["policy"]), Normalization(**about["normalization"])
            classes, fallback = tuple(map(str, about["classes"])), about["fallback"]
            shape = about["image_shape"] and _checked_shape(about["image_shape"])
            rebuilt = _rebuilt(about["origin"]) if net is None else None
            net = rebuilt if net is None else net
            put_tensors(net, tensors, str(path))
            if rebuilt is not None and shape is not None:
                answers, saved = map(torch.tensor, (_answer_sizes(net.eval(), normalization, shape), about["answers"]))
                same = torch.allclose(answers, saved, rtol=_OTHER_ANSWERS)
                require(same, f"net must be given; rebuilt from {about['origin']}, it answers otherwise than saved")
        options = {"fallback": fallback, "engine": engine, "precision": precision, "image_shape": shape}
        return Classifier(net.eval(), classes, normalization, policy, **options)

    def save_pretrained(self, folder: Path | str, *, predictions: Predictions | None = None) -> None:
        """Write a folder as the Hugging Face Hub has them: weights, config.json and a model card, unless one is there.

        Needs the extra `hub`. With `predictions` on test images the card has the accuracy of each exit.
        """
        _hub().stored(self, predictions).save_pretrained(folder, model_card_kwargs={"repo": Path(folder).name})

    def push_to_hub(self, repo_id: str, *, predictions: Predictions | None = None, **kwargs: Any) -> str:
        """Save to a repository of the Hub, such as "me/photos", made if missing; return the address of the commit.

        `kwargs` are those of `huggingface_hub.ModelHubMixin.push_to_hub`, such as `private` and `token`.
        """
        return _hub().stored(self, predictions).push_to_hub(repo_id, model_card_kwargs={"repo": repo_id}, **kwargs)

    @staticmethod
    def from_pretrained(folder: Path | str, **kwargs: Any) -> "Classifier":
        """Load what `save_pretrained` or `push_to_hub` saved; no code of the repository is run.

        `kwargs` are those of `load`, and of `huggingface_hub.ModelHubMixin.from_pretrained`, such as `revision`.
        """
        return _hub().Stored.from_pretrained(folder, **kwargs).classifier


def load_classifier(
    name: str,
    *,
    max_drop: float = 0.005,
    device: torch.device | str = "cpu",
    engine: str = "torch",
    precision: str | None = None,
) -> Classifier:
    """Load a shipped network with the cheapest threshold that loses at most `max_drop` on validation.

    `name` is one of `list_weights()` that has predictions; a `max_drop` of 0.005 is half a point. For `engine` and
    `precision` see `Cascade`. Errors are those of `load_weights`.
    """
    entry = weight_entry(name)
    policy = choose_thresholds(load_predictions(name, "val"), max_drop=max_drop).policy
    options = {"engine": engine, "precision": precision, "image_shape": find_dataset(entry.data).image_shape}
    return Classifier(load_weights(name, device), entry.classes, entry.normalization, policy, **options)


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    fits = isinstance(shape, Sequence) and len(shape) == 3 and min(shape) > 0
    require(fits, f"image_shape must be (channels, height, width), such as data.image_shape, got {shape!r}")
    return tuple(shape)


def noise(count: int, image_shape: Sequence[int]) -> Tensor:
    """Return `count` images (C, H, W) uint8 of noise, always the same."""
    return torch.randint(0, 256, (count, *image_shape), generator=torch.Generator().manual_seed(0)).byte()


def _answer_sizes(net: MultiExitNet, normalization: Normalization, image_shape: Sequence[int]) -> list[float]:
    """Return the size of each exit's logits for noise, by which networks that answer otherwise are told apart."""
    device, dtype = device_and_dtype(net)
    with torch.inference_mode():
        return [logits.float().norm().item() for logits in net(normalization(noise(1, image_shape)).to(device, dtype))]


def _rebuilt(origin: dict[str, Any] | None) -> MultiExitNet:
    require(origin is not None, "net must be one built like the saved one, got None; the file does not say how")
    try:
        with torch.random.fork_rng(devices=[]):
            return rebuild(Origin(**origin))
    except ModuleNotFoundError as error:
        raise ValueError(f"net must be given, or {error.name} installed, to load {origin['name']}") from error


def _hub() -> Any:
    return import_extra("eeutils.hub", "hub", "the Hub")
