"""Early exits in convolutional networks: learn them, reproduce them, use them.

A network is units and exits (`eeutils.models`). One pass over a data set gives a table of the logits of every exit, and
every analysis reads that table (`eeutils.analysis`). `Cascade` is its live counterpart: it stops computing for an image
as soon as an exit is confident:

    data = load_data("cifar10")
    net = load_weights("resnet18_3exits-spp-cifar10-w16")
    choice = choose_thresholds(predict(net, data.val), max_drop=0.005)
    print(Cascade(net, choice.policy).run(data.test))

The names in `__init__.pyi` are imported on first use, so that `import eeutils` costs nothing.
"""

from typing import Any

import lazy_loader

_imported, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name not in ("__version__", "__repository__"):
        return _imported(name)
    value = globals()[name] = _from_metadata(name)  # cached
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__repository__", "__version__"})


def _from_metadata(name: str) -> str:
    """Read the version or the repository's address from pyproject.toml, by way of the installed package."""
    from importlib.metadata import metadata

    about = metadata("eeutils")
    if name == "__version__":
        return about["Version"]
    return dict(entry.split(", ", 1) for entry in about.get_all("Project-URL"))["Repository"]
