from dataclasses import replace

import gdown
import pytest
import torch

from eeutils import create_model, list_weights, load_history, load_predictions, load_weights
from eeutils.weights import Registry, StoredFile, weight_entry
from tools.registry_file import with_entry

NAME = "resnet18_3exits-spp-toy-w4"


def test_load_weights_gives_a_network_ready_to_use(tiny_registry, tiny_net):
    net = load_weights(NAME, registry=tiny_registry)
    assert not any(module.training for module in net.modules())
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in net.state_dict().values())
    assert net.units[0][0].weight.is_contiguous(memory_format=torch.channels_last)
    assert list_weights(tiny_registry) == [NAME]
    images = torch.rand(2, 3, 32, 32)
    for loaded, original in zip(net(images), tiny_net(images), strict=True):
        torch.testing.assert_close(loaded, original, rtol=2e-2, atol=2e-2)  # half precision on the disk


@pytest.mark.parametrize(("ending", "hint"), [("", f"'{NAME}'"), ("-s1", f"'{NAME}'"), ("-ic_only", "list_weights")])
def test_load_weights_says_how_to_train_and_offers_networks_trained_alike(tiny_registry, ending, hint):
    entry = tiny_registry.entry("resnet18_3exits-spp-toy")
    entry = replace(entry, name=entry.name + ending)
    for load in (load_weights, load_history, lambda name, registry: load_predictions(name, "test", registry=registry)):
        with pytest.raises(ValueError, match="not trained") as caught:
            load(entry.name, registry=with_entry(tiny_registry, entry))
        assert "train --width 64 && publish" in str(caught.value)
        assert hint in str(caught.value)


def test_load_weights_lists_names_similar_to_an_unknown_one(tiny_registry):
    for load in (load_weights, load_history, weight_entry):
        with pytest.raises(ValueError, match=f"'resnet'; .*{NAME}"):
            load("resnet", registry=tiny_registry)


def test_load_predictions_and_history_name_what_is_not_published(tiny_registry):
    with pytest.raises(ValueError, match=NAME):
        load_predictions(NAME, "train", registry=tiny_registry)
    with pytest.raises(ValueError, match="not published"):
        load_history(NAME, registry=tiny_registry)


@pytest.fixture
def external(tiny_registry) -> Registry:
    weights = StoredFile("upf/module.pt", None, None, ("drive:some_id",))
    entry = replace(tiny_registry.entry(NAME), name="upf", status="external", weights=weights)
    return with_entry(tiny_registry, entry)


def drive_holds(monkeypatch, module: torch.nn.Module, zipped: bool) -> None:
    def download(*, output: str, **_) -> str:
        torch.save(module, output, _use_new_zipfile_serialization=zipped)
        return output

    monkeypatch.setattr(gdown, "download", download)


@pytest.mark.parametrize(("zipped", "stem"), [(True, "cifar"), (False, "imagenet")])
def test_load_weights_of_a_pickled_module(external, monkeypatch, zipped, stem):
    source = create_model("resnet18_3exits", num_classes=3, width=4, pool="spp", stem=stem, exit_after=(2, 4))
    drive_holds(monkeypatch, source, zipped)
    net = load_weights("upf", registry=external)
    for unit, own in source.units.named_parameters():
        assert torch.equal(net.units.get_parameter(unit), own)
    for head, own in source.exits.items():  # without its scale the head means other weights
        torch.testing.assert_close(net.exits[head].linear.weight * own.scale, own.linear.weight)


def test_load_weights_of_another_pickled_module_gives_the_report(external, monkeypatch):
    drive_holds(monkeypatch, create_model("resnet18", num_classes=3, width=4), True)
    with pytest.raises(ValueError, match="tensor by tensor") as caught:
        load_weights("upf", registry=external)
    assert "- exits.8.linear.weight" in str(caught.value)
    assert "= units.0.0.weight <- units.0.0.weight" in str(caught.value)
