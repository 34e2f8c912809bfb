"""Exits in a network that knows ImageNet, for your photos: `python examples/photos.py photos answers`.

    pip install 'eeutils[onnx]'

`photos` holds one folder of images per class. The network stays frozen; its exits and last layer are trained. `answers`
gets photos.safetensors, for `Classifier.load`, and a folder that answers without torch.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from torch import nn
from torchvision.models import get_model, get_model_weights

from eeutils import Cascade, Classifier, choose_thresholds, data_from_folder, fit, predict, recipe, with_exits
from eeutils.data import Normalization
from eeutils.export import export


@dataclass(frozen=True)
class Options:
    """Options: photos, network and training."""

    photos: Annotated[Path, tyro.conf.Positional]
    answers: Annotated[Path, tyro.conf.Positional]
    network: str = "resnet50"
    after: tuple[str, ...] = ("layer2", "layer3")
    size: int = 224
    epochs: int = 10
    max_drop: float = 0.01


def pretrained(name: str, num_classes: int) -> nn.Module:
    """Return a network of torchvision for `num_classes`, with ImageNet's weights where they can be fetched."""
    try:
        network = get_model(name, weights="DEFAULT")
    except OSError as error:
        warnings.warn(f"weights of {name} cannot be fetched, so they are random: {error}", stacklevel=2)
        network = get_model(name)
    *_, (path, last) = ((path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear))
    network.set_submodule(path, nn.Linear(last.in_features, num_classes))
    return network


def main() -> None:
    """Train, choose thresholds, save and export."""
    options = tyro.cli(Options, description=__doc__)
    known = get_model_weights(options.network).DEFAULT.transforms()
    data = data_from_folder(options.photos, size=options.size, normalization=Normalization(known.mean, known.std))
    network = pretrained(options.network, len(data.classes))
    net = with_exits(network, options.after, image_size=options.size)
    fit(net, data, recipe("ic_only", trained="exits", epochs=options.epochs, batch_size=32))

    choice = choose_thresholds(predict(net, data.val), max_drop=options.max_drop)
    print(Cascade(net, choice.policy, normalization=data.normalization).run(data.test))
    options.answers.mkdir(parents=True, exist_ok=True)
    classifier = Classifier(net, data.classes, data.normalization, choice.policy, image_shape=data.image_shape)
    classifier.save(options.answers / "photos.safetensors")
    export(classifier, options.answers / "exported")


if __name__ == "__main__":
    main()
