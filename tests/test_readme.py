"""The README's code runs as it stands there, and so does what it says stands in docstrings."""

import re
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import eeutils
from eeutils import Classifier, create_model, list_weights
from eeutils.models import resnet18
from eeutils.weights import weight_entry
from tests.toys import weights, write_pictures

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """The folder photos/, in the current one."""
    monkeypatch.chdir(tmp_path)
    return write_pictures(tmp_path / "photos")


def block(word: str) -> str:
    (found,) = [text for text in BLOCKS if word in text]
    return found


def test_readme_cascade_in_four_lines(monkeypatch, capsys):
    load_weights = Mock(return_value=create_model("resnet18_3exits", width=2))
    load_data = Mock(return_value=eeutils.load_data("digits"))
    monkeypatch.setattr(eeutils, "load_weights", load_weights, raising=False)
    monkeypatch.setattr(eeutils, "load_data", load_data, raising=False)
    exec(block("half of the multiply-adds, on validation"), {})
    assert re.match(r"Decisions\(\d+ images: accuracy ", capsys.readouterr().out)
    assert load_weights.call_args.args[0] in list_weights()
    load_data.assert_called_once_with("cifar10")


def test_readme_quotes_what_the_cascade_prints():
    code = block("half of the multiply-adds, on validation")
    name = re.search(r'load_weights\("(.*?)"', code)[1]
    val, test = (eeutils.load_predictions(name, split) for split in ("val", "test"))
    assert f"# {eeutils.decide(test, eeutils.choose_thresholds(val, budget=0.5).policy)}\n" in code


def test_readme_table_of_ways_to_choose_thresholds():
    calls = re.findall(r"\| `(choose_\w+\(.*?\))` \|", README)
    data = eeutils.load_data("digits")
    net = resnet18(width=2, exit_after=(0, 4))
    names = {name: getattr(eeutils, name) for name in eeutils.__all__} | {"net": net, "data": data}
    names["val"] = eeutils.predict(net, data.val)
    # Asked as it stands there, but no test depends on how long something takes.
    names["measure_seconds"] = lambda *asked: eeutils.measure_seconds(*asked).argsort() + 1
    choices = [eval(call, names) for call in calls]
    assert len(choices) == 5
    assert [choice.relative_cost <= 0.5 for choice in choices[1:3]] == [True, True]


def test_readme_shipped_predictions_and_their_curve(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(block("plot_curves"), {})
    accuracies, decisions = capsys.readouterr().out.splitlines()
    name = re.search(r'load_predictions\("(.*?)"', block("plot_curves"))[1]
    assert accuracies == str(torch.tensor(weight_entry(name).accuracy["test"], dtype=torch.float64))
    assert decisions.startswith("Decisions(10,000 images: accuracy ")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_readme_own_images_from_training_to_a_file(photos, tmp_path, capsys):
    code = block("photos.pt")
    exec(code.replace("width=16", "width=2").replace("epochs=20", "epochs=1"), {})
    assert re.match(r"Decisions\(\d+ images: accuracy ", capsys.readouterr().out)
    assert (tmp_path / "photos.pt").exists()
    alike = create_model("resnet18_3exits", pool="spp", width=2, num_classes=2)
    assert Classifier.load("photos.safetensors", alike).classes == ("cats", "dogs")


def test_readme_shipped_network_on_a_new_picture(photos, tmp_path, capsys):
    code = block("load_classifier")
    name = re.search(r'load_classifier\("(.*?)"', code)[1]
    if name not in list_weights():
        pytest.skip(f"{name} is not shipped")
    photos.joinpath("cats", "0.png").rename(tmp_path / "photo.jpg")
    exec(code, {})
    assert re.fullmatch(r"\w+ at exit [123]\n", capsys.readouterr().out)


def test_readme_exits_behind_named_layers():
    names, code = {}, block("ThresholdPolicy(0.9)")
    exec(code.replace('weights="DEFAULT"', "weights=None").replace('"])', '"], image_size=64)'), names)
    assert names["net"].num_exits == 3
    assert names["cascade"](torch.randn(2, 3, 64, 64)).logits.shape == (2, 1000)


def test_readme_frozen_network_on_photos(photos, monkeypatch, capsys):
    made = []
    for place in ("eeutils.Classifier.push_to_hub", "eeutils.export.export"):
        monkeypatch.setattr(place, lambda *args: made.append(args))
    code = block("push_to_hub").replace('weights="DEFAULT"', "").replace("resnet50", "resnet18").replace("2048", "512")
    exec(code.replace("size=224", "size=32").replace('"])', '"], image_size=32)').replace("epochs=10", "epochs=1"), {})
    assert re.match(r"Decisions\(\d+ images: accuracy ", capsys.readouterr().out)
    assert [target for _, target in made] == ["me/photos", "exported"]
    assert {classifier.classes for classifier, _ in made} == {("cats", "dogs")}


def test_readme_starts_from_a_shipped_network(photos, monkeypatch):
    donor, began = create_model("resnet18_3exits", pool="conv+conv+spp", width=32), []
    monkeypatch.setattr(eeutils, "load_weights", lambda name: donor, raising=False)
    monkeypatch.setattr(eeutils, "fit", lambda net, data, config: began.append((net, data)), raising=False)
    exec(block("weight_entry"), {})
    ((net, data),) = began
    assert data.normalization == weight_entry("resnet18_3exits-conv+conv+spp-cifar10-w32").normalization
    assert [each.shape for each in net.eval()(torch.zeros(1, 3, 32, 32))] == [(1, 2)] * 3
    for name, tensor in donor.units.state_dict().items():
        assert torch.equal(tensor, net.units.state_dict()[name])


def test_readme_exits_for_a_trained_network(monkeypatch):
    net, names = resnet18(width=2), {}
    before = weights(net)
    monkeypatch.setattr(eeutils, "load_weights", lambda name: net, raising=False)
    exec(block('recipe("ic_only")').replace('"cifar10"', '"digits"').replace('"ic_only"', '"ic_only", epochs=1'), names)
    assert names["sdn"].exit_after == (3, 5, 8)
    assert all(torch.equal(tensor, names["sdn"].state_dict()[name]) for name, tensor in before.items())
