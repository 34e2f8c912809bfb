import json
from copy import deepcopy

import pytest
import torch
from torch import nn

from eeutils import MultiExitNet, create_model, list_models
from eeutils.models import Origin, drop_exits, prepared_for_inference, register_model, registry, truncate


@pytest.mark.parametrize("name", list_models())
def test_create_model_takes_the_same_keywords_everywhere(name):
    early = tuple(range(create_model(name, width=2).num_exits - 1)) or (1,)
    arguments = {"num_classes": 5, "in_channels": 1, "width": 2, "image_size": 64, "pool": "spp", "exit_after": early}
    net = create_model(name, **arguments).eval()
    assert net.exit_after[:-1] == early
    assert {logits.shape for logits in net(torch.zeros(2, 1, 64, 64))} == {(2, 5)}
    assert net.origin == Origin("eeutils", name, arguments | {"exit_after": list(early)})


@pytest.mark.parametrize("name", [name for name in list_models() if "airnet" not in name])
def test_create_model_draws_convolutions_that_keep_the_size_of_gradients(name):
    """He et al., 2015: of variance 2 / (outputs x kernel elements)."""
    net = create_model(name, width=8)
    convolutions = [module.weight.detach() for module in net.modules() if isinstance(module, nn.Conv2d)]
    scaled = torch.cat([(weight * (weight[:, 0].numel() / 2) ** 0.5).flatten() for weight in convolutions])
    assert scaled.std().item() == pytest.approx(1, abs=0.05)


def test_origin_rebuilds_the_network_and_survives_copies_but_not_surgery():
    net = create_model("resnet18_3exits", width=2, exit_after=(1, 4))
    origin = net.origin
    assert json.loads(json.dumps(origin.arguments)) == origin.arguments
    assert create_model(origin.name, **origin.arguments).state_dict().keys() == net.state_dict().keys()
    assert deepcopy(net).origin == prepared_for_inference(net).origin == origin
    assert drop_exits(net, [1]).origin is truncate(net, 0).origin is None


@pytest.mark.parametrize(
    ("arguments", "got"),
    [
        ({"width": 0}, "^width .*0"),
        ({"num_classes": 1}, "^num_classes .*1"),
        ({"exit_after": (8,)}, r"0\.\.7.*\(8,\)"),
        ({"pool": "mean"}, "'mean'"),
    ],
)
def test_create_model_names_a_value_that_makes_no_network(arguments, got):
    with pytest.raises(ValueError, match=got):
        create_model(**{"name": "resnet18", **arguments})
    with pytest.raises(TypeError, match="depth"):
        create_model("resnet18", depth=3)


@pytest.fixture
def own_registry(monkeypatch):
    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))


@pytest.mark.usefixtures("own_registry")
def test_register_model_refuses_a_name_that_is_taken():
    def resnet18() -> MultiExitNet:
        raise AssertionError("not this one")

    with pytest.raises(ValueError, match=r"'resnet18'.* eeutils\.models\.resnet"):
        register_model(resnet18)
    assert create_model("resnet18", width=2).num_exits == 1


@pytest.mark.usefixtures("own_registry")
def test_register_model_takes_a_builder_that_is_defined_again():
    for width in (2, 3):

        @register_model
        def own_net(width=width, layer=None):
            return create_model("resnet18", width=width)

        assert create_model("own_net").units[0][0].out_channels == width
    assert create_model("own_net", layer=nn.ReLU()).origin is None  # no JSON
