import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eeutils import (
    Cascade,
    Classifier,
    MultiExitNet,
    ThresholdPolicy,
    choose_thresholds,
    create_model,
    list_weights,
    load_classifier,
    load_predictions,
)
from eeutils.analysis import PatiencePolicy, policies
from eeutils.data import Normalization
from eeutils.errors import IntegrityError
from eeutils.files import load_tensors, save_tensors
from eeutils.models import Origin, resnet18
from tests.toys import random_split, unchanged

CLASSES = ("cat", "dog", "bird")
NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def make_net(seed: int = 0, **kwargs) -> MultiExitNet:
    torch.manual_seed(seed)
    return resnet18(**{"width": 4, "exit_after": (2, 4), "num_classes": 3, **kwargs}).eval()


def make_classifier(net: nn.Module | None = None, policy: ThresholdPolicy | None = None, **kwargs) -> Classifier:
    net = make_net() if net is None else net
    return Classifier(net, CLASSES, NORMALIZATION, policy or ThresholdPolicy(0.4), **kwargs)


def pictures(count: int, size: int = 8) -> torch.Tensor:
    return random_split(count, size).images


@pytest.mark.parametrize("threshold", [0.4, 1.0])
def test_classifier_normalises_and_agrees_with_a_cascade(threshold):
    classifier, images = make_classifier(policy=ThresholdPolicy(threshold)), pictures(20)
    expected = Cascade(make_net(), ThresholdPolicy(threshold))(NORMALIZATION(images))
    assert torch.equal(classifier(images).logits, expected.logits)
    assert torch.equal(classifier(images).exit_index, expected.exit_index)


@pytest.mark.parametrize(
    "options",
    [
        {"policy": ThresholdPolicy((0.5, float("inf")), "margin")},
        {"policy": ThresholdPolicy(1.0), "fallback": "most_confident"},
        {"image_shape": (3, 8, 8), "net": make_net().to(memory_format=torch.channels_last)},
    ],
)
def test_classifier_save_and_load_give_the_same_answers(tmp_path, options):
    path, images = tmp_path / "deep" / "net.safetensors", pictures(20)
    classifier = make_classifier(**options)
    before = classifier(images)
    classifier.save(path)
    again = Classifier.load(path, make_net(1).train())
    kept = ("classes", "normalization", "policy", "fallback", "image_shape")
    assert [getattr(again, name) for name in kept] == [getattr(classifier, name) for name in kept]
    assert not again.net.training
    assert torch.equal(again(images).logits, before.logits)
    assert torch.equal(again(images).exit_index, before.exit_index)


def test_classifier_does_not_change_with_the_network_it_was_made_of(tmp_path):
    path, net, images = tmp_path / "net.safetensors", make_net(), pictures(20)
    classifier = make_classifier(net)
    before = classifier(images).logits
    net.load_state_dict(make_net(1).state_dict())
    classifier.save(path)
    assert torch.equal(Classifier.load(path, make_net(2))(images).logits, before)
    assert torch.equal(classifier(images).logits, before)


def test_classifier_load_rebuilds_a_network_of_create_model(tmp_path):
    path, images = tmp_path / "net.safetensors", pictures(20)
    arguments = {"width": 4, "exit_after": [2, 4], "num_classes": 3}
    net = create_model("resnet18", **arguments).eval()
    classifier = make_classifier(net, image_shape=(3, 8, 8))
    classifier.save(path)
    before = torch.get_rng_state()
    assert torch.equal(Classifier.load(path)(images).logits, classifier(images).logits)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("origin", [None, Origin("own", "net", {})])
def test_classifier_load_asks_for_a_network_that_nothing_rebuilds(tmp_path, origin):
    net = make_net()
    net.origin = origin
    make_classifier(net).save(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="None" if origin is None else "'own'"):
        Classifier.load(tmp_path / "net.safetensors")


def test_classifier_load_refuses_a_rebuilt_network_that_answers_otherwise(tmp_path):
    path, arguments = tmp_path / "net.safetensors", {"width": 4, "exit_after": (2, 4), "num_classes": 3}
    net = create_model("resnet18", **arguments).eval()
    net.units[0].append(nn.Tanh())  # has no weights
    make_classifier(net, image_shape=(3, 8, 8)).save(path)
    with pytest.raises(ValueError, match="resnet18"):
        Classifier.load(path)
    assert len(Classifier.load(path, net)(pictures(2)).predicted) == 2


def whole(net: MultiExitNet) -> nn.Module:
    return torch.compile(net, backend="eager")


def in_pieces(net: MultiExitNet) -> nn.Module:
    units = [torch.compile(unit, backend="eager") for unit in net.units]
    return MultiExitNet(units, dict(zip(net.exit_after, net.exits.values(), strict=True)))


@pytest.mark.parametrize("compiled", [whole, in_pieces])
def test_classifier_save_names_the_weights_of_a_compiled_network_as_if_it_were_not(tmp_path, compiled):
    path, state = tmp_path / "net.safetensors", make_net().state_dict()
    make_classifier(compiled(make_net())).save(path)
    assert load_file(path).keys() == state.keys()
    for again in (make_net(1), compiled(make_net(1))):
        kept = Classifier.load(path, again).net.state_dict()
        assert all(torch.equal(*pair) for pair in zip(kept.values(), state.values(), strict=True))


def test_classifier_computes_in_a_precision_that_is_not_saved(tmp_path):
    path, images = tmp_path / "net.safetensors", pictures(20)
    classifier = make_classifier(precision="bf16")
    expected = Cascade(make_net(), ThresholdPolicy(0.4), precision="bf16")(NORMALIZATION(images)).logits
    assert torch.equal(classifier(images).logits, expected)
    classifier.save(path)
    assert all(tensor.dtype != torch.bfloat16 for tensor in load_file(path).values())
    assert Classifier.load(path, make_net()).precision is None
    assert Classifier.load(path, make_net(), precision="bf16").precision == "bf16"


@pytest.mark.parametrize(
    "images",
    [pictures(2, size=12), pictures(2).float() / 255, (2 * torch.rand(2, 3, 8, 8)).byte()],
    ids=["size", "float", "scaled"],
)
def test_classifier_refuses_other_images(images):
    with pytest.raises(ValueError, match=r"12, 12|float32|uint8"):
        make_classifier(image_shape=(3, 8, 8))(images)


def test_classifier_compares_classes_and_outputs():
    classifier = Classifier(make_net(), ["cat", "dog"], NORMALIZATION, ThresholdPolicy(0.4))
    assert classifier.classes == ("cat", "dog")
    with pytest.raises(ValueError, match=r"3 names.*got 2"):
        classifier(pictures(1))
    with pytest.raises(ValueError, match=r"3 names.*got 2"):  # at once, if the images are known
        replace(classifier, image_shape=(3, 8, 8))


@pytest.mark.parametrize("shape", [32, (3, 0, 32), (32, 32, 3)])
def test_classifier_refuses_a_shape_that_the_network_cannot_read(shape):
    with pytest.raises(ValueError, match="32"):
        make_classifier(image_shape=shape)


@pytest.mark.parametrize(
    "changes", [{"policy": ThresholdPolicy((0.5,))}, {"policy": PatiencePolicy(2)}, {"net": nn.Conv2d(3, 3, 3)}]
)
def test_classifier_refuses_parts_that_do_not_fit(changes):
    with pytest.raises((ValueError, TypeError)):
        replace(make_classifier(), **changes)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"eeutils.classifier": '{"classes": []'}])
def test_classifier_load_refuses_a_file_that_holds_something_else(tmp_path, metadata):
    path = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError):
        Classifier.load(path, make_net())
    save_tensors(path, {"x": torch.ones(2)}, metadata)
    with pytest.raises(IntegrityError, match=r"net\.safetensors"):
        Classifier.load(path, make_net())


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": {"thresholds": 0.5, "scorr": "margin"}},
        {"classes": None},
        {"image_shape": ["3", 8, 8]},
        {"image_shape": [3, 8, 1 << 70]},
        {"answers": None},
        {"answers": [[1.0]]},
        {"origin": {"library": "eeutils", "name": "resnet18", "arguments": {"width": "x"}}},
    ],
)
def test_classifier_load_refuses_odd_metadata_under_a_good_checksum(tmp_path, wrong):
    path = tmp_path / "net.safetensors"
    make_classifier(make_net(width=1), image_shape=(3, 8, 8)).save(path)
    tensors, metadata = load_tensors(path)
    ((key, about),) = metadata.items()
    save_tensors(path, tensors, {key: json.dumps(json.loads(about) | wrong)})
    with pytest.raises((IntegrityError, ValueError)):
        Classifier.load(path)


def test_classifier_load_needs_the_registered_score_of_the_policy(tmp_path, monkeypatch):
    path, net = tmp_path / "net.safetensors", make_net(1)

    def energy(logits: torch.Tensor) -> torch.Tensor:
        return (logits.logsumexp(-1) / 10).sigmoid()

    with monkeypatch.context() as patch:
        patch.setattr(policies, "_SCORES", dict(policies._SCORES))
        policies.register_score(energy)
        make_classifier(policy=ThresholdPolicy(0.4, "energy")).save(path)
        assert Classifier.load(path, make_net(1)).policy == ThresholdPolicy(0.4, "energy")
    with unchanged(net), pytest.raises(ValueError, match="'energy'"):
        Classifier.load(path, net)


SHIPPED = next(name for name in list_weights() if name.startswith("resnet18_3exits-spp-cifar10"))


def test_load_classifier_has_threshold_classes_and_accuracy(cifar10):
    classifier = load_classifier(SHIPPED, max_drop=0.02)
    assert (classifier.classes, classifier.image_shape) == (cifar10.classes, cifar10.image_shape)
    assert classifier.policy == choose_thresholds(load_predictions(SHIPPED, "val"), max_drop=0.02).policy
    right = classifier(cifar10.test.images[:500]).predicted == cifar10.test.labels[:500]
    assert right.double().mean() > 0.8
