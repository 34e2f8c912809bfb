import shutil
from inspect import signature
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision.models as tv

from eeutils import Classifier, MultiExitNet, ThresholdPolicy, create_model, predict, with_exits
from eeutils.data import Normalization
from tests.toys import random_split

huggingface_hub = pytest.importorskip("huggingface_hub")
HfApi, hf_hub_download = huggingface_hub.HfApi, huggingface_hub.hf_hub_download

SIZE, CLASSES, NORMALIZATION = 32, ("cat", "dog", "bird"), Normalization((0.5,) * 3, (0.25,) * 3)
POLICY = ThresholdPolicy((0.35, float("inf")))


def of_create_model() -> MultiExitNet:
    return create_model("resnet18", width=2, exit_after=(2, 4), num_classes=3)


def of_torchvision() -> MultiExitNet:
    return with_exits(tv.shufflenet_v2_x0_5(num_classes=3), ["stage2", "stage3"], image_size=SIZE, pool="spp")


def make_classifier(net: MultiExitNet) -> Classifier:
    return Classifier(net.eval(), CLASSES, NORMALIZATION, POLICY, image_shape=(3, SIZE, SIZE))


@pytest.mark.parametrize("build", [of_create_model, of_torchvision])
def test_from_pretrained_gives_the_answers_of_what_save_pretrained_kept(tmp_path, build):
    classifier, images = make_classifier(build()), random_split(20, SIZE).images
    classifier.save_pretrained(tmp_path / "photos")
    again = Classifier.from_pretrained(tmp_path / "photos")
    assert (again.classes, again.policy, again.net.origin) == (CLASSES, POLICY, classifier.net.origin)
    assert torch.equal(again(images).logits, classifier(images).logits)


def test_save_pretrained_fills_the_card_from_the_table_of_exits(tmp_path):
    net = of_create_model().eval()
    predictions = predict(net, random_split(20, SIZE, num_classes=3))
    make_classifier(net).save_pretrained(tmp_path / "photos", predictions=predictions)
    card = huggingface_hub.ModelCard.load(tmp_path / "photos" / "README.md")
    rows = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    assert [row[:2] for row in rows[1:]] == [["1", "0.350"], ["2", "inf"], ["3", ""]]
    assert [row[2] for row in rows[1:]] == [f"{macs / 1e6:,.1f}" for macs in predictions.costs.tolist()]
    assert [row[3] for row in rows[1:]] == [f"{100 * share:.2f}" for share in predictions.accuracy.tolist()]
    assert sum(float(row[4]) for row in rows[1:]) == pytest.approx(100)
    assert card.data.library_name == "eeutils"
    assert 'from_pretrained("photos")' in card.text


@pytest.fixture
def repository(monkeypatch, tmp_path) -> Path:
    """Folder of the one repository of a Hub that takes and gives files without a network."""
    folder = tmp_path / "repository"

    def upload(_api: HfApi, *, folder_path: Path, **_: object) -> str:
        shutil.copytree(folder_path, folder)
        return "commit"

    def download(*given: object, **options: object) -> str:
        asked = signature(hf_hub_download).bind(*given, **options).arguments
        assert (asked["repo_id"], asked["token"], asked["revision"]) == ("me/photos", "hf_none", None)
        return str(folder / asked["filename"])

    monkeypatch.setattr(HfApi, "create_repo", lambda _, repo_id, **options: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    for module in ("huggingface_hub.hub_mixin", "eeutils.hub"):
        monkeypatch.setattr(f"{module}.hf_hub_download", download)
    return folder


def test_push_to_hub_and_from_pretrained_go_there_and_back(repository):
    classifier, images = make_classifier(of_torchvision()), random_split(20, SIZE).images
    assert classifier.push_to_hub("me/photos", token="hf_none") == "commit"
    assert {path.name for path in repository.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert 'from_pretrained("me/photos")' in (repository / "README.md").read_text()
    again = Classifier.from_pretrained("me/photos", token="hf_none", precision="fp32")
    assert again.precision == "fp32"
    assert torch.equal(again(images).predicted, classifier(images).predicted)
