"""Publish a training run as shipped weights: `python -m tools.publish runs/resnet18_3exits-spp-cifar10-w16-s0`."""

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from eeutils.analysis.predictions import Predictions, predict
from eeutils.data import ImageData, load_data
from eeutils.device import choose_device, unrounded_convolutions
from eeutils.errors import message_instead_of_traceback
from eeutils.files import exclusive, save_tensors, sha256_of_file, work_folder
from eeutils.models import MultiExitNet
from eeutils.training import History, list_recipes
from eeutils.weights.fetch import release_tag
from eeutils.weights.load import model_arguments, read_report, run_name
from eeutils.weights.registry import (
    REGISTRY_FILE,
    Registry,
    StoredFile,
    TrainingRecord,
    WeightEntry,
    default_registry,
)
from eeutils.weights.tensors import put_tensors, read_tensors, untrained_network
from tools.registry_file import save_registry, with_entry
from tools.weights_page import write_readme

# Half precision moves an accuracy by a few images; more means that weights and report are of different runs.
_LARGEST_CHANGE = 0.01

LARGEST_FILE = 25_000_000
"""Bytes of a file that ships."""

LARGEST_FOLDER = 200_000_000
"""Bytes of all files that ship."""


@dataclass(frozen=True)
class Options:
    """Options: which runs to publish, and whether with weights.

    Attributes:
        folders: of training runs, such as runs/resnet18_3exits-spp-cifar10-w16-s0.
        results_only: what the networks predict and how they were trained, but not their weights.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional]
    results_only: bool = False


@message_instead_of_traceback()
def main(args: list[str] | None = None) -> None:
    """Publish the runs named on the command line into the repository's weights folder."""
    options = tyro.cli(Options, prog="python -m tools.publish", description=__doc__, args=args)
    if not options.folders:
        sys.exit("error: name one or more folders of training runs, such as runs/resnet18_3exits-spp-cifar10-w16-s0")
    for folder in options.folders:
        entry = publish(folder, default_registry(), results_only=options.results_only)
        print(entry.name, "test accuracy", " ".join(f"{share:.2%}" for share in entry.accuracy["test"]))
    print(f"Installed packages fetch the files of the tag of their version, the next being {release_tag()}.")


def publish(run_folder: Path, registry: Registry, *, results_only: bool = False) -> WeightEntry:
    """Copy one training run into the registry's folder, replacing an entry of the same name.

    What ships is half precision, and every number recorded is measured on exactly that: the file is read back, the
    network predicts, the predictions are saved, read back, and counted.

    Args:
        run_folder: what `eeutils.train` wrote: `weights.safetensors`, `history.csv`, `report.json`.
        registry: its folder gets the files, `registry.json` and `README.md`; other processes may publish there, too.
        results_only: leave the weights out, whose place is limited: the entry is "measured" and not "trained" then.

    Raises:
        FileNotFoundError: if the run did not finish.
        ValueError: if weights and report do not fit together, the registry has no folder, or the files are too large
            to ship (`LARGEST_FILE`, `LARGEST_FOLDER`).
        IntegrityError: if a file of the run is damaged.
        StorageError: if the weights folder cannot be written.
    """
    if registry.folder is None:
        raise ValueError("this registry came with the package; publish from a clone of the repository")
    run_folder = Path(run_folder)
    report = read_report(run_folder)
    entry = entry_of(report)
    with work_folder(registry.folder / entry.name) as staging:
        entry = _staged(entry, run_folder, staging)
        _check_against(report, entry)
        if results_only:
            entry = _without_weights(entry, staging)
        _check_sizes(entry, registry)
        _put_in_place(entry, staging / entry.name, registry.folder)
    return entry


def entry_name(run: Mapping[str, Any]) -> str:
    """Name of a run's weights: the run's name, with its seed unless that is 0."""
    seed = run["train"]["seed"]
    return run_name(run) + (f"-s{seed}" if seed else "")


def planned_entry(run: Mapping[str, Any], command: str) -> WeightEntry:
    """Registry entry of a planned run.

    Args:
        run: the fields of an `eeutils.train.TrainingRun`, as a dict.
        command: what does it.
    """
    data = load_data(run["data"])
    return WeightEntry(
        name=entry_name(run),
        model=run["model"],
        model_args=model_arguments(run, len(data.classes), data.image_shape),
        data=run["data"],
        classes=data.classes,
        normalization=data.normalization,
        status="not trained",
        command=command,
    )


def entry_of(report: Mapping[str, Any]) -> WeightEntry:
    """Registry entry of a finished run, without measurements."""
    planned = planned_entry(report["run"], report["command"])
    record = TrainingRecord(
        recipe=_recipe_of(planned),
        config=report["run"]["train"],
        device=report["device"],
        versions=report["versions"],
        seconds=report["seconds"],
        images_per_second=report["images_per_second"],
        share_of_peak=report.get("share_of_peak"),
    )
    return replace(planned, training=record)


def _recipe_of(entry: WeightEntry) -> str:
    """Recipe name in the training command; "custom" for a run started from Python."""
    first = next(iter(entry.training_arguments), "")
    return first if first in list_recipes() else "custom"


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert weights of convolutions and linear layers to float16; norms, biases and buffers stay float32."""
    return {
        name: (tensor.half() if tensor.ndim > 1 and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in tensors.items()
    }


def _staged(entry: WeightEntry, run_folder: Path, staging: Path) -> WeightEntry:
    """Complete the entry, with its files in `staging/<name>/`."""
    folder = staging / entry.name
    folder.mkdir()
    save_tensors(folder / "weights.safetensors", halved(read_tensors(run_folder / "weights.safetensors")))
    History.load_csv(run_folder / "history.csv")  # raises if it is none
    shutil.copyfile(run_folder / "history.csv", folder / "history.csv")
    net = untrained_network(entry.model, entry.model_args).eval()
    put_tensors(net, read_tensors(folder / "weights.safetensors"), str(run_folder))
    predictions = _saved_predictions(net, load_data(entry.data), folder)
    # Default places of internal classifiers may move, those of weights may not.
    places = {"exit_after": list(net.exit_after[:-1])} if entry.model.endswith("_sdn") else {}
    return replace(
        entry,
        model_args={**entry.model_args, **places},
        status="trained",
        weights=_stored(staging, folder / "weights.safetensors"),
        history=_stored(staging, folder / "history.csv"),
        predictions={split: _stored(staging, _predictions_file(folder, split)) for split in predictions},
        accuracy={split: tuple(each.accuracy.tolist()) for split, each in predictions.items()},
        macs=tuple(int(macs) for macs in predictions["test"].costs.tolist()),
    )


def _without_weights(entry: WeightEntry, staging: Path) -> WeightEntry:
    (staging / entry.weights.path).unlink()
    return replace(entry, status="measured", weights=None)


def _check_sizes(entry: WeightEntry, registry: Registry) -> None:
    """Raise ValueError if a file, or all shipped files together, would be too large."""
    largest = max(file.size for file in entry.files)
    entries = with_entry(registry, entry).entries
    together = sum(file.size for each in entries for file in each.files if "repository" in file.sources)
    for what, size, limit in (("a file", largest, LARGEST_FILE), ("all files", together, LARGEST_FOLDER)):
        if size > limit:
            raise ValueError(
                f"{what} would have {size / 1e6:.1f} MB with {entry.name}, and what ships has at most "
                f"{limit / 1e6:g} MB; --results-only leaves its weights out"
            )


def _put_in_place(entry: WeightEntry, files: Path, folder: Path) -> None:
    """Move `files` into the weights folder and update its registry and README."""
    with exclusive(folder / REGISTRY_FILE):
        registry = with_entry(Registry.load(folder), entry)  # read here: another process may just have written it
        with _set_aside(folder / entry.name):
            files.rename(folder / entry.name)
            save_registry(registry)
        write_readme(registry)


@contextmanager
def _set_aside(folder: Path) -> Iterator[None]:
    """Let the block replace `folder`; the old one is restored if the block fails."""
    aside = folder.with_name(f".{folder.name}.before")
    if aside.exists() and not folder.exists():  # a process was killed before it had put its own in place
        aside.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _saved_predictions(net: MultiExitNet, data: ImageData, folder: Path) -> dict[str, Predictions]:
    """Save predictions of both splits and read them back, as users will."""
    with unrounded_convolutions():
        for split, images in (("val", data.val), ("test", data.test)):
            predict(net, images, device=choose_device()).save(_predictions_file(folder, split))
    return {split: Predictions.load(_predictions_file(folder, split)) for split in ("val", "test")}


def _predictions_file(folder: Path, split: str) -> Path:
    return folder / f"predictions-{split}.safetensors"


def _stored(staging: Path, path: Path) -> StoredFile:
    path.chmod(0o644)
    return StoredFile(path.relative_to(staging).as_posix(), sha256_of_file(path), path.stat().st_size)


def _check_against(report: Mapping[str, Any], entry: WeightEntry) -> None:
    trained, shipped = torch.tensor(report["test_accuracy"]), torch.tensor(entry.accuracy["test"])
    if trained.shape != shipped.shape or (trained - shipped).abs().max() > _LARGEST_CHANGE:
        raise ValueError(
            f"report.json says test accuracy {report['test_accuracy']}, the weights reach "
            f"{list(entry.accuracy['test'])}: they are of different runs"
        )


if __name__ == "__main__":
    main()
