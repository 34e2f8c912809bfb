"""What weights there are: one entry per network, kept as a readable JSON file beside the weights."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from eeutils.data import Normalization
from eeutils.errors import IntegrityError
from eeutils.files import write_text

REGISTRY_FILE = "registry.json"
Status = Literal["trained", "measured", "not trained", "external"]


@dataclass(frozen=True)
class StoredFile:
    """A file of an entry, and where to get it.

    Attributes:
        path: below the repository's `weights/`, and below `weights/` in the cache folder.
        sha256: of its bytes, in hex; None if nobody here has ever had the file.
        size: bytes; None as above.
        sources: tried in this order; each is "repository", a URL, or "drive:<Google Drive file id>".
    """

    path: str
    sha256: str | None
    size: int | None
    sources: tuple[str, ...] = ("repository",)

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise ValueError(f"path must lead below the weights folder, got {self.path!r}")
        unknown = [source for source in self.sources if source.partition(":")[0] not in _SOURCE_KINDS]
        if unknown:
            raise ValueError(f"unknown source {unknown[0]!r}; a source begins with one of {list(_SOURCE_KINDS)}")


_SOURCE_KINDS = ("repository", "https", "http", "drive")


@dataclass(frozen=True)
class TrainingRecord:
    """How weights came about.

    Attributes:
        recipe: of `eeutils.training.recipe`, "custom" if the command names none.
        config: every field of the `TrainConfig`.
        device: what it ran on, in words.
        versions: of Python and torch.
        seconds: of training and validation.
        images_per_second: median over the epochs, training alone.
        share_of_peak: the operations that these images took, as a share of what the device did on matrices alone; None
            if only a part of the network was trained, or nobody measured it.
    """

    recipe: str
    config: Mapping[str, Any]
    device: str
    versions: Mapping[str, str]
    seconds: float
    images_per_second: float
    share_of_peak: float | None = None


@dataclass(frozen=True)
class WeightEntry:
    """One network: how to build it, how its images are normalised, where its weights are and what they achieve.

    Attributes:
        name: `<model>-<pool>-<data>`; slim networks end in `-w<width>`, seeds other than 0 in `-s<seed>`.
        model: for `eeutils.models.create_model`, with `model_args`.
        data: for `eeutils.data.load_data`.
        classes: what the outputs stand for.
        normalization: of the images that the network was trained on.
        status: "trained": weights are at hand; "measured": what they predict is, but they would take too much room
            themselves; "not trained": `command` makes them; "external": published by others as a pickled module, read
            by `eeutils.weights.pickles`, not measured here.
        command: the exact command that made the weights, or would make them.
        note: what else one should know.
        weights: the file; None if it does not ship.
        history: the training history (CSV).
        predictions: of the weights as shipped, "val" and "test".
        accuracy: "val" and "test" -> share of right answers of each exit, exactly that of `predictions`.
        macs: multiply-adds of one image up to and including each exit.
        training: how the weights came about.
    """

    name: str
    model: str
    model_args: Mapping[str, Any]
    data: str
    normalization: Normalization
    status: Status
    command: str = ""
    note: str = ""
    classes: tuple[str, ...] = ()
    weights: StoredFile | None = None
    history: StoredFile | None = None
    predictions: Mapping[str, StoredFile] = field(default_factory=dict)
    accuracy: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    macs: tuple[int, ...] = ()
    training: TrainingRecord | None = None

    def __post_init__(self) -> None:
        if self.status not in get_args(Status):
            raise ValueError(f"unknown status {self.status!r} of {self.name}; choose from {list(get_args(Status))}")
        if self.status in ("trained", "external") and self.weights is None:
            raise ValueError(f"{self.name} is {self.status} but has no weights file")
        if self.status == "measured" and not self.predictions:
            raise ValueError(f"{self.name} is measured but has no predictions")
        if self.status == "trained" and self.weights.sha256 is None:
            raise ValueError(f"{self.name} is trained but the sha256 of its weights is missing")

    @property
    def has_results(self) -> bool:
        """Whether its accuracy was measured here, and what it predicts is at hand."""
        return self.status in ("trained", "measured")

    @property
    def training_arguments(self) -> tuple[str, ...]:
        """Of `python -m eeutils.train`, in `command`; however many processes that starts."""
        training, _, _publishing = self.command.partition(" && ")
        return tuple(shlex.split(training.partition(" -m eeutils.train ")[2]))

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All that it has."""
        return tuple(file for file in (self.weights, self.history, *self.predictions.values()) if file is not None)

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, without the name."""
        values = asdict(self)
        del values["name"]
        return values

    @staticmethod
    def from_json(name: str, values: Mapping[str, Any]) -> "WeightEntry":
        """What `to_json` gave."""
        parts = dict(values)
        parts["normalization"] = Normalization.from_json(parts["normalization"])
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
    """All entries, and the folder that their files lie in.

    Attributes:
        entries: sorted by name.
        folder: None if only the package is there (installed from a wheel): every file is fetched then.
    """

    entries: tuple[WeightEntry, ...]
    folder: Path | None = None

    @property
    def names(self) -> list[str]:
        return [entry.name for entry in self.entries]

    def entry(self, name: str) -> WeightEntry:
        """The entry of that name.

        Raises:
            ValueError: if there is none; the message has five names at most that begin like it, or else are like it,
                those first whose results are at hand.
        """
        entries = {entry.name: entry for entry in self.entries}
        if name not in entries:
            begin_so = [each for each in entries if each.startswith(name)]
            alike = begin_so or get_close_matches(name, entries, n=5, cutoff=0.4)
            alike = sorted(alike, key=lambda each: not entries[each].has_results)[:5]
            choices = f"choose from {alike}; " if alike else ""
            raise ValueError(f"unknown weights {name!r}; {choices}list_weights() has all that can be loaded")
        return entries[name]

    def with_entry(self, entry: WeightEntry) -> "Registry":
        """A registry that has `entry`, in place of the one of that name if there is one."""
        others = [other for other in self.entries if other.name != entry.name]
        return Registry(tuple(sorted([*others, entry], key=lambda each: each.name)), self.folder)

    def save(self) -> None:
        """Write the JSON file into the folder, whole or not at all; the same entries give the same bytes.

        Raises:
            ValueError: if there is no folder.
            StorageError: if it cannot be written.
        """
        if self.folder is None:
            raise ValueError("this registry came with the package; there is no weights folder to write to")
        values = {entry.name: entry.to_json() for entry in self.entries}
        text = json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False)
        write_text(self.folder / REGISTRY_FILE, text + "\n")

    @staticmethod
    def load(folder: Path) -> "Registry":
        """Read `folder/registry.json`; a folder without one has no entries yet.

        Raises:
            IntegrityError: if the file is no registry.
        """
        path = Path(folder) / REGISTRY_FILE
        text = path.read_text("utf-8") if path.exists() else "{}"
        return Registry(_parse(text, str(path)), Path(folder))


def without_seed(name: str) -> str:
    """What weights and their siblings from other seeds have in common of their names."""
    return re.sub(r"-s\d+$", "", name)


def without_width_and_seed(name: str) -> str:
    """What weights have in common of their names with all of their kind, trained alike on the same data."""
    return re.sub(r"-w\d+$", "", without_seed(name))


def default_registry() -> Registry:
    """The one in the repository that this package lies in; without a repository, the package's own copy."""
    repository = Path(__file__).parents[2]
    # The second file tells a repository from a folder of installed packages that has some `weights` of its own.
    if (repository / "weights" / REGISTRY_FILE).is_file() and (repository / "pyproject.toml").is_file():
        return Registry.load(repository / "weights")
    packaged = resources.files("eeutils") / REGISTRY_FILE
    return Registry(_parse(packaged.read_text("utf-8"), str(packaged)))


def _parse(text: str, origin: str) -> tuple[WeightEntry, ...]:
    try:
        entries = [WeightEntry.from_json(name, values) for name, values in json.loads(text).items()]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise IntegrityError(f"{origin} is not a readable registry of weights: {error!r}") from error
    return tuple(sorted(entries, key=lambda entry: entry.name))


def _stored_file(values: Mapping[str, Any] | None) -> StoredFile | None:
    return None if values is None else StoredFile(**{**values, "sources": tuple(values["sources"])})
