"""Start a notebook: device, figure style, data and trained networks.

With EEUTILS_QUICK=1 in the environment a notebook runs in seconds, offline: on the digits data, with slim networks that
are trained on the spot and kept in the cache folder.
"""

import hashlib
import os
import platform
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import torch

from eeutils.analysis.predictions import Predictions, predict
from eeutils.data import ImageData, load_data
from eeutils.errors import DataUnavailableError, require
from eeutils.files import cache_dir, exclusive
from eeutils.models import MultiExitNet, copy_backbone, create_model
from eeutils.plots import use_style
from eeutils.scoreboard import Evaluation
from eeutils.training import History, LossConfig, TrainConfig, choose_device, fit, recipe
from eeutils.weights import (
    PickledTensors,
    Registry,
    WeightEntry,
    default_registry,
    load_history,
    load_predictions,
    load_weights,
    read_pickled_tensors,
    without_seed,
)
from eeutils.weights.fetch import drive_page, local_file

if TYPE_CHECKING:
    from ipywidgets import ValueWidget, VBox

QUICK_WIDTH = 8
QUICK_EPOCHS = 4

YOURS = "yours/"
"""Prefix of networks trained here in notebook 2 or 3, such as "yours/resnet18_2exits-spp"."""

_DRIVE = Path("/content/drive/MyDrive")

_PUBLISHED_WIDTH = 64
_COMPARED = ("resnet18-avg", *(f"resnet18_{exits}exits-{pool}" for exits in (2, 3) for pool in ("avg", "spp")))


@dataclass(frozen=True)
class Session:
    """Data and trained networks of a notebook.

    A network's name is `<model>-<pool>`, such as "resnet18_3exits-spp", for the slimmest at which all networks that
    notebooks compare are trained; with "-ic_only" at the end, one whose early exits were trained alone on a finished
    network. A full name, as weights/README.md has them, stands for itself, in quick mode for its kind, where ResNet18
    takes the place of ResNet56. "yours/<model>-<pool>" is the network that you trained in notebook 2 or 3.
    """

    # Digits and slim networks instead of CIFAR-10 and the shipped weights.
    quick: bool = field(default_factory=lambda: os.environ.get("EEUTILS_QUICK") == "1")

    @cached_property
    def data(self) -> ImageData:
        """CIFAR-10, or digits in quick mode."""
        return load_data("digits" if self.quick else "cifar10")

    @property
    def recipe(self) -> TrainConfig:
        """Recipe of a run short enough to wait for: one epoch on a CPU, more on a GPU."""
        if self.quick:
            return recipe("digits", epochs=2)
        return recipe("t4") if torch.cuda.is_available() else recipe("slim", epochs=1)

    @property
    def width(self) -> int:
        """Width of the networks that a notebook trains itself: slim without a GPU."""
        return QUICK_WIDTH if self.quick else 64 if torch.cuda.is_available() else 16

    def weights_name(self, network: str) -> str:
        """Full name of the weights of `network`."""
        registry = default_registry()
        if self.quick:
            return f"{_quick_kind(network, registry)}-digits-w{QUICK_WIDTH}"
        if network in registry.names:
            return network
        kinds = _trained_kinds(registry)
        wanted = f"a full name in weights/README.md or one of {sorted(kinds)}"
        require(network in kinds, f"network must be {wanted}, got {network!r}")
        common = set.intersection(*(set(kinds.get(compared, ())) for compared in _COMPARED))
        return kinds[network].get(min(common, default=None), kinds[network][max(kinds[network])])

    def seeds(self, network: str) -> list[str]:
        """Names of all trained seeds of `network`; one in quick mode."""
        kind = without_seed(self.weights_name(network))
        entries = default_registry().entries
        return [each.name for each in entries if each.has_results and without_seed(each.name) == kind] or [network]

    def checkpoint(self, network: str) -> Path:
        """File of your own run of `network`: on a mounted Google Drive if there is one, else in runs/."""
        folder = _DRIVE / "early-exits" if _DRIVE.exists() else Path("runs")
        return folder / f"{network}-{'digits' if self.quick else 'cifar10'}-w{self.width}.pt"

    def network(self, network: str) -> MultiExitNet:
        """The trained network, in evaluation mode on the CPU."""
        if network.startswith(YOURS):
            return self._own_run(network.removeprefix(YOURS))
        return self._quick_run(network)[0] if self.quick else load_weights(self.weights_name(network))

    def history(self, network: str) -> History:
        """Its training history."""
        return self._quick_run(network)[1] if self.quick else load_history(self.weights_name(network))

    def evaluation(self, network: str) -> Evaluation:
        """Its predictions on validation and test."""
        return Evaluation(*(self.predictions(network, split) for split in ("val", "test")))

    def predictions(self, network: str, split: str) -> Predictions:
        """Its predictions on one split ("val" or "test")."""
        if self.quick or network.startswith(YOURS):
            return predict(self.network(network), getattr(self.data, split))
        return load_predictions(self.weights_name(network), split)

    def from_drive(self, name: str) -> PickledTensors | None:
        """Fetch a network that UPF-DL-2020 put on Google Drive; None if Drive cannot be reached, which is said."""
        registry = default_registry()
        file = registry.entry(name).weights
        if not self.quick:
            with suppress(DataUnavailableError), redirect_stderr(StringIO()):  # gdown tells of every attempt there
                return read_pickled_tensors(local_file(file, registry.folder, read_pickled_tensors))
        page = drive_page(file.sources[0].removeprefix("drive:"))
        print(f"Nothing from {page}; run this cell with a connection.")
        return None

    def _own_run(self, network: str) -> MultiExitNet:
        path = self.checkpoint(network)
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; train {network} first, in notebook 2 or 3")
        model, _, pool = network.partition("-")
        net = create_model(model, width=self.width, pool=pool)
        fit(net, self.data, self.recipe, checkpoint=path, progress=False)  # a finished run is only read
        return net

    def _quick_run(self, network: str) -> tuple[MultiExitNet, History]:
        kind = _quick_kind(network, default_registry())
        model, _, pool = kind.removesuffix("-ic_only").partition("-")
        torch.manual_seed(0)
        net = create_model(model, width=QUICK_WIDTH, **({"pool": pool} if pool else {}))
        how = recipe("digits", epochs=QUICK_EPOCHS)
        if kind.endswith("-ic_only"):
            copy_backbone(net, self.network(f"{model.removesuffix('_sdn')}-avg"))
            how = replace(how, trained="early_exits", loss=LossConfig(weights="equal"))
        kept = cache_dir() / "quick" / f"{self.weights_name(network)}-{_digest(net, how)}.pt"
        with redirect_stderr(StringIO()), exclusive(kept.with_suffix("")):  # notebooks run at a time wait in silence
            return net, fit(net, self.data, how, checkpoint=kept, progress=False)


def start() -> Session:
    """Print what the notebook runs on, set the figures' style, and return data and networks."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats  # comes with a kernel, as ipywidgets does

    use_style()
    set_matplotlib_formats("retina", pil_kwargs={"optimize": True})
    session = Session()
    print(f"Python {platform.python_version()}, torch {torch.__version__.split('+')[0]}, {_device_in_words()}.")
    if session.quick:
        print("Quick mode: digits instead of CIFAR-10, and slim networks trained on the spot.")
    print("Numbers in the text are those of the stored run; yours are in the outputs.")
    return session


def explore(draw: Callable[..., plt.Figure], **choices: Sequence[object]) -> "VBox":
    """Return a control for each argument of `draw`, above the figure that it draws with them.

    Floats are the ends and the first position of a slider; other choices are a list to pick from.
    """
    from ipywidgets import HBox, Image, Layout, VBox

    controls = {name: _control(name.replace("_", " "), values) for name, values in choices.items()}
    picture = Image(layout=Layout(max_width="100%", object_fit="contain"))

    def redraw(_change: object = None) -> None:
        figure, drawn = draw(**{name: control.value for name, control in controls.items()}), BytesIO()
        figure.savefig(drawn, format="png")
        plt.close(figure)
        picture.value = drawn.getvalue()

    for control in controls.values():
        control.observe(redraw, names="value")
    redraw()
    return VBox([HBox(list(controls.values())), picture])


def _control(name: str, values: Sequence[object]) -> "ValueWidget":
    from ipywidgets import Dropdown, FloatSlider

    if isinstance(values[0], float):
        low, high, start = values
        return FloatSlider(start, min=low, max=high, step=0.01, description=name, continuous_update=False)
    return Dropdown(options=list(values), description=name)


def _device_in_words() -> str:
    device = choose_device()
    if device.type == "cuda":
        return f"GPU {torch.cuda.get_device_name(device)}"
    return (
        f"{os.cpu_count()} CPU cores, no GPU: enough here, where little is trained.\n"
        "In Colab, Runtime > Change runtime type > T4 GPU trains wide networks, too"
    )


def _digest(net: MultiExitNet, config: TrainConfig) -> str:
    """Fingerprint of a run, so that an older version's checkpoint is not reused."""
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    return hashlib.sha256(repr((config, shapes)).encode()).hexdigest()[:8]


def _trained_kinds(registry: Registry) -> dict[str, dict[int, str]]:
    """Names of trained weights of seed 0 with default exits and clean data, by `<model>-<pool>` and width."""
    kinds: dict[str, dict[int, str]] = {}
    for entry in registry.entries:
        is_usual = not re.search(r"-e\d", entry.name) and entry.data == "cifar10" and "trigger" not in entry.name
        if entry.status == "trained" and is_usual and entry.training.config["seed"] == 0:
            kinds.setdefault(_kind(entry), {})[entry.model_args.get("width", _PUBLISHED_WIDTH)] = entry.name
    return kinds


def _quick_kind(network: str, registry: Registry) -> str:
    """`<model>-<pool>` that quick mode trains for a network named in short or in full."""
    kind = _kind(registry.entry(network)) if network in registry.names else network
    if kind == "resnet56":
        return "resnet18-avg"
    return kind.replace("resnet56", "resnet18")  # 56 layers on digits take minutes


def _kind(entry: WeightEntry) -> str:
    """`<model>-<pool>`, or `<model>` if it has none; with "-ic_only" for early exits that were trained alone."""
    alone = entry.training is not None and entry.training.config.get("trained") == "early_exits"
    parts = entry.model, entry.model_args.get("pool"), "ic_only" if alone else None
    return "-".join(filter(None, parts))
