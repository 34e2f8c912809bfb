import runpy
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import shufflenet_v2_x0_5

from eeutils import Classifier, load_image

PHOTOS = Path(__file__).parents[2] / "examples" / "photos.py"
DOWNLOAD = "torchvision.models._api.load_state_dict_from_url"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Twenty dark and twenty bright images."""
    for name, offset in (("bright", 128), ("dark", 0)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 128, (40, 48, 3), dtype=np.uint8) + offset
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


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


def test_pretrained_starts_from_random_weights_without_a_connection(monkeypatch):
    def fail(*args, **kwargs):
        raise URLError("no route")

    monkeypatch.setattr(DOWNLOAD, fail)
    pretrained = runpy.run_path(str(PHOTOS))["pretrained"]
    with pytest.warns(UserWarning, match="no route"):
        network = pretrained("shufflenet_v2_x0_5", 3)
    assert network.fc.weight.shape == (3, 1024)
