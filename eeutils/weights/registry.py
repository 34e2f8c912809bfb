"""Registry of weights: one entry per network, in a readable JSON file beside the weights."""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from eeutils.data import Normalization
from eeutils.errors import require
from eeutils.files import read_json, reading

REGISTRY_FILE = "registry.json"
# The weights ship; only their predictions do, as they are too large; a command makes them; others published a pickle.
Status = Literal["trained", "measured", "not trained", "external"]


@dataclass(frozen=True)
class StoredFile:
    """A file of an entry, and its sources: "repository" (a clone of it, else its release), URLs, or "drive:<id>"."""

    path: str  # below the repository's `weights/`, and below `weights/` in the cache folder
    sha256: str | None  # of its bytes, in hex; None if it was never available here
    size: int | None  # in bytes; None as above
    sources: tuple[str, ...] = ("repository",)  # tried in this order

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        is_below = bool(path.parts) and not path.is_absolute() and ".." not in path.parts
        require(is_below, f"path must lead below the weights folder, got {self.path!r}")


@dataclass(frozen=True)
class TrainingRecord:
    """Origin of trained weights."""

    recipe: str  # of `eeutils.training.recipe`, "custom" if the command names none
    config: Mapping[str, Any]  # every field of the `TrainConfig`
    device: str  # in words
    versions: Mapping[str, str]  # of Python and torch
    seconds: float  # of training and validation
    images_per_second: float  # median over the epochs, training alone
    share_of_peak: float | None = None  # of the device's speed on matrices, if the whole network was trained


@dataclass(frozen=True)
class WeightEntry:
    """Record of one network: how to build it, the normalization of its images, its weights and their accuracy."""

    name: str  # `<model>-<pool>-<data>`; slim networks end in `-w<width>`, seeds other than 0 in `-s<seed>`
    model: str  # for `eeutils.models.create_model`, with `model_args`
    model_args: Mapping[str, Any]
    data: str  # for `eeutils.data.load_data`
    normalization: Normalization  # of the training images
    status: Status
    command: str = ""  # makes the weights
    note: str = ""  # for the reader
    classes: tuple[str, ...] = ()  # names of the outputs
    weights: StoredFile | None = None  # the file; None if it does not ship
    history: StoredFile | None = None  # the training history (CSV)
    predictions: Mapping[str, StoredFile] = field(default_factory=dict)  # of the weights as shipped, "val" and "test"
    accuracy: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # "val" and "test" -> of each exit
    macs: tuple[int, ...] = ()  # multiply-adds of one image up to and including each exit
    training: TrainingRecord | None = None  # origin of the weights

    def __post_init__(self) -> None:
        known = self.weights and self.weights.sha256
        files = {"trained": known, "measured": self.predictions, "external": self.weights, "not trained": True}
        fits = bool(files.get(self.status))
        require(fits, f"status must fit the files of {self.name}, got {self.status!r}")

    @property
    def has_results(self) -> bool:
        """True if its accuracy was measured here and its predictions ship."""
        return self.status in ("trained", "measured")

    @property
    def training_arguments(self) -> tuple[str, ...]:
        """Arguments of `eeutils.train` in `command`, whatever starts it."""
        training, _, _publishing = self.command.partition(" && ")
        return tuple(shlex.split(training.partition(" -m eeutils.train ")[2]))

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files of the entry."""
        return tuple(file for file in (self.weights, self.history, *self.predictions.values()) if file is not None)

    @staticmethod
    def from_json(name: str, values: Mapping[str, Any]) -> "WeightEntry":
        """Build an entry from what the JSON file has below its name."""
        parts = dict(values)
        parts["normalization"] = Normalization(**parts["normalization"])
        parts["classes"] = tuple(parts.get("classes", ()))
        parts["weights"] = _stored_file(parts.get("weights"))
        parts["history"] = _stored_file(parts.get("history"))
        parts["predictions"] = {split: _stored_file(file) for split, file in parts.get("predictions", {}).items()}
        parts["accuracy"] = {split: tuple(shares) for split, shares in parts.get("accuracy", {}).items()}
        parts["macs"] = tuple(parts.get("macs", ()))
        parts["training"] = TrainingRecord(**parts["training"]) if parts.get("training") else None
        return WeightEntry(name=name, **parts)


@dataclass(frozen=True)
class Registry:
    """All entries, and the folder of their files."""

    entries: tuple[WeightEntry, ...]  # sorted by name
    folder: Path | None = None  # None if only the package is there (installed from a wheel): every file is fetched then

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    def entry(self, name: str) -> WeightEntry:
        """Return the entry of that name."""
        entries = {entry.name: entry for entry in self.entries}
        if name not in entries:
            begin_so = [each for each in entries if each.startswith(str(name))]
            alike = begin_so or get_close_matches(str(name), entries, n=5, cutoff=0.4)
            alike = sorted(alike, key=lambda each: not entries[each].has_results)[:5]
            raise ValueError(f"name must be one of list_weights(), got {name!r}; nearest are {alike}")
        return entries[name]

    @staticmethod
    def load(folder: Path) -> "Registry":
        """Read `folder/registry.json`; a folder without one has no entries yet."""
        path = Path(folder) / REGISTRY_FILE
        return Registry(_entries(path) if path.exists() else (), Path(folder))


def without_seed(name: str) -> str:
    """Return the part of a name that weights from other seeds share."""
    return re.sub(r"-s\d+$", "", name)


def without_width_and_seed(name: str) -> str:
    """Return the part of a name that weights of other widths and seeds share."""
    return re.sub(r"-w\d+$", "", without_seed(name))


def default_registry() -> Registry:
    """Return the registry of the repository around this package, or else the package's own copy."""
    repository = Path(__file__).parents[2]
    # The second file tells a repository from a folder of installed packages that has another `weights`.
    if (repository / "weights" / REGISTRY_FILE).is_file() and (repository / "pyproject.toml").is_file():
        return Registry.load(repository / "weights")
    return Registry(_entries(resources.files("eeutils") / REGISTRY_FILE))


def _entries(path: Path) -> tuple[WeightEntry, ...]:
    with reading(path):
        entries = [WeightEntry.from_json(name, entry) for name, entry in read_json(path).items()]
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _stored_file(values: Mapping[str, Any] | None) -> StoredFile | None:
    return None if values is None else StoredFile(**{**values, "sources": tuple(values["sources"])})
