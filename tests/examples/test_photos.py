import runpy
import sys
from pathlib import Path
from unittest.mock import Mock
from urllib.error import URLError

import pytest
import torch
from torchvision.models import shufflenet_v2_x0_5

from eeutils import Classifier, load_image
from tests.toys import write_pictures

PHOTOS = Path(__file__).parents[2] / "examples" / "photos.py"
DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_pictures(tmp_path / "photos", ("dark", "bright"))


def test_photos_trains_saves_and_exports(folder, tmp_path, monkeypatch, capsys):
    state, exported = shufflenet_v2_x0_5().state_dict(), []
    monkeypatch.setattr(DOWNLOAD, lambda *args, **kwargs: state)
    monkeypatch.setattr("eeutils.export.export", lambda *args: exported.append(args))  # a minute
    words = ["--network", "shufflenet_v2_x0_5", "--after", "stage2", "stage3", "--size", "32", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", ["photos.py", str(folder), str(tmp_path / "answers"), *words])
    runpy.run_path(str(PHOTOS), run_name="__main__")
    assert capsys.readouterr().out.startswith("Decisions(8 images: accuracy ")
    classifier = Classifier.load(tmp_path / "answers" / "photos.safetensors")
    assert classifier.classes == ("bright", "dark")
    kept = classifier.net.state_dict()
    assert torch.equal(kept["units.0.conv1.0.weight"], state["conv1.0.weight"])  # frozen
    image = load_image(folder / "dark" / "0.png", size=32)
    ((given, target),) = exported
    assert torch.equal(given(image).logits, classifier(image).logits)
    assert target == tmp_path / "answers" / "exported"


def test_photos_starts_from_random_weights_without_a_connection(monkeypatch):
    monkeypatch.setattr(DOWNLOAD, Mock(side_effect=URLError("no route")))
    pretrained = runpy.run_path(str(PHOTOS))["pretrained"]
    with pytest.warns(UserWarning, match="no route"):
        network = pretrained("shufflenet_v2_x0_5", 3)
    assert network.fc.weight.shape == (3, 1024)
