import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from eeutils import list_weights, load_data, load_history, load_predictions, load_weights, predict
from eeutils.errors import IntegrityError, StorageError
from eeutils.files import exclusive
from eeutils.weights import Registry
from tests.toys import kill_this_process, run_in_child
from tools import publish as publish_module
from tools.publish import publish
from tools.registry_file import save_registry
from tools.weights_page import readme_text

pytestmark = pytest.mark.usefixtures("cache")

NAME = "resnet18_2exits-spp-digits-w4-s3"


@pytest.fixture
def empty(tmp_path) -> Registry:
    (tmp_path / "weights").mkdir()
    return Registry.load(tmp_path / "weights")


def change_report(run: Path, **changes) -> None:
    report = json.loads((run / "report.json").read_text())
    (run / "report.json").write_text(json.dumps(report | changes))


def change_weights(run: Path, change) -> None:
    tensors = load_file(run / "weights.safetensors")
    change(tensors)
    save_file(tensors, run / "weights.safetensors")


def test_publish_makes_an_entry_that_says_what_ships(run, empty):
    change_report(run, command="python -m eeutils.train digits --train.epochs 1")
    entry = publish(run, empty)
    registry = Registry.load(empty.folder)
    assert registry.entries == (entry,)
    assert (entry.name, entry.status, entry.training.recipe) == (NAME, "trained", "digits")
    assert entry.training.config["epochs"] == 1
    data = load_data("digits")
    assert entry.normalization == data.normalization
    net = load_weights(NAME, registry=registry)
    for split, images in (("val", data.val), ("test", data.test)):
        kept = load_predictions(NAME, split, registry=registry)
        again = predict(net, images)
        torch.testing.assert_close(kept.logits, again.logits, rtol=2e-3, atol=2e-3)
        assert torch.equal(kept.labels, images.labels)
        assert entry.accuracy[split] == tuple(kept.accuracy.tolist())
        assert list(entry.macs) == again.costs.tolist()
    assert len(load_history(NAME, registry=registry).rows) == 1


def tree(folder: Path) -> dict[Path, bytes]:
    """Every file and what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_publish_keeps_what_another_process_published_meanwhile(run, tiny_registry, monkeypatch):
    folder, turns = tiny_registry.folder, []
    (folder / "registry.json").unlink()

    @contextmanager
    def after_another(target: Path) -> Iterator[None]:
        save_registry(tiny_registry)
        with exclusive(target):
            turns.append(target)
            yield

    monkeypatch.setattr(publish_module, "exclusive", after_another)
    publish(run, Registry.load(folder))
    assert turns == [folder / "registry.json"]
    assert Registry.load(folder).names == sorted([*tiny_registry.names, NAME])


def test_publish_leaves_the_old_files_if_the_registry_cannot_be_written(run, empty, monkeypatch):
    publish(run, empty)
    before = tree(empty.folder)
    change_report(run, seconds=99.0)
    change_weights(run, lambda tensors: tensors["units.0.1.bias"].add_(1e-4))

    with monkeypatch.context() as patched:
        patched.setattr(publish_module, "save_registry", Mock(side_effect=StorageError("no space")))
        with pytest.raises(StorageError, match="no space"):
            publish(run, empty)
    assert tree(empty.folder) == before
    publish(run, empty)
    assert tree(empty.folder).keys() == before.keys()
    assert tree(empty.folder) != before


def test_publish_killed_leaves_the_old_files_and_the_next_one_clears_up(run, empty, monkeypatch):
    publish(run, empty)
    before = tree(empty.folder)
    with monkeypatch.context() as patched:
        patched.setattr(publish_module, "save_registry", lambda registry: kill_this_process())
        assert run_in_child(lambda: publish(run, empty)) == -signal.SIGKILL
    aside = empty.folder / f".{NAME}.before"
    kept = {path.name: content for path, content in before.items() if path.parent.name == NAME}
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == kept
    publish(run, Registry.load(empty.folder))
    assert not aside.exists()
    hidden = {path for path in tree(empty.folder) if path.relative_to(empty.folder).parts[0].startswith(".")}
    assert {path: content for path, content in tree(empty.folder).items() if path not in hidden} == before


def test_publish_puts_results_alone_in_the_place_of_weights(run, empty):
    publish(run, empty)
    entry = publish(run, Registry.load(empty.folder), results_only=True)
    registry = Registry.load(empty.folder)
    assert registry.entries == (entry,)
    assert (entry.status, entry.weights) == ("measured", None)
    assert {path.name for path in (empty.folder / NAME).iterdir()} == {Path(file.path).name for file in entry.files}
    for split, shares in entry.accuracy.items():
        kept = load_predictions(NAME, split, registry=registry)
        assert tuple(kept.accuracy.tolist()) == shares
    assert len(load_history(NAME, registry=registry).rows) == 1
    assert list_weights(registry) == []
    with pytest.raises(ValueError, match=rf"{NAME} do not ship.*load_predictions(.|\n)*{entry.command}"):
        load_weights(NAME, registry=registry)
    assert "| does not ship |" in readme_text(registry)


@pytest.mark.parametrize("limit", ["LARGEST_FILE", "LARGEST_FOLDER"])
def test_publish_refuses_what_is_too_large_to_ship(run, tiny_registry, tmp_path, monkeypatch, limit):
    before = tree(tiny_registry.folder)
    (tmp_path / "other").mkdir()
    alone = publish(run, Registry((), tmp_path / "other"))
    sizes = [file.size for file in alone.files]
    already = sum(file.size for each in tiny_registry.entries for file in each.files)
    just = {"LARGEST_FILE": max(sizes), "LARGEST_FOLDER": sum(sizes) + already}[limit]
    monkeypatch.setattr(publish_module, limit, just - 1)
    with pytest.raises(ValueError, match="--results-only"):
        publish(run, tiny_registry)
    assert tree(tiny_registry.folder) == before
    monkeypatch.setattr(publish_module, limit, just)
    assert publish(run, tiny_registry).files == alone.files


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda run: change_weights(run, lambda tensors: tensors["units.0.1.bias"].fill_(float("nan"))), ValueError),
        (lambda run: change_weights(run, lambda tensors: tensors["units.0.0.weight"].mul_(1e9)), ValueError),
        (lambda run: (run / "history.csv").write_text("<html>not found</html>"), IntegrityError),
        (lambda run: change_report(run, test_accuracy=[1.0, 1.0]), ValueError),
        (lambda run: (run / "report.json").unlink(), FileNotFoundError),
    ],
    ids=["nan", "too large for half", "history", "another run", "unfinished"],
)
def test_publish_refuses_what_is_not_worth_it_and_changes_nothing(run, tiny_registry, spoil, error):
    before = tree(tiny_registry.folder)
    spoil(run)
    with pytest.raises(error):
        publish(run, tiny_registry)
    assert tree(tiny_registry.folder) == before
