import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eeutils import Classifier, MultiExitNet, ThresholdPolicy
from eeutils.analysis import register_score
from eeutils.analysis.policies import score_of
from eeutils.data import Normalization
from eeutils.export import SCORES, export, main
from eeutils.models import create_exit
from tests.toys import between_scores, random_split

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package, reason=f"{package} is not installed")


def make_classifier(policy: ThresholdPolicy, **kwargs) -> Classifier:
    """Two stages; 14 is no multiple of four."""
    torch.manual_seed(0)
    units = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3))]
    net = MultiExitNet(units, {0: create_exit("conv", 8, 3), 1: create_exit("mixed", 8, 3)}).eval()
    normalization = Normalization((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))
    return Classifier(net, ("cat", "dog", "bird"), normalization, policy, image_shape=(3, 14, 14), **kwargs)


PICTURES = random_split(24, 14).images


def halving() -> Classifier:
    """With a threshold between the scores of `PICTURES`."""
    everybody = make_classifier(ThresholdPolicy(0.0))(PICTURES)
    return make_classifier(ThresholdPolicy(between_scores(everybody.confidence)))


def exported_module(folder: Path):
    spec = importlib.util.spec_from_file_location("exported_run", folder / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exported_cascade(folder: Path):
    return exported_module(folder).Cascade(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("export") / "photos"
    export(halving(), path, images=PICTURES)
    return path


def assert_answers(cascade, classifier: Classifier, count: int = 24) -> None:
    """The exported cascade answers as the classifier."""
    logits, exits = cascade(PICTURES[:count].numpy())
    expected = classifier(PICTURES[:count])
    assert exits.tolist() == expected.exit_index.tolist()
    np.testing.assert_allclose(logits, expected.logits.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("count", [1, 24])
def test_export_answers_as_the_classifier(folder, count):
    assert len(halving()(PICTURES).exit_index.unique()) == 2
    assert_answers(exported_cascade(folder), halving(), count)


def test_export_needs_neither_torch_nor_eeutils(folder, tmp_path):
    for index in range(2):
        Image.fromarray(PICTURES[index].permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    blocked = tmp_path / "blocked"
    for name in ("torch", "eeutils"):
        (blocked / name).mkdir(parents=True)
        (blocked / name / "__init__.py").write_text("raise ImportError")
    command = [sys.executable, str(folder / "run.py"), str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    environment = {**os.environ, "PYTHONPATH": str(blocked)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    named = [("cat", "dog", "bird")[index] for index in halving()(PICTURES[:2]).predicted]
    assert [line.split(": ")[1].split()[0] for line in done.stdout.splitlines()] == named


def test_export_runs_on_openvino_as_well(folder, monkeypatch):
    pytest.importorskip("openvino", reason="openvino is not installed")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_answers(exported_cascade(folder), halving())


def test_export_refuses_an_altered_stage(folder, tmp_path):
    stage = shutil.copytree(folder, tmp_path / "altered") / "stage1.onnx"
    stage.write_bytes(stage.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match=r"stage1\.onnx"):
        exported_cascade(stage.parent)


def test_export_answers_for_single_images_from_one_file(folder):
    module = exported_module(folder)
    run = module.open_stage(folder / "single.onnx", module.Cascade(folder).about["single"]["sha256"])
    classifier = halving()
    expected = classifier(PICTURES)
    images = classifier.normalization(PICTURES).contiguous()
    answers = [run([image.numpy()]) for image in images.split(1)]
    assert [int(exit_index[0]) for _, exit_index in answers] == expected.exit_index.tolist()
    np.testing.assert_allclose(np.concatenate([logits for logits, _ in answers]), expected.logits, rtol=1e-3, atol=1e-4)


def test_export_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("eeutils.export._LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(ValueError, match="differ"):
        export(halving(), tmp_path / "photos")
    assert not list(tmp_path.iterdir())


def test_export_refuses_scores_in_python_and_unknown_image_shapes(tmp_path):
    @register_score
    def exported_nowhere(logits: torch.Tensor) -> torch.Tensor:
        return logits.softmax(-1).amax(-1)

    for classifier, named in (
        (make_classifier(ThresholdPolicy(0.5, "exported_nowhere")), "exported_nowhere"),
        (replace(make_classifier(ThresholdPolicy(0.5)), image_shape=None), "None"),
    ):
        with pytest.raises(ValueError, match=named):
            export(classifier, tmp_path / "photos")


def test_export_main_names_a_source_that_is_unknown(tmp_path):
    with pytest.raises(SystemExit, match="'nosuch'"):
        main(["nosuch", str(tmp_path / "photos")])


@pytest.mark.parametrize("score", ["entropy", "margin"])
def test_export_answers_with_other_scores_and_fallbacks(folder, score):
    cascade = exported_cascade(folder)
    cascade.about |= {"score": score, "thresholds": [0.02], "fallback": "most_confident"}
    assert_answers(cascade, make_classifier(ThresholdPolicy(0.02, score), fallback="most_confident"))


@pytest.mark.parametrize("score", SCORES)
def test_export_scores_even_and_sure_answers_as_the_package_does(folder, score):
    cascade = exported_cascade(folder)
    cascade.about |= {"score": score}
    for classes in range(2, 200):
        logits = torch.eye(classes)[:2] * torch.tensor([[0.0], [1000.0]])
        scores = cascade.score(logits.numpy())
        assert 0 <= scores.min() <= scores.max() <= 1
        np.testing.assert_allclose(scores, score_of(logits, score), atol=1e-6)
