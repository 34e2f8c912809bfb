"""Early exits in convolutional networks: learn them, reproduce them, use them.

A network is units and exits (`eeutils.models`). One pass over a dataset gives a table of the logits of every exit, and
every analysis reads that table (`eeutils.analysis`). `Cascade` is its live counterpart: it stops computing for an image
as soon as an exit is confident:

    data = load_data("cifar10")
    net = load_weights("resnet18_3exits-spp-cifar10-w16")
    choice = choose_thresholds(predict(net, data.val), max_drop=0.005)
    print(Cascade(net, choice.policy).run(data.test))

The names in `__init__.pyi` are imported on first use, so that `import eeutils` costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

__version__ = "0.1.0"
__repository__ = "https://github.com/Marcelo5444/UPF-DL-2020"
