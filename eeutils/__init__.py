"""Early exits in convolutional networks: learn them, reproduce them, use them.

A network is units and exits (`eeutils.models`); one pass over a data set gives a table of every exit's logits, and all
analysis reads that table (`eeutils.analysis`); `Cascade` is the live counterpart, which stops computing for an image
as soon as an exit is sure of it:

    data = load_data("cifar10")
    net = load_weights("resnet18_3exits-spp-cifar10-w16")
    choice = choose_one_threshold(predict(net, data.val), max_drop=0.005)
    result = Cascade(net, choice.policy).run(data.test)
    print((result.predicted == data.test.labels).double().mean(), result.exit_index.bincount())

The names below are imported when they are first used, so that `import eeutils` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eeutils.analysis.decisions import decide
    from eeutils.analysis.policies import ThresholdPolicy
    from eeutils.analysis.predictions import Predictions, predict
    from eeutils.analysis.risk import choose_with_guarantee
    from eeutils.analysis.seconds import measure_seconds
    from eeutils.analysis.thresholds import choose_for_accuracy, choose_for_budget, choose_one_threshold
    from eeutils.cascade import Cascade
    from eeutils.classifier import Classifier, load_classifier
    from eeutils.data import data_from_folder, data_from_tensors, load_data, load_image
    from eeutils.models import MultiExitNet, create_model, list_models, with_internal_classifiers
    from eeutils.training import TrainConfig, fit, recipe
    from eeutils.weights import list_weights, load_history, load_predictions, load_weights

    __version__: str
    __repository__: str

__all__ = [
    "Cascade",
    "Classifier",
    "MultiExitNet",
    "Predictions",
    "ThresholdPolicy",
    "TrainConfig",
    "choose_for_accuracy",
    "choose_for_budget",
    "choose_one_threshold",
    "choose_with_guarantee",
    "create_model",
    "data_from_folder",
    "data_from_tensors",
    "decide",
    "fit",
    "list_models",
    "list_weights",
    "load_classifier",
    "load_data",
    "load_history",
    "load_image",
    "load_predictions",
    "load_weights",
    "measure_seconds",
    "predict",
    "recipe",
    "with_internal_classifiers",
]

_MODULE_OF = {
    "Cascade": "eeutils.cascade",
    "Classifier": "eeutils.classifier",
    "MultiExitNet": "eeutils.models",
    "Predictions": "eeutils.analysis.predictions",
    "ThresholdPolicy": "eeutils.analysis.policies",
    "TrainConfig": "eeutils.training",
    "choose_for_accuracy": "eeutils.analysis.thresholds",
    "choose_for_budget": "eeutils.analysis.thresholds",
    "choose_one_threshold": "eeutils.analysis.thresholds",
    "choose_with_guarantee": "eeutils.analysis.risk",
    "create_model": "eeutils.models",
    "data_from_folder": "eeutils.data",
    "data_from_tensors": "eeutils.data",
    "decide": "eeutils.analysis.decisions",
    "fit": "eeutils.training",
    "list_models": "eeutils.models",
    "list_weights": "eeutils.weights",
    "load_classifier": "eeutils.classifier",
    "load_data": "eeutils.data",
    "load_history": "eeutils.weights",
    "load_image": "eeutils.data",
    "load_predictions": "eeutils.weights",
    "load_weights": "eeutils.weights",
    "measure_seconds": "eeutils.analysis.seconds",
    "predict": "eeutils.analysis.predictions",
    "recipe": "eeutils.training",
    "with_internal_classifiers": "eeutils.models",
}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(import_module(_MODULE_OF[name]), name)
    elif name in ("__version__", "__repository__"):
        value = _from_metadata(name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next access finds it at once
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__repository__", "__version__"})


def _from_metadata(name: str) -> str:
    """Version and address are written down once, in pyproject.toml, and come with the installed package."""
    from importlib.metadata import metadata

    about = metadata("eeutils")
    if name == "__version__":
        return about["Version"]
    return dict(entry.split(", ", 1) for entry in about.get_all("Project-URL"))["Repository"]
