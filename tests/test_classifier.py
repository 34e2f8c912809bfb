"""Networks ready for use."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from eeutils.analysis import policies
from eeutils.analysis.costs import exit_costs
from eeutils.analysis.decisions import decide
from eeutils.analysis.policies import PatiencePolicy, ThresholdPolicy
from eeutils.analysis.predictions import predict
from eeutils.analysis.thresholds import choose_thresholds
from eeutils.cascade import Cascade
from eeutils.classifier import Classifier, load_classifier
from eeutils.data import Normalization, load_data
from eeutils.errors import IntegrityError, StorageError
from eeutils.models import MultiExitNet, create_model, resnet18
from eeutils.weights import list_weights, load_predictions, load_weights, weight_entry

CLASSES = ("cat", "dog", "bird")
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def make_net(seed: int = 0, **kwargs) -> MultiExitNet:
    torch.manual_seed(seed)
    return resnet18(**{"width": 4, "exit_after": (2, 4), "num_classes": 3, **kwargs}).eval()


def pictures(count: int, size: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("policy", [ThresholdPolicy(0.4), ThresholdPolicy((0.5, float("inf")), "margin")])
def test_a_classifier_that_was_saved_answers_as_before(tmp_path, policy):
    classifier = Classifier(make_net(), CLASSES, NORMALIZATION, policy)
    images = pictures(20)
    before = classifier(images)
    classifier.save(tmp_path / "deep" / "net.safetensors")

    again = Classifier.load(tmp_path / "deep" / "net.safetensors", make_net(1).train())

    assert (again.classes, again.normalization, again.policy) == (CLASSES, NORMALIZATION, policy)
    assert not again.net.training
    assert torch.equal(again(images).logits, before.logits)
    assert torch.equal(again(images).exit_index, before.exit_index)


def test_a_network_in_channels_last_memory_can_be_saved(tmp_path):
    net = make_net().to(memory_format=torch.channels_last)
    Classifier(net, CLASSES, NORMALIZATION, ThresholdPolicy(0.4)).save(tmp_path / "net.safetensors")
    again = Classifier.load(tmp_path / "net.safetensors", make_net(1))
    assert all(torch.equal(tensor, again.net.state_dict()[name]) for name, tensor in net.state_dict().items())


def trained_further(path, net):
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(0.1)


def given_other_weights(path, net):
    other = path.with_name("other.safetensors")
    Classifier(make_net(1), CLASSES, NORMALIZATION, ThresholdPolicy(0.4)).save(other)
    Classifier.load(other, net)


@pytest.mark.parametrize("changed", [trained_further, given_other_weights])
def test_what_is_saved_is_what_answers_whatever_becomes_of_the_network_given(tmp_path, changed):
    path, net, images = tmp_path / "net.safetensors", make_net(), pictures(20)
    classifier = Classifier(net, CLASSES, NORMALIZATION, ThresholdPolicy(0.4))
    before = classifier(images).logits
    changed(path, net)
    classifier.save(path)
    assert torch.equal(Classifier.load(path, make_net(2))(images).logits, before)
    assert torch.equal(classifier(images).logits, before)


def whole(net: MultiExitNet) -> nn.Module:
    return torch.compile(net, backend="eager")


def in_pieces(net: MultiExitNet) -> nn.Module:
    units = [torch.compile(unit, backend="eager") for unit in net.units]
    return MultiExitNet(units, dict(zip(net.exit_after, net.exits.values(), strict=True)))


@pytest.mark.parametrize("compiled", [whole, in_pieces])
def test_a_compiled_network_is_saved_as_if_it_were_not(tmp_path, compiled):
    path, state = tmp_path / "net.safetensors", make_net().state_dict()
    Classifier(compiled(make_net()), CLASSES, NORMALIZATION, ThresholdPolicy(0.4)).save(path)
    assert load_file(path).keys() == state.keys()
    for again in (make_net(1), compiled(make_net(1))):
        kept = Classifier.load(path, again).net.state_dict()
        assert all(torch.equal(*pair) for pair in zip(kept.values(), state.values(), strict=True))


def test_an_attention_mask_of_infinities_is_kept(tmp_path):
    nets = make_net(), make_net(1)
    for net, value in zip(nets, (-torch.inf, 0.0), strict=True):
        net.units[0].register_buffer("mask", torch.full((2,), value))
    Classifier(nets[0], CLASSES, NORMALIZATION, ThresholdPolicy(0.4)).save(tmp_path / "net.safetensors")
    again = Classifier.load(tmp_path / "net.safetensors", nets[1])
    assert again.net.units[0].mask.tolist() == [-torch.inf] * 2


def tied_net(seed: int) -> MultiExitNet:
    """One head at both exits, and one unit twice."""
    torch.manual_seed(seed)
    unit = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    return MultiExitNet([unit, unit], {0: head, 1: head}).eval()


def test_a_network_with_tied_weights_answers_as_before(tmp_path):
    classifier = Classifier(tied_net(0), CLASSES, NORMALIZATION, ThresholdPolicy(0.4))
    classifier.save(tmp_path / "net.safetensors")
    again = Classifier.load(tmp_path / "net.safetensors", tied_net(1))
    images = pictures(20)
    assert torch.equal(again(images).logits, classifier(images).logits)
    assert again.net.units[0] is again.net.units[1]


def test_the_fallback_is_kept_with_the_rule(tmp_path):
    path, images = tmp_path / "net.safetensors", pictures(20)
    classifier = Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(1.0), fallback="most_confident")
    expected = Cascade(make_net(), ThresholdPolicy(1.0), fallback="most_confident")(NORMALIZATION(images)).logits
    assert torch.equal(classifier(images).logits, expected)
    assert not torch.equal(replace(classifier, fallback="last")(images).logits, expected)

    classifier.save(path)
    assert torch.equal(Classifier.load(path, make_net(1))(images).logits, expected)


def test_images_of_another_size_than_the_network_was_trained_on_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4), image_shape=(3, 8, 8)).save(path)
    classifier = Classifier.load(path, make_net(1))
    assert classifier.image_shape == (3, 8, 8)
    assert len(classifier(pictures(2)).predicted) == 2
    message = r"shape \(N, 3, 8, 8\), .* got \(2, 3, 12, 12\); load_image\(path, size=8\) makes such"
    with pytest.raises(ValueError, match=message):
        classifier(pictures(2, size=12))
    assert len(replace(classifier, image_shape=None)(pictures(2, size=12)).predicted) == 2


def test_what_load_image_does_not_make_is_not_said_of_it():
    classifier = Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4), image_shape=(3, 8, 12))
    with pytest.raises(ValueError, match=r"got \(1, 3, 8, 8\)$"):
        classifier(pictures(1))


def test_an_older_file_means_the_last_exit_and_images_of_any_size(tmp_path):
    path = tmp_path / "net.safetensors"
    parts = make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4)
    Classifier(*parts, fallback="most_confident", image_shape=(3, 8, 8)).save(path)
    with safe_open(path, framework="pt") as opened:
        about = json.loads(opened.metadata()["eeutils.classifier"])
    del about["fallback"], about["image_shape"]
    save_file(load_file(path), path, {"eeutils.classifier": json.dumps(about)})
    again = Classifier.load(path, make_net())
    assert (again.fallback, again.image_shape) == ("last", None)


def test_what_to_compute_in_is_up_to_the_machine(tmp_path):
    path, images = tmp_path / "net.safetensors", pictures(20)
    classifier = Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4), dtype=torch.bfloat16)
    expected = Cascade(make_net(), ThresholdPolicy(0.4), dtype=torch.bfloat16)(NORMALIZATION(images)).logits
    assert torch.equal(classifier(images).logits, expected)

    classifier.save(path)
    assert all(tensor.dtype != torch.bfloat16 for tensor in load_file(path).values())
    assert Classifier.load(path, make_net()).cascade.dtype == torch.float32
    assert Classifier.load(path, make_net(), dtype=torch.bfloat16).cascade.dtype == torch.bfloat16


@pytest.mark.parametrize("names", [("cat", "dog"), ("cat", "dog", "bird", "frog")])
def test_classes_that_are_not_the_networks_are_refused(names):
    classifier = Classifier(make_net(), names, NORMALIZATION, ThresholdPolicy(0.4))
    with pytest.raises(ValueError, match=f"the network has 3 outputs, the classifier {len(names)} classes"):
        classifier(pictures(1))
    with pytest.raises(ValueError, match="the network has 3 outputs"):  # where the images are known, at once
        replace(classifier, image_shape=(3, 8, 8))


class Standardized(nn.Module):
    """It cannot be asked on shapes alone, and answers NaN for an image of one grey."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean()) / (x.std().item() or torch.nan)


def standardizing_net() -> MultiExitNet:
    net = make_net()
    net.units[0].insert(0, Standardized())
    return net


def test_networks_that_need_numbers_can_be_given_an_image_shape():
    parts = NORMALIZATION, ThresholdPolicy(0.4)
    assert len(Classifier(standardizing_net(), CLASSES, *parts, image_shape=(3, 8, 8))(pictures(2)).predicted) == 2
    with pytest.raises(ValueError, match="3 outputs, the classifier 2 classes"):
        Classifier(standardizing_net(), CLASSES[:2], *parts, image_shape=(3, 8, 8))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (32, r"image_shape must be \(channels, height, width\), such as data\.image_shape, got 32"),
        ((32, 32), "image_shape must be"),
        ((3, 0, 32), "image_shape must be"),
        ((32, 32, 3), r"\(1, 32, 32, 3\)"),
    ],
)
def test_a_shape_that_the_network_cannot_read_is_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4), image_shape=shape)


def test_the_callers_random_numbers_stay_as_they_were():
    net, before = make_net(), torch.get_rng_state()
    Classifier(net, CLASSES, NORMALIZATION, ThresholdPolicy(0.4), image_shape=[3, 8, 8])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("images", [np.zeros((1, 3, 8, 8), np.uint8), "photo.jpg"])
@pytest.mark.parametrize("shape", [None, (3, 8, 8)])
def test_what_is_no_tensor_is_named(images, shape):
    classifier = Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4), image_shape=shape)
    with pytest.raises(TypeError, match=rf"got {type(images).__name__}; load_image\(path, .* torch\.from_numpy"):
        classifier(images)


@pytest.mark.parametrize("threshold", [0.4, 1.0])
def test_the_pixels_are_normalised_and_the_answers_are_a_cascades(threshold):
    classifier = Classifier(make_net(), list(CLASSES), NORMALIZATION, ThresholdPolicy(threshold))
    images = pictures(20)
    expected = Cascade(make_net(), ThresholdPolicy(threshold))(NORMALIZATION(images))
    assert torch.equal(classifier(images).logits, expected.logits)
    assert torch.equal(classifier(images).exit_index, expected.exit_index)
    assert classifier.classes == CLASSES
    with pytest.raises(ValueError, match="uint8"):
        classifier(images.float())


def test_parts_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="3 exits has 2 early ones"):
        Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy((0.5,)))
    with pytest.raises(TypeError, match=r"such as choice\.policy, got PatiencePolicy; a Cascade takes any policy"):
        Classifier(make_net(), CLASSES, NORMALIZATION, PatiencePolicy(2))
    with pytest.raises(TypeError, match=r"such as data\.normalization, got tuple"):
        Classifier(make_net(), CLASSES, ((0.4,) * 3, (0.2,) * 3), ThresholdPolicy(0.5))
    with pytest.raises(ValueError, match="unknown fallback 'first'"):
        Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.5), fallback="first")
    with pytest.raises(TypeError, match="Conv2d has no exits"):
        Classifier(torch.nn.Conv2d(3, 3, 3), CLASSES, NORMALIZATION, ThresholdPolicy(0.5))


def test_what_has_a_default_is_given_by_name():
    with pytest.raises(TypeError, match="positional arguments"):
        Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.5), "last")


def test_files_of_something_else_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError):
        Classifier.load(path, make_net())
    for metadata in (None, {"format": "pt"}):
        save_file({"x": torch.ones(2)}, path, metadata)
        with pytest.raises(IntegrityError, match="not a classifier that was saved"):
            Classifier.load(path, make_net())
    save_file({"x": torch.ones(2)}, path, {"eeutils.classifier": json.dumps({"classes": []})[:-1]})
    with pytest.raises(IntegrityError, match="not a classifier that was saved"):
        Classifier.load(path, make_net())
    Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4)).save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="safetensors"):
        Classifier.load(path, make_net())


def test_a_network_that_is_built_otherwise_is_left_as_it_was(tmp_path):
    Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4)).save(tmp_path / "net.safetensors")
    other = make_net(num_classes=4)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match="of another shape"):
        Classifier.load(tmp_path / "net.safetensors", other)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_score_of_ones_own_is_kept_by_name_and_missed_where_nobody_registered_it(tmp_path, monkeypatch):
    path, net = tmp_path / "net.safetensors", make_net(1)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def energy(logits: torch.Tensor) -> torch.Tensor:
        return (logits.logsumexp(-1) / 10).sigmoid()

    with monkeypatch.context() as patch:
        patch.setattr(policies, "_SCORES", dict(policies._SCORES))
        policies.register_score(energy)
        Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4, "energy")).save(path)
        assert Classifier.load(path, make_net(1)).policy == ThresholdPolicy(0.4, "energy")
    with pytest.raises(ValueError, match=r"unknown score 'energy'; choose from .*register_score"):
        Classifier.load(path, net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_file_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4)).save(tmp_path / "file" / "net.safetensors")


def test_a_full_disk_is_a_storage_error(tmp_path, monkeypatch):
    def fail(*args) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(StorageError, match="No space left"):
        Classifier(make_net(), CLASSES, NORMALIZATION, ThresholdPolicy(0.4)).save(tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_network_trained_here_and_kept(tmp_path):
    data = load_data("digits")
    arguments = {"pool": "spp", "width": 2, "num_classes": len(data.classes)}
    net = create_model("resnet18_2exits", **arguments)
    choice = choose_thresholds(predict(net, data.val), max_drop=0.1)
    parts = net, data.classes, data.normalization, choice.policy
    Classifier(*parts, image_shape=data.image_shape).save(tmp_path / "digits.safetensors")

    kept = Classifier.load(tmp_path / "digits.safetensors", create_model("resnet18_2exits", **arguments))

    named = [kept.classes[index] for index in kept(data.test.images[:5]).predicted]
    decisions = decide(predict(net, data.test.take(slice(0, 5))), choice.policy)
    assert named == [data.classes[index] for index in decisions.predicted]


def test_a_shipped_network_comes_with_its_threshold_and_classes(cifar10):
    name = next(name for name in list_weights() if name.startswith("resnet18_3exits-spp-cifar10"))
    classifier = load_classifier(name, max_drop=0.02)
    assert (classifier.classes, classifier.image_shape) == (cifar10.classes, cifar10.image_shape)
    assert classifier.policy == choose_thresholds(load_predictions(name, "val"), max_drop=0.02).policy
    right = classifier(cifar10.test.images[:500]).predicted == cifar10.test.labels[:500]
    assert right.double().mean() > 0.8
    with pytest.raises(ValueError, match=r"load_image\(path, size=32\)"):
        classifier(pictures(1, size=48))


def test_a_shipped_networks_images_are_those_that_its_costs_were_counted_on():
    name = next(name for name in list_weights() if name.startswith("resnet18_3exits-spp-cifar10"))
    shape = load_classifier(name).image_shape
    assert exit_costs(load_weights(name), shape).tolist() == list(weight_entry(name).macs)


def test_a_shipped_network_can_be_given_a_fallback_and_a_number_format():
    name = next(name for name in list_weights() if name.startswith("resnet18_3exits-spp-cifar10"))
    cascade = load_classifier(name, fallback="most_confident", dtype=torch.bfloat16).cascade
    assert (cascade.fallback, cascade.dtype) == ("most_confident", torch.bfloat16)
