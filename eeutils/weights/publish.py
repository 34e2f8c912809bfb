"""Training runs become shipped weights: `python -m eeutils.weights.publish runs/resnet18_3exits-spp-cifar10-w16-s0`."""

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor

import eeutils
from eeutils.analysis.metrics import accuracy_per_exit
from eeutils.analysis.predictions import Predictions, predict
from eeutils.data import ImageData, load_data
from eeutils.errors import IntegrityError
from eeutils.files import exclusive
from eeutils.models import MultiExitNet, create_model
from eeutils.models.fitting import fitting_arguments
from eeutils.training import History, list_recipes
from eeutils.weights.fetch import sha256_of
from eeutils.weights.readme import write_readme
from eeutils.weights.registry import (
    REGISTRY_FILE,
    Registry,
    StoredFile,
    TrainingRecord,
    WeightEntry,
    default_registry,
    run_name,
)
from eeutils.weights.tensors import put_tensors, read_tensors

# HEAD is the default branch, whatever its name.
_PUBLISHED_AT = eeutils.__repository__.replace("//github.com/", "//raw.githubusercontent.com/") + "/HEAD/weights"
# Half precision moves an accuracy by a few images; more means that weights and report are of different runs.
_LARGEST_CHANGE = 0.01


def main(args: list[str] | None = None) -> None:
    """Publish the runs named on the command line into the repository's weights folder."""
    folders = tyro.cli(tuple[Path, ...], prog="python -m eeutils.weights.publish", args=args)
    if not folders:
        sys.exit("error: name one or more folders of training runs, such as runs/resnet18_3exits-spp-cifar10-w16-s0")
    try:
        for folder in folders:
            entry = publish(folder, default_registry())
            print(entry.name, "test accuracy", " ".join(f"{share:.2%}" for share in entry.accuracy["test"]))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


def publish(run_folder: Path, registry: Registry) -> WeightEntry:
    """Make the files of one training run part of the registry's folder; an entry of that name is replaced.

    What ships is half precision, and every number recorded is measured on exactly that: the file is read back, the
    network predicts, the predictions are saved, read back, and counted.

    Args:
        run_folder: what `eeutils.train` wrote: `weights.safetensors`, `history.csv`, `report.json`.
        registry: its folder gets the files, `registry.json` and `README.md`; other processes may publish there, too.

    Raises:
        FileNotFoundError: if the run did not finish.
        ValueError: if weights and report do not fit together, or the registry has no folder.
        IntegrityError: if a file of the run is damaged.
        StorageError: if the weights folder cannot be written.
    """
    if registry.folder is None:
        raise ValueError("this registry came with the package; publish from a clone of the repository")
    run_folder = Path(run_folder)
    report = _read_report(run_folder / "report.json")
    entry = _described(report)
    with tempfile.TemporaryDirectory(dir=registry.folder, prefix=".publishing-") as staging:
        entry = _staged(entry, run_folder, Path(staging))
        _check_against(report, entry)
        _put_in_place(entry, Path(staging, entry.name), registry.folder)
    return entry


def halved(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of convolutions and linear layers in float16; norms, biases and buffers, small and delicate, as is."""
    return {
        name: (tensor.half() if tensor.ndim > 1 and tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in tensors.items()
    }


def entry_name(run: Mapping[str, Any]) -> str:
    """The name of a run, with its seed unless that is 0."""
    seed = run["train"]["seed"]
    return run_name(run) + (f"-s{seed}" if seed else "")


def _read_report(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: the run did not finish; the same training command goes on with it"
        )
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise IntegrityError(f"{path} is not a readable report: {error}") from error


def planned_entry(run: Mapping[str, Any], command: str) -> WeightEntry:
    """The entry of a run that nobody has done yet.

    Args:
        run: the fields of an `eeutils.train.TrainingRun`, as a dict.
        command: what does it.
    """
    data = load_data(run["data"])
    return WeightEntry(
        name=entry_name(run),
        model=run["model"],
        model_args={
            **fitting_arguments(run["model"], len(data.classes), data.image_shape),
            **{name: run[name] for name in ("width", "pool", "stem", "exit_after") if run.get(name) is not None},
        },
        data=run["data"],
        normalization=data.normalization,
        status="not trained",
        command=command,
    )


def _described(report: Mapping[str, Any]) -> WeightEntry:
    """The entry without what has to be measured."""
    return replace(
        planned_entry(report["run"], report["command"]),
        training=TrainingRecord(
            recipe=_recipe_in(report["command"]),
            config=report["run"]["train"],
            device=report["device"],
            versions=report["versions"],
            seconds=report["seconds"],
            images_per_second=report["images_per_second"],
            share_of_peak=report.get("share_of_peak"),
        ),
    )


def _recipe_in(command: str) -> str:
    return next((word for word in shlex.split(command) if word in list_recipes()), "custom")


def _staged(entry: WeightEntry, run_folder: Path, staging: Path) -> WeightEntry:
    """The entry in full, its files lying in `staging/<name>/`."""
    folder = staging / entry.name
    folder.mkdir()
    save_file(halved(_finite(read_tensors(run_folder / "weights.safetensors"))), folder / "weights.safetensors")
    History.load_csv(run_folder / "history.csv")  # raises if it is none
    shutil.copyfile(run_folder / "history.csv", folder / "history.csv")
    net = create_model(entry.model, **entry.model_args).eval()
    put_tensors(net, read_tensors(folder / "weights.safetensors"), str(run_folder))
    predictions = _saved_predictions(net, load_data(entry.data), folder)
    return replace(
        entry,
        status="trained",
        weights=_stored(staging, folder / "weights.safetensors"),
        history=_stored(staging, folder / "history.csv"),
        predictions={split: _stored(staging, _predictions_file(folder, split)) for split in predictions},
        accuracy={split: tuple(accuracy_per_exit(each).tolist()) for split, each in predictions.items()},
        macs=tuple(int(macs) for macs in predictions["test"].costs.tolist()),
    )


def _put_in_place(entry: WeightEntry, files: Path, folder: Path) -> None:
    """Make `files` those of the entry in the weights folder, and say so in its registry and its README."""
    with exclusive(folder / REGISTRY_FILE):
        registry = Registry.load(folder).with_entry(entry)  # read here: another process may just have written it
        with _set_aside(folder / entry.name):
            files.rename(folder / entry.name)
            registry.save()
        write_readme(registry)


@contextmanager
def _set_aside(folder: Path) -> Iterator[None]:
    """Let the block replace `folder`: the old one is deleted last, and comes back if the block fails."""
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


def _finite(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"the run's weights are NaN or infinite in {broken[:5]}; it is not worth publishing")
    return tensors


def _saved_predictions(net: MultiExitNet, data: ImageData, folder: Path) -> dict[str, Predictions]:
    """Predictions of both splits as they come back from their files: that is what everyone else will see."""
    for split, images in (("val", data.val), ("test", data.test)):
        predict(net, images).save(_predictions_file(folder, split))
    return {split: Predictions.load(_predictions_file(folder, split)) for split in ("val", "test")}


def _predictions_file(folder: Path, split: str) -> Path:
    return folder / f"predictions-{split}.safetensors"


def _stored(staging: Path, path: Path) -> StoredFile:
    path.chmod(0o644)
    below = path.relative_to(staging).as_posix()
    return StoredFile(below, sha256_of(path), path.stat().st_size, ("repository", f"{_PUBLISHED_AT}/{below}"))


def _check_against(report: Mapping[str, Any], entry: WeightEntry) -> None:
    trained, shipped = torch.tensor(report["test_accuracy"]), torch.tensor(entry.accuracy["test"])
    if trained.shape != shipped.shape or (trained - shipped).abs().max() > _LARGEST_CHANGE:
        raise ValueError(
            f"report.json says test accuracy {report['test_accuracy']}, the weights reach "
            f"{list(entry.accuracy['test'])}: they are of different runs"
        )


if __name__ == "__main__":
    main()
