import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eeutils.analysis.predictions import predict
from eeutils.data import load_data
from eeutils.errors import IntegrityError, StorageError
from eeutils.files import exclusive, sha256_of_file
from eeutils.weights import Registry, StoredFile, list_weights, load_history, load_predictions, load_weights
from eeutils.weights.fetch import drive_page
from tools import publish as publish_module
from tools.publish import _check_against, _set_aside, main, publish
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


def test_a_run_becomes_an_entry_that_says_what_ships(run, empty):
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


def test_every_file_is_as_recorded(run, empty):
    entry = publish(run, empty)
    files = [entry.weights, entry.history, *entry.predictions.values()]
    assert {file.path for file in files} == {
        path.relative_to(empty.folder).as_posix() for path in (empty.folder / NAME).iterdir()
    }
    for file in files:
        path = empty.folder / file.path
        assert (sha256_of_file(path), path.stat().st_size) == (file.sha256, file.size)
        assert file.sources == ("repository",)
    kept = {path.name for path in empty.folder.iterdir()} - {".registry.json.lock"}
    assert kept == {NAME, "registry.json", "README.md"}


def test_weights_ship_in_half_precision_norms_do_not(run, empty):
    entry = publish(run, empty)
    shipped = load_file(empty.folder / entry.weights.path)
    trained = load_file(run / "weights.safetensors")
    assert shipped.keys() == trained.keys()
    for name, tensor in trained.items():
        assert shipped[name].dtype == (torch.float16 if tensor.ndim > 1 else tensor.dtype)
        torch.testing.assert_close(shipped[name].to(tensor.dtype), tensor, rtol=1e-3, atol=1e-6)


def test_publishing_again_replaces(run, empty):
    publish(run, empty)
    first = (empty.folder / "registry.json").read_bytes()
    publish(run, Registry.load(empty.folder))
    assert (empty.folder / "registry.json").read_bytes() == first
    change_report(run, seconds=99.0)
    (empty.folder / NAME / "left over").write_text("")
    assert publish(run, Registry.load(empty.folder)).training.seconds == 99.0
    assert not (empty.folder / NAME / "left over").exists()
    assert len(Registry.load(empty.folder).entries) == 1


def tree(folder: Path) -> dict[Path, bytes]:
    """Every file and what is in it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def test_what_another_process_published_until_it_is_our_turn_stays(run, tiny_registry, monkeypatch):
    folder, turns = tiny_registry.folder, []
    (folder / "registry.json").unlink()

    @contextmanager
    def after_another(target: Path) -> Iterator[None]:
        tiny_registry.save()
        with exclusive(target):
            turns.append(target)
            yield

    monkeypatch.setattr(publish_module, "exclusive", after_another)
    publish(run, Registry.load(folder))
    assert turns == [folder / "registry.json"]
    assert Registry.load(folder).names == sorted([*tiny_registry.names, NAME])


def test_a_registry_that_cannot_be_written_leaves_the_files_of_before(run, empty, monkeypatch):
    publish(run, empty)
    before = tree(empty.folder)
    change_report(run, seconds=99.0)
    change_weights(run, lambda tensors: tensors["units.0.1.bias"].add_(1e-4))

    def refuse(self) -> None:
        raise StorageError("no space")

    with monkeypatch.context() as patched:
        patched.setattr(Registry, "save", refuse)
        with pytest.raises(StorageError, match="no space"):
            publish(run, empty)
    assert tree(empty.folder) == before
    publish(run, empty)
    assert tree(empty.folder).keys() == before.keys()
    assert tree(empty.folder) != before


def test_a_killed_process_leaves_the_old_files_and_the_next_one_clears_up(run, empty):
    publish(run, empty)
    before = tree(empty.folder)
    code = """if True:
        import os, signal, sys
        from pathlib import Path
        from eeutils.weights import Registry
        from tools.publish import publish
        Registry.save = lambda self: os.kill(os.getpid(), signal.SIGKILL)
        publish(Path(sys.argv[1]), Registry.load(Path(sys.argv[2])))
    """
    ended = subprocess.run([sys.executable, "-c", code, run, empty.folder], timeout=120)
    assert ended.returncode == -signal.SIGKILL
    aside = empty.folder / f".{NAME}.before"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == {
        path.name: content for path, content in before.items() if path.parent.name == NAME
    }
    publish(run, Registry.load(empty.folder))
    assert not aside.exists()
    hidden = {path for path in tree(empty.folder) if path.relative_to(empty.folder).parts[0].startswith(".")}
    assert {path: content for path, content in tree(empty.folder).items() if path not in hidden} == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_files_that_a_killed_process_had_set_aside_come_back(tmp_path, error):
    (tmp_path / ".net.before").mkdir()
    (tmp_path / ".net.before" / "weights").write_text("old")

    def fail() -> None:
        with _set_aside(tmp_path / "net"):
            (tmp_path / "net").mkdir()
            raise error("half-way")

    with pytest.raises(error, match="half-way"):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert (tmp_path / "net" / "weights").read_text() == "old"


def test_results_alone_take_the_place_of_weights(run, empty):
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
def test_what_is_too_large_to_ship_changes_nothing(run, tiny_registry, tmp_path, monkeypatch, limit):
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


def test_other_entries_stay(run, tiny_registry):
    publish(run, tiny_registry)
    assert Registry.load(tiny_registry.folder).names == sorted([*tiny_registry.names, NAME])


def test_what_is_not_worth_publishing_changes_nothing(run, tiny_registry):
    before = {path: path.read_bytes() for path in tiny_registry.folder.rglob("*") if path.is_file()}

    def check(error: type[Exception], match: str) -> None:
        with pytest.raises(error, match=match):
            publish(run, tiny_registry)
        assert {path: path.read_bytes() for path in tiny_registry.folder.rglob("*") if path.is_file()} == before

    weights = (run / "weights.safetensors").read_bytes()
    change_weights(run, lambda tensors: tensors["units.0.1.bias"].fill_(float("nan")))
    check(ValueError, r"units\.0\.1\.bias")
    (run / "weights.safetensors").write_bytes(weights)
    change_weights(run, lambda tensors: tensors["units.1.residual.0.weight"].mul_(1e9))
    check(ValueError, "NaN or infinite")  # too large for half precision
    (run / "weights.safetensors").write_bytes(weights)
    change_weights(run, lambda tensors: tensors.pop("units.0.1.bias"))
    check(ValueError, r"missing: units\.0\.1\.bias")
    (run / "weights.safetensors").write_bytes(weights[:-1])
    check(IntegrityError, "safetensors")
    (run / "weights.safetensors").write_bytes(weights)
    history = (run / "history.csv").read_bytes()
    (run / "history.csv").write_text("<html>not found</html>")
    check(IntegrityError, "history")
    (run / "history.csv").write_bytes(history)
    report = (run / "report.json").read_text()
    change_report(run, test_accuracy=[1.0, 1.0])
    check(ValueError, "different runs")
    (run / "report.json").write_text(report[:-9])
    check(IntegrityError, "report")
    (run / "report.json").unlink()
    check(FileNotFoundError, "did not finish")


@pytest.mark.parametrize("reported", [[0.5, 0.611], [0.5, 0.589], [0.5], [0.5, 0.6, 0.6]])
def test_accuracies_of_another_run_are_told(tiny_registry, reported):
    entry = replace(tiny_registry.entries[0], accuracy={"test": (0.5, 0.6)})
    with pytest.raises(ValueError, match="different runs"):
        _check_against({"test_accuracy": reported}, entry)


def test_the_command_line(run, empty, monkeypatch, capsys):
    monkeypatch.setattr(publish_module, "default_registry", lambda: Registry.load(empty.folder))
    main([str(run)])
    assert capsys.readouterr().out.startswith(f"{NAME} test accuracy ")
    assert Registry.load(empty.folder).names == [NAME]
    main([str(run), "--results-only"])
    assert Registry.load(empty.folder).entry(NAME).weights is None
    with pytest.raises(SystemExit, match="did not finish"):
        main([str(run / "nowhere")])
    with pytest.raises(SystemExit, match="name one or more"):
        main([])


def test_the_page_says_what_the_registry_says(run, tiny_registry):
    entry = publish(run, tiny_registry)
    text = (tiny_registry.folder / "README.md").read_text()
    percent = " / ".join(f"{100 * share:.2f}" for share in entry.accuracy["test"])
    row = next(line for line in text.splitlines() if line.startswith(f"| `{NAME}`"))
    assert percent in row
    assert f"{entry.macs[0] / 1e6:.1f} / " in row
    assert "train --width 64 && publish" in text


def test_the_page_leads_to_drive(tiny_registry):
    file = StoredFile("upf/m.pt", None, None, ("drive:some_id",))
    entry = replace(tiny_registry.entries[0], name="upf", status="external", note="Beware.", weights=file)
    text = readme_text(Registry((entry,)))
    assert drive_page("some_id") in text
    assert "Beware." in text
    assert "## Trained" not in text
